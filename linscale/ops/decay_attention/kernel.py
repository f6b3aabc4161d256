"""`decay_attention` and its step on a GPU: as custom operators, so that torch.compile sees one node with known shapes,
and without the dispatcher for everyone else. The work is done in passes.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from linscale.ops.decay_attention.kernels.step import step_kernel
from linscale.ops.decay_attention.layout import CHANNEL, HEAD, NONE, TOKEN, Call, new_like, steady
from linscale.ops.decay_attention.passes import kept, run_backward, run_forward
from linscale.ops.decay_attention.tiles import cdiv, width
from linscale.ops.launch import launch
from linscale.ops.packing import document_lengths

# The custom operators. "?" inputs may be None; outputs that are not asked for come back empty.
_DEFINITIONS = torch.library.Library("linscale", "FRAGMENT")
_DEFINITIONS.define(
    "decay_attention(Tensor q, Tensor k, Tensor v, Tensor? log_decay, Tensor? state, Tensor? cu_seqlens, float scale,"
    " bool save) -> (Tensor, Tensor, Tensor)"
)
_DEFINITIONS.define(
    "decay_attention_backward(Tensor? do, Tensor? dfinal, Tensor saved, Tensor q, Tensor k, Tensor v,"
    " Tensor? log_decay, Tensor? state, Tensor? cu_seqlens, float scale, bool decay_grad, bool state_grad)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_DEFINITIONS.define(
    "decay_attention_step(Tensor q, Tensor k, Tensor v, Tensor? log_decay, Tensor state, float scale)"
    " -> (Tensor, Tensor)"
)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, cu: Tensor | None, scale: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    if cu is not None:
        document_lengths(cu, q)
    call = Call(q, k, v, log_decay, cu, scale)
    return run_forward(call, None if state is None else state.contiguous(), save)


def _forward_shapes(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, cu: Tensor | None, scale: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    call = Call(q, k, v, log_decay, cu, scale)
    documents = q.shape[0] if cu is None else cu.shape[0] - 1
    shape, dtype = kept(call, documents) if save else ((0,), torch.float32)
    saved = call.new(*shape, dtype=dtype)
    final = call.new(documents, call.H, call.K, call.V)
    return new_like(v), final, saved


def _backward(
    do: Tensor | None, dfinal: Tensor | None, saved: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None,
    state: Tensor | None, cu: Tensor | None, scale: float, decay_grad: bool, state_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    call = Call(q, k, v, log_decay, cu, scale)
    do = steady(torch.zeros_like(v) if do is None else do)
    state, dfinal = None if state is None else state.contiguous(), None if dfinal is None else dfinal.contiguous()
    dstate = call.new(*call.state_shape) if state_grad else None
    dq, dk, dv, dg = run_backward(call, do, saved, state, dfinal, dstate, decay_grad)
    if dg is not None:
        dg = (dg.sum((0, 1)) if call.kind == HEAD else dg).to(call.g.dtype)
    return dq, dk, dv, dg if decay_grad else None, dstate


def _backward_shapes(
    do: Tensor | None, dfinal: Tensor | None, saved: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None,
    state: Tensor | None, cu: Tensor | None, scale: float, decay_grad: bool, state_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = new_like(q), new_like(k), new_like(v)
    dg = dstate = q.new_empty(0, dtype=torch.float32)
    if log_decay is not None and decay_grad:
        dg = new_like(log_decay)
    if state is not None and state_grad:
        dstate = torch.empty(state.shape, dtype=torch.float32, device=q.device)
    return dq, dk, dv, dg, dstate


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.scale, save = inputs
    if not save:
        raise RuntimeError("linscale::decay_attention was called with save=False: its result cannot be differentiated")
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[2])


def _differentiate(ctx: Any, do: Tensor | None, dfinal: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    return (*_gradients(ctx, torch.ops.linscale.decay_attention_backward, do, dfinal), None, None, None)


def _gradients(ctx: Any, backward: Any, do: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
    """For q, k, v, log_decay and state: what `backward` gives for those of them that want a gradient."""
    *tensors, saved = ctx.saved_tensors
    _, _, _, decay_grad, state_grad, *_ = ctx.needs_input_grad
    dq, dk, dv, dg, dstate = backward(do, dfinal, saved, *tensors, ctx.scale, decay_grad, state_grad)
    return dq, dk, dv, dg if decay_grad else None, dstate if state_grad else None


class DecayAttention(torch.autograd.Function):
    """o, final = DecayAttention.apply(q, k, v, log_decay, state, cu_seqlens, scale).

    The custom operator without the dispatcher, whose detours through Python cost more time than small kernels take.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, cu: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.scale = scale
        o, final, saved = _forward(q, k, v, log_decay, state, cu, scale, True)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, log_decay, state, cu, saved)
        return o, final

    @staticmethod
    def backward(ctx: Any, do: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        # Only under create_graph=True are gradients of gradients recorded, and there is something to refuse.
        once = once_differentiable(_gradients) if torch.is_grad_enabled() else _gradients
        return (*once(ctx, _backward, do, dfinal), None, None)


def run(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, cu: Tensor | None, scale: float,
    save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`decay_attention` outside torch.compile. save: autograd records it."""
    if save:
        result: tuple[Tensor, Tensor] = DecayAttention.apply(q, k, v, log_decay, state, cu, scale)
        return result
    o, final, _ = _forward(q, k, v, log_decay, state, cu, scale, False)
    return o, final


def step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    q, k, v, state = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v, state))
    B, H, K, V = state.shape
    kind = NONE if log_decay is None else {1: HEAD, 2: TOKEN, 3: CHANNEL}[log_decay.ndim]
    g = state if log_decay is None else log_decay.contiguous()
    g_strides = (0, 1) if g.ndim == 1 else g.stride()[:2]
    out, new_state = new_like(v), new_like(state)
    BV = min(width(V), max(16, 4096 // width(K)))
    launch(step_kernel, B * H * cdiv(V, BV), (
        q, k, v, g, state, out, new_state,
    ), (
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *g_strides, *state.stride()[:3], scale,
    ), dict(
        H=H, K=K, V=V, BK=width(K), BV=BV, KIND=kind,
    ), 4)  # fmt: skip
    return out, new_state


def _step_shapes(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    return new_like(v), new_like(state)


def _operator(run: Callable[..., Iterable[Tensor | None]]) -> Callable[..., tuple[Tensor, ...]]:
    """What a custom operator runs: it cannot leave out what is not asked for."""

    def operator(*inputs: Any) -> tuple[Tensor, ...]:
        first, *others = run(*inputs)
        assert first is not None
        return first, *(first.new_empty(0, dtype=torch.float32) if x is None else x for x in others)

    return operator


for _name, _run, _shapes in (
    ("decay_attention", _forward, _forward_shapes),
    ("decay_attention_backward", _backward, _backward_shapes),
    ("decay_attention_step", step, _step_shapes),
):
    _DEFINITIONS.impl(_name, _operator(_run), "CUDA")
    _DEFINITIONS.impl(_name, _operator(_run), "CPU")  # Triton's interpreter
    torch.library.register_fake(f"linscale::{_name}", _shapes)
torch.library.register_autograd("linscale::decay_attention", _differentiate, setup_context=_keep)
