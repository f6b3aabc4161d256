"""`linear_scan` in place: one fused multiply-add a step forward, and one a step backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Scan(torch.autograd.Function):
    """h = Scan.apply(x, decay, state), shapes as in reference.py.

    With dhₜ the gradient that reaches hₜ from outside, eₜ = dhₜ + aₜ₊₁ eₜ₊₁ is its whole gradient; then
    dxₜ = eₜ,  daₜ = eₜ hₜ₋₁,  dstate = a₁ e₁.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, decay: Tensor, state: Tensor) -> Tensor:
        h = _time_first(x)
        steps = decay.expand(-1, x.shape[1], *decay.shape[2:])
        previous = state
        for t in range(x.shape[1]):
            torch.addcmul(x[:, t], steps[:, t], previous, out=h[:, t])
            previous = h[:, t]
        ctx.save_for_backward(decay, state, h)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        decay, state, h = ctx.saved_tensors
        steps = decay.expand(-1, h.shape[1], *decay.shape[2:])
        e = _time_first(h)
        e[:, -1] = dh[:, -1]
        for t in range(h.shape[1] - 2, -1, -1):
            torch.addcmul(dh[:, t], steps[:, t + 1], e[:, t + 1], out=e[:, t])
        ddecay = None
        if ctx.needs_input_grad[1]:
            before = torch.cat([state[:, None], h[:, :-1]], dim=1)
            ddecay = (e * before).sum_to_size(decay.shape)
        return e, ddecay, steps[:, 0] * e[:, 0]


def _time_first(x: Tensor) -> Tensor:
    """Uninitialised (B, T, ...), laid out (T, B, ...): what a step writes is contiguous."""
    return x.new_empty(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1)
