"""Head and divergence from a teacher together, a block of tokens at a time: neither model's logits ever exist whole.

    z = x weightᵀ,  p = softmax z;  p* = softmax of the teacher's logits
    loss_n = KL(p*_n ‖ p_n) + w CE(p_n, target_n),   d loss_n / d z_n = (1 + w) p_n - p*_n - w onehot(target_n)

As in linscale/ops/cross_entropy, the gradient of a token is one number times a row that the forward pass has at hand.
Where the rows of all tokens take more than KEPT_BYTES, each block's are made again instead of being kept. On a GPU a
Triton kernel (kernel.py) turns both models' logits into losses and rows.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from linscale.ops.backend import autocast_dtype, choose, without_autocast

BLOCK_BYTES = 1 << 28  # of both models' logits, made at once
KEPT_BYTES = 4 << 30  # of rows kept for the backward pass: in bf16, 43,690 tokens of a vocabulary of 49,152


class Teacher(NamedTuple):
    """What a teacher's logits are made of: x (B, T, E) and the weight (vocab, E) of its head. Not differentiated."""

    x: Tensor
    weight: Tensor


def linear_divergence(
    x: Tensor, weight: Tensor, teacher: Teacher, targets: Tensor, text_weight: float = 0.0
) -> Tensor:  # fmt: skip
    """KL(teacher ‖ softmax(x weightᵀ)) of every token plus `text_weight` times its cross-entropy, not reduced.

    x (B, T, D), weight (vocab, D), targets (B, T) integers in [0, vocab), or -100 for a loss of 0 -> (B, T), in nats,
    float32 (float64 for float64 inputs)

    Products are in the dtype of autocast where it is on, else of x. Differentiable once, in x and weight.
    """
    dtype = autocast_dtype(x.device) or x.dtype
    parts = (part.flatten(0, -2).to(dtype) for part in (x, weight, teacher.x, teacher.weight))
    loss: Tensor = _Divergence.apply(*parts, targets.flatten(), text_weight)
    return loss.view_as(targets)


class _Divergence(torch.autograd.Function):
    """x (N, D), weight (V, D), teacher_x (N, E), teacher_weight (V, E), targets (N,) -> loss (N,)"""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, teacher_x: Tensor, teacher_weight: Tensor, targets: Tensor, share: float
    ) -> Tensor:
        saved = any(ctx.needs_input_grad) and len(x) * len(weight) * x.element_size() <= KEPT_BYTES
        rows = x.new_empty(len(x) if saved else 0, len(weight))
        loss = x.new_empty(len(x), dtype=_wide(x))
        for part in _blocks(x, weight):
            room = rows[part] if saved else None
            own, given = _logits(x[part], weight, teacher_x[part], teacher_weight, room)
            loss[part] = _rows(own, given, targets[part], share, write=saved)
        ctx.save_for_backward(x, weight, teacher_x, teacher_weight, targets, rows)
        ctx.share = share
        return loss

    @staticmethod
    def backward(ctx: Any, *dlosses: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, teacher_x, teacher_weight, targets, rows = ctx.saved_tensors
        scale = dlosses[0][:, None].to(_wide(x))
        scaled, dx = (x * scale).to(x.dtype), torch.empty_like(x)
        dweight = torch.zeros_like(weight, dtype=_wide(x))
        with without_autocast(x.device):
            if len(rows) == len(x):
                return ((rows @ weight) * scale).to(x.dtype), rows.mT @ scaled, None, None, None, None
            for part in _blocks(x, weight):
                gradient, given = _logits(x[part], weight, teacher_x[part], teacher_weight, None)
                _rows(gradient, given, targets[part], ctx.share, write=True)
                dx[part] = ((gradient @ weight) * scale[part]).to(x.dtype)
                dweight += gradient.mT @ scaled[part]
        return dx, dweight.to(weight.dtype), None, None, None, None


def _logits(
    x: Tensor, weight: Tensor, teacher_x: Tensor, teacher_weight: Tensor, room: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Of the model, in `room` if there is one, and of the teacher: (N, V) each."""
    with without_autocast(x.device):
        own = x @ weight.mT if room is None else torch.mm(x, weight.mT, out=room)
        return own, teacher_x @ teacher_weight.mT


def _rows(own: Tensor, given: Tensor, targets: Tensor, share: float, *, write: bool) -> Tensor:
    """The losses (N,) of logits (N, V), which are overwritten with their gradients if `write`; 0 for targets < 0."""
    if choose("auto", own.device, own.dtype).form == "triton":
        kernel = importlib.import_module("linscale.ops.distillation.kernel")
        fused: Tensor = kernel.divergence_rows(own, given, targets, share, write)
        return fused
    ours, theirs = (logits.to(_wide(own)).log_softmax(1) for logits in (own, given))
    counts = targets >= 0
    places = targets.clamp(min=0)[:, None]
    truth = theirs.exp()
    loss = (truth * theirs.sub_(ours)).sum(1) - share * ours.gather(1, places)[:, 0]
    if write:
        gradient = ours.exp_().mul_(1.0 + share).sub_(truth)
        gradient.scatter_add_(1, places, gradient.new_full(places.shape, -share))
        own.copy_(gradient.masked_fill_(~counts[:, None], 0.0))
    return torch.where(counts, loss, 0.0)


def _blocks(x: Tensor, weight: Tensor) -> list[slice]:
    size = max(1, BLOCK_BYTES // (2 * len(weight) * x.element_size()))
    return [slice(first, min(first + size, len(x))) for first in range(0, len(x), size)]


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
