"""A linearized layer as a decoding step reads it: its matrices side by side, and what stands between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from linscale.layers.decay_gate import DecayGate, ForgetGate
from linscale.layers.feature_map import DenseFeatures, HeadFeatures
from linscale.layers.head_norm import HeadGroupNorm, HeadRMSNorm
from linscale.layers.rope import attention_factor, rope_frequencies
from linscale.models.folded import FoldedAttention, can_fold
from linscale.models.linearized import Linearized
from linscale.models.linearized_mixer import LinearAttention
from linscale.ops.decode import LinearMix

DIVIDED: dict[str, Any] = {"group": "group", "rms": "rms", "denominator": "sum", "none": "none"}


def has_step(model: Linearized) -> bool:
    """Whether steps know its linear layers: all but relu features behind a rotation or a convolution, which mix the
    channels of all heads, and exp features. On a GPU, only those that kernels can: heads of a power of two."""
    linear, head_dim = model.config.linear, model.config.head_dim
    if model.embedding.weight.is_cuda and not all(map(fits, (head_dim, linear.feature_width(head_dim)))):
        return False
    if linear.features == "exp" or (linear.features == "softmax" and linear.rotary == "after"):
        return False
    return linear.features != "relu" or can_fold(model)


def fits(width: int) -> bool:
    """Whether a kernel holds a head so wide."""
    return width >= 16 and width & (width - 1) == 0


def linear_mix(model: Linearized, mixer: LinearAttention, dtype: torch.dtype) -> tuple[list[Tensor], LinearMix]:
    """The matrices that a folded layer reads with, and what it does with that."""
    linear, config = mixer.linear, model.config
    assert linear.features != "exp"
    gates = [mixer.decay_gate] if isinstance(mixer.decay_gate, DecayGate) else []
    parts: list[Any] = [mixer.q_proj, mixer.k_proj, mixer.v_proj, *gates, mixer.write_gate, mixer.output_gate]
    parts = [part for part in parts if part is not None]
    width = len(mixer.q_proj.weight) // mixer.n_heads
    norm, theta = mixer.norm, None if mixer.lrpe is None else mixer.lrpe.theta.detach().float()
    eps = norm.eps if isinstance(norm, HeadGroupNorm | HeadRMSNorm) else 0.0
    frequencies, sharpened = None, 1.0
    if linear.rotary in ("before", "after"):
        turned = mixer.head_dim if linear.rotary == "before" else linear.feature_width(mixer.head_dim)
        frequencies = rope_frequencies(turned, mixer.rope_base, mixer.rope_scaling, mixer.q_proj.weight.device)
        sharpened = attention_factor(mixer.rope_scaling) if linear.rotary == "before" else 1.0
    fading, decay = _fading(mixer)
    return [part.weight for part in parts], LinearMix(
        n_heads=mixer.n_heads, key_heads=len(mixer.k_proj.weight) // width, value_heads=mixer.n_kv_heads,
        head_dim=width, value_dim=config.head_dim, features=linear.features, rotary=linear.rotary, fading=fading,
        divided=DIVIDED[linear.normalizer], delta=linear.update == "delta", gate=linear.gate,
        bias=torch.cat([_bias(part) for part in parts]), maps=_maps(mixer, dtype), frequencies=frequencies,
        sharpened=sharpened, theta=theta, decay=decay,
        gain=norm.weight.detach().float() if isinstance(norm, HeadRMSNorm) else None, eps=eps,
        filters=_filters(mixer),
    )  # fmt: skip


def _fading(mixer: LinearAttention) -> tuple[Any, Tensor | None]:
    if mixer.log_decay is not None:
        return "head", mixer.log_decay.float()
    if isinstance(mixer.decay_gate, ForgetGate):
        return "forget", mixer.decay_gate.bias.detach().float()
    if mixer.decay_gate is None:
        return "none", None
    return "channel_gate" if mixer.decay_gate.channels else "head_gate", None


def _bias(part: Any) -> Tensor:
    """Zeros where it has none."""
    zeros = torch.zeros(len(part.weight), device=part.weight.device)
    return zeros if part.bias is None else part.bias.detach().float()


def _maps(mixer: LinearAttention, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    queries, keys = mixer.q_features, mixer.k_features or mixer.q_features
    if queries is None or isinstance(mixer, FoldedAttention):
        return None
    assert not isinstance(queries, DenseFeatures)
    assert isinstance(keys, HeadFeatures)
    return queries.weight.detach().to(dtype).contiguous(), keys.weight.detach().to(dtype).contiguous()


def _filters(mixer: LinearAttention) -> Tensor | None:
    convs = [mixer.q_conv, mixer.k_conv, mixer.v_conv]
    if convs[0] is None:
        return None
    return torch.cat([conv.weight.detach().float() for conv in convs if conv is not None]).contiguous()
