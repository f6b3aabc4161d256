"""Head and divergence from a teacher together, a block of tokens at a time: neither model's logits ever exist whole.

    z = x weightᵀ,  p = softmax z;  p* = softmax of the teacher's logits
    loss_n = KL(p*_n ‖ p_n) + w CE(p_n, target_n),   d loss_n / d z_n = (1 + w) p_n - p*_n - w onehot(target_n)

As in linscale/ops/cross_entropy, the gradient of a token is one number times a row that the forward pass has at hand.
Where the rows of all tokens take more than KEPT_BYTES, each block's are made again instead of being kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from linscale.ops.backend import autocast_dtype, without_autocast

BLOCK_BYTES = 1 << 28  # of both models' logits in float32, made at once
KEPT_BYTES = 2 << 30  # of rows kept for the backward pass


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
            loss[part], gradient = _block(x[part], weight, teacher_x[part], teacher_weight, targets[part], share)
            if saved:
                rows[part] = gradient
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
                _, wide = _block(x[part], weight, teacher_x[part], teacher_weight, targets[part], ctx.share)
                gradient = wide.to(x.dtype)
                dx[part] = ((gradient @ weight) * scale[part]).to(x.dtype)
                dweight += gradient.mT @ scaled[part]
        return dx, dweight.to(weight.dtype), None, None, None, None


def _block(
    x: Tensor, weight: Tensor, teacher_x: Tensor, teacher_weight: Tensor, targets: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """Loss (N,) and its gradient in the logits (N, V), both wide."""
    with without_autocast(x.device):
        own, given = ((a @ b.mT).to(_wide(x)).log_softmax(1) for a, b in ((x, weight), (teacher_x, teacher_weight)))
    counts = targets >= 0
    places = targets.clamp(min=0)[:, None]
    truth = given.exp()
    loss = (truth * given.sub_(own)).sum(1) - share * own.gather(1, places)[:, 0]
    gradient = own.exp_().mul_(1.0 + share).sub_(truth)
    gradient.scatter_add_(1, places, gradient.new_full(places.shape, -share))
    return torch.where(counts, loss, 0.0), gradient.masked_fill_(~counts[:, None], 0.0)


def _blocks(x: Tensor, weight: Tensor) -> list[slice]:
    size = max(1, BLOCK_BYTES // (2 * 4 * len(weight)))
    return [slice(first, min(first + size, len(x))) for first in range(0, len(x), size)]


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
