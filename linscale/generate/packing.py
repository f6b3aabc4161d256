"""The matrices of a layer as a decoding step reads them: side by side where they read the same, norms multiplied in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from linscale.layers import RMSNorm, SoftmaxAttention
from linscale.models import LanguageModel
from linscale.models.cosformer2 import CosFormer2Mixer
from linscale.models.hgrn2 import HGRN2, HGRN2Mixer, lower_bounds
from linscale.models.tnl import TNLMixer


@dataclass(frozen=True)
class Layer:
    """One layer, all matrices (outputs, inputs)."""

    kind: Literal["plain", "head", "gated", "softmax"]
    """How the state decays, or that there is none."""
    project: Tensor
    """(3 D, D) q, k or f, v; behind them the output gate's bottleneck (rank, D)."""
    silu_until: int
    """The first outputs that are put through silu."""
    out: Tensor
    gate_up: Tensor
    """(2 d_ff, D)"""
    down: Tensor
    activation: bool
    """Whether the GLU's gate is put through silu."""
    gate: Tensor | None = None
    """(D, rank), the output gate from its bottleneck."""
    decay: Tensor | None = None
    """(H,) log λ, or (D,) lower bounds of forget gates, float32."""
    theta: Tensor | None = None
    """(H, V), angles of LRPE, float32."""
    frequencies: Tensor | None = None
    """(head_dim / 2,) of RoPE, float64."""
    first: bool = False
    """HGRN2's first layer, without a lower bound."""


def pack_layer(model: LanguageModel, layer: int, dtype: torch.dtype) -> Layer:
    """Layer `layer` of a model. Raises TypeError for a mixer that the fused step does not know."""
    block = model.blocks[layer]
    mixer = block.mixer
    mlp = block.mlp
    parts = {
        "out": mixer.o_proj.weight.detach().to(dtype),
        "gate_up": _side_by_side(block.mlp_norm, [mlp.gate_proj, mlp.up_proj], dtype),
        "down": mlp.down_proj.weight.detach().to(dtype),
        "activation": mlp.activation is not None,
    }
    d_model = model.config.d_model
    if isinstance(mixer, TNLMixer | CosFormer2Mixer):
        rows = [mixer.q_proj, mixer.k_proj, mixer.v_proj, mixer.gate.down_proj]
        tnl = isinstance(mixer, TNLMixer)
        parts |= {
            "kind": "head" if tnl else "plain",
            "silu_until": 2 * d_model,
            "gate": mixer.gate.up_proj.weight.detach().to(dtype),
            "decay": mixer.log_decay.float() if tnl else None,
            "theta": None if mixer.lrpe is None else mixer.lrpe.theta.detach().float(),
        }
    elif isinstance(mixer, HGRN2Mixer):
        assert isinstance(model, HGRN2)
        rows = [mixer.q_proj, mixer.f_proj, mixer.v_proj]
        bounds = lower_bounds(model.lower_bound_logits.detach())[layer]
        parts |= {"kind": "gated", "silu_until": d_model, "decay": bounds.contiguous(), "first": mixer.first}
    elif isinstance(mixer, SoftmaxAttention):
        rows = [mixer.q_proj, mixer.k_proj, mixer.v_proj]
        width = model.config.head_dim
        channels = torch.arange(0, width, 2, device=mixer.q_proj.weight.device, dtype=torch.float64)
        parts |= {"kind": "softmax", "silu_until": 0, "frequencies": mixer.rope_base ** (-channels / width)}
    else:
        raise TypeError(f"{type(mixer).__name__} has no fused step")
    return Layer(project=_side_by_side(block.mixer_norm, rows, dtype), **parts)


def pack_head(model: LanguageModel, dtype: torch.dtype) -> Tensor:
    """(vocab, D): the head with the last norm's weights."""
    weight = model.embedding.weight if model.head is None else model.head.weight
    return _scaled(model.norm, weight).to(dtype)


def _side_by_side(norm: nn.Module, parts: list[nn.Linear], dtype: torch.dtype) -> Tensor:
    return torch.cat([_scaled(norm, part.weight) for part in parts]).to(dtype)


def _scaled(norm: nn.Module, weight: Tensor) -> Tensor:
    """A matrix behind a norm, with the norm's weights."""
    weight = weight.detach()
    return weight * norm.weight.detach() if isinstance(norm, RMSNorm) else weight
