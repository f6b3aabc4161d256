"""A model's matrices as a decoding step reads them: side by side where they read the same, norms multiplied in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from linscale.generate.packing_linear import has_step, linear_mix
from linscale.layers import RMSNorm, SoftmaxAttention, ToeplitzEncoding
from linscale.layers.rope import attention_factor, rope_frequencies
from linscale.models import LanguageModel, Linearized, RecurrentTransformer
from linscale.models.cosformer2 import CosFormer2Mixer
from linscale.models.folded import fold
from linscale.models.hgrn2 import HGRN2, HGRN2Mixer, lower_bounds
from linscale.models.linearized_mixer import LinearAttention
from linscale.models.tnl import TNLMixer
from linscale.ops.backend import interpreting
from linscale.ops.decode import LinearMix, Mix, Projection
from linscale.ops.decode.plain import can_halve, halved


@dataclass(frozen=True)
class Attention:
    """A softmax layer's heads and the angles of its RoPE."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    frequencies: Tensor
    """(head_dim / 2,) float64."""


@dataclass(frozen=True)
class Layer:
    """One block."""

    read: Projection
    """What the mixer reads: q, k or f, v, and the bottleneck of an output gate; for LinearMix see there."""
    mixer: Mix | LinearMix | Attention
    out: Projection
    gate_up: Projection
    down: Projection


@dataclass(frozen=True)
class Packed:
    """A whole model."""

    embedding: Tensor
    """(vocab, D)"""
    encoder: ToeplitzEncoding | None
    layers: tuple[Layer, ...]
    head: Projection


KNOWN = (TNLMixer, CosFormer2Mixer, HGRN2Mixer, LinearAttention, SoftmaxAttention)


def can_pack(model: LanguageModel) -> bool:
    """Whether decoding steps know all mixers of the model, and what is between them."""
    if isinstance(model, RecurrentTransformer):
        return False  # norms, MLPs and positions of its own, also where all its layers are softmax attention
    if isinstance(model, Linearized) and model.linear_layers() and not has_step(model):
        return False
    return len(model.blocks) > 0 and all(isinstance(block.mixer, KNOWN) for block in model.blocks)


def pack(model: LanguageModel, dtype: torch.dtype) -> Packed:
    """The model's matrices in `dtype`, feature maps folded into them. On a CPU that has products for it, float16 is of
    large matrices alone, and all else is float32. Raises TypeError for a mixer, or a model, that decoding steps do not
    know."""
    if isinstance(model, RecurrentTransformer):
        raise TypeError("RecurrentTransformer has no decoding step of its own: read_step.ReadStep reads token by token")
    if dtype == torch.float16 and not model.embedding.weight.is_cuda and can_halve():
        return _halved(pack(model, torch.float32))
    model = fold(model)
    head = model.embedding.weight if model.head is None else model.head.weight
    return Packed(
        embedding=model.embedding.weight.detach().to(dtype),
        encoder=model.position_encoder,
        layers=tuple(_pack_layer(model, layer, dtype) for layer in range(model.config.n_layers)),
        head=Projection(_laid_out(_scaled(model.norm, head).to(dtype)), normed=True),
    )


def _halved(packed: Packed) -> Packed:
    layers = tuple(
        replace(
            layer,
            read=halved(layer.read),
            out=halved(layer.out),
            gate_up=halved(layer.gate_up),
            down=halved(layer.down),
        )
        for layer in packed.layers
    )
    return replace(packed, layers=layers, head=halved(packed.head))


def _pack_layer(model: LanguageModel, layer: int, dtype: torch.dtype) -> Layer:
    block: Any = model.blocks[layer]
    rows, silu_until, mixer = _mixer(model, layer, block.mixer, dtype)
    mlp = block.mlp
    return Layer(
        read=Projection(_side_by_side(block.mixer_norm, rows, dtype), normed=True, silu_until=silu_until),
        mixer=mixer,
        out=Projection(_laid_out(block.mixer.o_proj.weight.detach().to(dtype))),
        gate_up=Projection(
            _side_by_side(block.mlp_norm, [mlp.gate_proj.weight, mlp.up_proj.weight], dtype),
            normed=True,
            paired=True,
            activation=mlp.activation is not None,
        ),
        down=Projection(_laid_out(mlp.down_proj.weight.detach().to(dtype))),
    )


def _mixer(
    model: LanguageModel, layer: int, mixer: nn.Module, dtype: torch.dtype
) -> tuple[list[Tensor], int, Mix | LinearMix | Attention]:
    """The matrices it reads with, how many of their outputs go through silu, and what it does with them."""
    config = model.config
    shape = (config.n_heads, config.head_dim)
    if isinstance(mixer, TNLMixer | CosFormer2Mixer):
        parts = (mixer.q_proj, mixer.k_proj, mixer.v_proj, mixer.gate.down_proj)
        decay = mixer.log_decay.float() if isinstance(mixer, TNLMixer) else None
        theta = None if mixer.lrpe is None else mixer.lrpe.theta.detach().float()
        gate = mixer.gate.up_proj.weight.detach().to(dtype)
        rows = [part.weight for part in parts]
        return rows, 2 * config.d_model, Mix("plain" if decay is None else "head", *shape, decay, theta, gate)
    if isinstance(mixer, HGRN2Mixer):
        assert isinstance(model, HGRN2)
        bounds = None if mixer.first else lower_bounds(model.lower_bound_logits.detach())[layer].contiguous()
        return (
            [mixer.q_proj.weight, mixer.f_proj.weight, mixer.v_proj.weight],
            config.d_model,
            Mix("gated", *shape, bounds),
        )
    if isinstance(mixer, LinearAttention):
        assert isinstance(model, Linearized)
        linear, part = linear_mix(model, mixer, dtype)
        return linear, 0, part
    if isinstance(mixer, SoftmaxAttention):
        assert mixer.rope_base is not None
        device = mixer.q_proj.weight.device
        frequencies = rope_frequencies(config.head_dim, mixer.rope_base, mixer.rope_scaling, device)
        factor = attention_factor(mixer.rope_scaling)  # of q and k, whose rotation is linear
        attention = Attention(config.n_heads, mixer.n_kv_heads, config.head_dim, frequencies)
        return [mixer.q_proj.weight * factor, mixer.k_proj.weight * factor, mixer.v_proj.weight], 0, attention
    raise TypeError(f"{type(mixer).__name__} has no decoding step")


def _side_by_side(norm: nn.Module, parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    return _laid_out(torch.cat([_scaled(norm, part) for part in parts]).to(dtype))


def _laid_out(weight: Tensor) -> Tensor:
    """The matrix (N, K), on a CPU with its longer side next to each other in memory: one row of x times it is then
    twice as fast where N > K. Kernels, which Triton's interpreter runs on a CPU, read rows."""
    if weight.is_cuda or interpreting() or weight.shape[0] <= weight.shape[1]:
        return weight
    return weight.t().contiguous().t()


def _scaled(norm: nn.Module, weight: Tensor) -> Tensor:
    """A matrix behind a norm, with the norm's weights."""
    weight = weight.detach()
    return weight * norm.weight.detach() if isinstance(norm, RMSNorm) else weight
