"""Head and cross-entropy together, a block of tokens at a time: the full logits need never exist.

    z_n = x_n weightᵀ,   loss_n = log Σ exp(z_n) - z_n[target_n],   d loss_n / d z_n = softmax(z_n) - onehot(target_n)

The gradient of a token is one number, what reaches its loss, times a row that the forward pass has at hand; the row
takes the place of the logits it is made from, in their dtype. So the backward pass scales x and dx, which are narrow,
and does no elementwise work on anything as wide as the vocabulary. Where the rows of all tokens take more than
KEPT_BYTES, each block's are made again instead of being kept. On a GPU a Triton kernel (kernel.py) turns logits into
losses and rows.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from linscale.ops.backend import Choice, autocast_dtype, choose, without_autocast

BLOCK_BYTES = 1 << 28  # logits made at once
KEPT_BYTES = 2 << 30  # rows kept for the backward pass: in bf16, 33,554 tokens of a vocabulary of 32,000


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(x weightᵀ)[target] for every token, in float32 (float64 for float64 inputs), not reduced.

    x (B, T, D), weight (vocab, D), targets (B, T) integers in [0, vocab), or -100 for a loss of 0 -> (B, T), nats

    Products are in the dtype of autocast where it is on, else of x. Differentiable once, in x and weight.
    """
    dtype = autocast_dtype(x.device) or x.dtype
    save = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    flat = x.flatten(0, 1).to(dtype)
    loss, _ = torch.ops.linscale.linear_cross_entropy(flat, weight.to(dtype), targets.flatten(), save)
    return loss.view_as(targets).clone()  # no view: FSDP hooks what a model returns


def serving(x: Tensor) -> Choice:
    """What turns logits into losses and gradients for these tensors, and why; matrix products are torch's own."""
    return choose("auto", x.device, x.dtype)


def _forward(x: Tensor, weight: Tensor, targets: Tensor, save: bool) -> tuple[Tensor, Tensor]:
    """x (N, D), weight (V, D), targets (N,) -> loss (N,), and the rows (N, V) or, where they are not kept, (0, V)."""
    count = len(x)
    kept = _kept(x, weight) if save else 0
    loss = x.new_empty(count, dtype=_wide(x))
    rows = x.new_empty(kept, len(weight))
    with without_autocast(x.device):
        for part in _blocks(x, weight):
            logits = torch.mm(x[part], weight.mT, out=rows[part]) if kept else x[part] @ weight.mT
            loss[part] = _softmax_rows(logits, targets[part], write=kept > 0)
    return loss, rows


def _backward(
    dloss: Tensor, x: Tensor, weight: Tensor, targets: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:  # fmt: skip
    scale = dloss[:, None].to(_wide(x))
    scaled = (x * scale).to(x.dtype)  # (N, D)
    with without_autocast(x.device):
        if len(rows) == len(x):
            return ((rows @ weight) * scale).to(x.dtype), rows.mT @ scaled
        dx, dweight = torch.empty_like(x), torch.zeros_like(weight, dtype=_wide(x))
        for part in _blocks(x, weight):
            logits = x[part] @ weight.mT
            _softmax_rows(logits, targets[part], write=True)
            dx[part] = (logits @ weight) * scale[part]
            dweight += logits.mT @ scaled[part]
    return dx, dweight.to(weight.dtype)


def _softmax_rows(logits: Tensor, targets: Tensor, *, write: bool) -> Tensor:
    """The losses (N,) of logits (N, V), which are overwritten with softmax - onehot if `write`; 0 for targets < 0."""
    if serving(logits).form == "triton":
        kernel = importlib.import_module("linscale.ops.cross_entropy.kernel")
        loss: Tensor = kernel.softmax_rows(logits, targets, write)
        return loss
    wide = logits.to(_wide(logits))
    counts = targets >= 0
    places = targets.clamp(min=0)[:, None]
    total = wide.logsumexp(1, keepdim=True)
    loss = torch.where(counts, (total - wide.gather(1, places))[:, 0], 0.0)
    if write:
        p = (wide - total).exp_().scatter_add_(1, places, wide.new_full(places.shape, -1.0))
        logits.copy_(p.masked_fill_(~counts[:, None], 0.0))
    return loss


def _blocks(x: Tensor, weight: Tensor) -> list[slice]:
    size = max(1, BLOCK_BYTES // (len(weight) * x.element_size()))
    return [slice(first, min(first + size, len(x))) for first in range(0, len(x), size)]


def _kept(x: Tensor, weight: Tensor) -> int:
    """How many tokens' rows are kept: all or none."""
    return len(x) if len(x) * len(weight) * x.element_size() <= KEPT_BYTES else 0


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _forward_shapes(x: Tensor, weight: Tensor, targets: Tensor, save: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(len(x), dtype=_wide(x)), x.new_empty(_kept(x, weight) if save else 0, len(weight))


def _backward_shapes(
    dloss: Tensor, x: Tensor, weight: Tensor, targets: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(x), torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, targets, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, targets, output[1])


def _differentiate(ctx: Any, dloss: Tensor, drows: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.linscale.linear_cross_entropy_backward(dloss, *ctx.saved_tensors), None, None


_DEFINITIONS = torch.library.Library("linscale", "FRAGMENT")
_DEFINITIONS.define(
    "linear_cross_entropy(Tensor x, Tensor weight, Tensor targets, bool save) -> (Tensor, Tensor)"
)  # fmt: skip
_DEFINITIONS.define(
    "linear_cross_entropy_backward(Tensor dloss, Tensor x, Tensor weight, Tensor targets, Tensor rows)"
    " -> (Tensor, Tensor)"
)
for _name, _run, _shapes in (
    ("linear_cross_entropy", _forward, _forward_shapes),
    ("linear_cross_entropy_backward", _backward, _backward_shapes),
):
    for _device in ("CUDA", "CPU"):
        _DEFINITIONS.impl(_name, _run, _device)
    torch.library.register_fake(f"linscale::{_name}", _shapes)
torch.library.register_autograd("linscale::linear_cross_entropy", _differentiate, setup_context=_keep)

__all__ = ["linear_cross_entropy", "serving"]
