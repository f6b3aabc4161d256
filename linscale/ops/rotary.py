"""Positions as rotations: RoPE for softmax attention, LRPE for linear attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def angles(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of position * frequency; whole turns are taken off in float64: at 10^6 float32 would be 0.06 rad off.

    positions (..., T) integers, frequencies (...) -> cos, sin (*positions.shape, *frequencies.shape) in float32,
    or float64 where `dtype`, that of what they turn, is float64. Differentiable in frequencies.
    """
    cos_sin: tuple[Tensor, Tensor] = torch.ops.linscale.angles(positions, frequencies, dtype == torch.float64)
    return cos_sin


def _angles(positions: Tensor, frequencies: Tensor, wide: bool) -> tuple[Tensor, Tensor]:
    shape = (*positions.shape, *(1,) * frequencies.ndim)
    turns = positions.double().reshape(shape) * (frequencies.double() / (2 * math.pi))
    angle = (turns - turns.round()) * (2 * math.pi)  # within half a turn, where float32 is exact to 1e-7
    if not wide:
        angle = angle.float()
    return angle.cos(), angle.sin()


def _angle_shapes(positions: Tensor, frequencies: Tensor, wide: bool) -> tuple[Tensor, Tensor]:
    shape, dtype = (*positions.shape, *frequencies.shape), torch.float64 if wide else torch.float32
    cos, sin = (frequencies.new_empty(shape, dtype=dtype) for _ in range(2))
    return cos, sin


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, inputs[0])
    ctx.dtype, ctx.axes = inputs[1].dtype, tuple(range(inputs[0].ndim))


def _differentiate(ctx: Any, dcos: Tensor, dsin: Tensor) -> tuple[Tensor | None, ...]:
    cos, sin, positions = ctx.saved_tensors
    places = positions.to(cos.dtype).reshape(*positions.shape, *(1,) * (cos.ndim - positions.ndim))
    return None, (places * (cos * dsin - sin * dcos)).sum(ctx.axes).to(ctx.dtype), None


# One operator to the compiler: it would make the sines anew in everything that they turn, for every batch and head.
_DEFINITIONS = torch.library.Library("linscale", "FRAGMENT")
_DEFINITIONS.define("angles(Tensor positions, Tensor frequencies, bool wide) -> (Tensor, Tensor)")
_DEFINITIONS.impl("angles", _angles, "CompositeExplicitAutograd")
torch.library.register_fake("linscale::angles", _angle_shapes)
torch.library.register_autograd("linscale::angles", _differentiate, setup_context=_keep)


def rotate_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE (Su et al. 2021) with the halves convention of released LLaMA weights: channel m turns with m + K/2.

    x (B, T, H, K), cos and sin (B, T, K/2) -> (B, T, H, K) in the dtype of x.
    """
    cos, sin = cos[:, :, None].to(x.dtype), sin[:, :, None].to(x.dtype)  # (B, T, 1, K/2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rotate_lrpe(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """LRPE of complex type (Qin et al., TMLR 2023): [x cos(tθ), x sin(tθ)], so that a product of two such vectors is
    Σ_c q_c k_c cos((t - s) θ_c).

    x (B, T, H, K), cos and sin (B, T, H, K) -> (B, T, H, 2K) in the dtype of x.
    """
    return torch.cat([x * cos.to(x.dtype), x * sin.to(x.dtype)], dim=-1)
