"""`delta_rule` in chunks as a custom operator: one node for torch.compile and for what checkpoints activations.

Seen from outside as the products that it is made of, these would be kept for the backward pass, several times as much
as its inputs; it makes them again, or keeps the few that its backward pass needs where that is little.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from linscale.ops.backend import Backend, Choice, choose, without_autocast
from linscale.ops.delta_rule.passes import backward_pass, forward_pass, kept_bytes, segments

WIDEST = 128  # K and V that the kernels take

_DEFINITIONS = torch.library.Library("linscale", "FRAGMENT")
# "?" inputs may be None; the gradient of one that is comes back empty.
_DEFINITIONS.define(
    "delta_rule(Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? log_decay, Tensor state, Tensor? cu_seqlens,"
    " float scale, str backend) -> (Tensor, Tensor, Tensor, Tensor)"
)
_DEFINITIONS.define(
    "delta_rule_backward(Tensor do, Tensor dfinal, Tensor states, Tensor made, Tensor q, Tensor k, Tensor v,"
    " Tensor beta, Tensor? log_decay, Tensor? cu_seqlens, float scale, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def chunk_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor, cu_seqlens: Tensor | None,
    scale: float, backend: Backend,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Shapes as in `delta_rule`, any floating dtypes; the state's is that of all sums."""
    log_decay = None if log_decay is None else log_decay.expand(beta.shape)
    o, final, *_ = torch.ops.linscale.delta_rule(q, k, v, beta, log_decay, state, cu_seqlens, scale, backend)
    return o, final


def serving(backend: Backend, k: Tensor, v: Tensor) -> Choice:
    """Which form serves `delta_rule` for these tensors, and why. Raises ValueError as `backend.choose` does."""
    obstacle = None
    if max(k.shape[-1], v.shape[-1]) > WIDEST:
        obstacle = f"the kernels take head widths up to {WIDEST}, got K = {k.shape[-1]}, V = {v.shape[-1]}"
    elif k.numel() == 0 or v.numel() == 0:
        obstacle = "there is nothing to compute"
    return choose(backend, k.device, v.dtype, obstacle)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor, cu_seqlens: Tensor | None,
    scale: float, backend: Backend,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    with without_autocast(q.device):
        return forward_pass((q, k, v, beta, log_decay), state, cu_seqlens, scale, serving(backend, k, v))


def _forward_shapes(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor, cu_seqlens: Tensor | None,
    scale: float, backend: Backend,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    count = len(segments(v)) if cu_seqlens is None else 1
    inputs, choice = (q, k, v, beta, log_decay), serving(backend, k, v)
    made = kept_bytes(inputs, packed=cu_seqlens is not None, choice=choice)
    shapes = v.new_empty(v.shape), state.new_empty(state.shape), state.new_empty(count, *state.shape)
    return *shapes, v.new_empty(made, dtype=torch.uint8)


def _backward(
    do: Tensor, dfinal: Tensor, states: Tensor, made: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor,
    log_decay: Tensor | None, cu_seqlens: Tensor | None, scale: float, backend: Backend,
) -> tuple[Tensor, ...]:  # fmt: skip
    inputs = (q, k, v, beta, log_decay)
    with without_autocast(q.device):
        grads, dstate = backward_pass(do, dfinal, states, made, inputs, cu_seqlens, scale, serving(backend, k, v))
    return (*(q.new_empty(0) if x is None else x for x in grads), dstate)


def _backward_shapes(
    do: Tensor, dfinal: Tensor, states: Tensor, made: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor,
    log_decay: Tensor | None, cu_seqlens: Tensor | None, scale: float, backend: Backend,
) -> tuple[Tensor, ...]:  # fmt: skip
    inputs = (q, k, v, beta, log_decay)
    return (*(q.new_empty(0) if x is None else x.new_empty(x.shape) for x in inputs), dfinal.new_empty(dfinal.shape))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    q, k, v, beta, log_decay, _, cu_seqlens, *ctx.how = inputs
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(*output[2:], q, k, v, beta, log_decay, cu_seqlens)


def _differentiate(ctx: Any, do: Tensor, dfinal: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    *grads, dstate = torch.ops.linscale.delta_rule_backward(do, dfinal, *saved, *ctx.how)
    if saved[6] is None:
        grads[4] = None
    return (*grads, dstate, None, None, None)


for _name, _run, _shapes in (
    ("delta_rule", _forward, _forward_shapes),
    ("delta_rule_backward", _backward, _backward_shapes),
):
    for _device in ("CPU", "CUDA"):
        _DEFINITIONS.impl(_name, _run, _device)
    torch.library.register_fake(f"linscale::{_name}", _shapes)
torch.library.register_autograd("linscale::delta_rule", _differentiate, setup_context=_keep)
