"""Per-channel decay on a Hopper GPU: what is launched. The kernels and their mathematics: kernels/hopper_channel.py."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from linscale.ops.decay_attention.kernels.states import join_kernel
from linscale.ops.decay_attention.layout import Call, Layout, Plan, Strides, new_like
from linscale.ops.decay_attention.tiles import cdiv
from linscale.ops.launch import MOST, Launch

CHUNK = 64


def run_forward(call: Call, layout: Layout, state: Tensor | None, save: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """o, the final states and, if `save`, the state before every chunk, (chunks, H, V, K)."""
    q, k, v, H = call.q, call.k, call.v, call.H
    finish, out = call.new(*call.state_shape), new_like(v)
    borders = run_borders(call, layout, k, v, state, reverse=False) if layout.segmented else None
    documents = call.state_shape[0]
    chunks = call.plan.length // CHUNK + documents if call.plan.packed else documents * cdiv(call.plan.length, CHUNK)
    saved = call.new(chunks, H, call.V, call.K, dtype=v.dtype) if save else None
    flags = torch.zeros(layout.stretches * H, dtype=torch.int32, device=q.device)
    spared = (finish if x is None else x for x in (saved, borders, state))
    tensors = (
        q, k, v, call.g, out, *spared, finish, flags, call.masks(CHUNK), *layout.table, _first_chunks(call),
    )  # fmt: skip
    for launch in _outputs(call.plan, layout.span, layout.segmented, state is not None, save):
        launch(layout.stretches, tensors)
    return out, finish, saved


def run_backward(
    call: Call, layout: Layout, do: Tensor, saved: Tensor, dfinal: Tensor | None, dstate: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv and dlog_decay (B, T, H, K); writes the gradient of the first state into dstate."""
    q, k, v, g, H = call.q, call.k, call.v, call.g, call.H
    behind = run_borders(call, layout, q, do, dfinal, reverse=True) if layout.segmented else None
    gradients, through = torch.empty_like(saved), call.new(saved.shape[0], H, call.K)
    spared = (through if x is None else x for x in (behind, None, dfinal, dstate))
    given = (layout.segmented, dfinal is not None, dstate is not None)
    places, masks = (*layout.table, _first_chunks(call)), call.masks(CHUNK)
    _states(call.plan, (*q.stride(), *do.stride()), layout.span, given, (True, True))(
        layout.stretches, (q, do, g, *spared, saved, gradients, through, masks, *places)
    )
    dq, dk, dv, dg = new_like(q), new_like(k), new_like(v), new_like(g)
    flags = torch.zeros(layout.stretches * H, dtype=torch.int32, device=q.device)
    tensors = (q, k, v, g, do, dq, dk, dv, dg, saved, gradients, through, flags, masks, *places)
    for launch in _grads(call.plan, do.stride(), layout.span):
        launch(layout.stretches, tensors)
    return dq, dk, dv, dg


def run_borders(call: Call, layout: Layout, b: Tensor, c: Tensor, start: Tensor | None, *, reverse: bool) -> Tensor:
    """The states (K, V) at the borders of segments; their gradients in reverse."""
    borders = call.new(layout.borders, call.H, call.K, call.V)
    weights = call.new(layout.stretches, call.H, call.K)
    first = borders if start is None else start
    _states(call.plan, (*b.stride(), *c.stride()), layout.span, (False, start is not None, False), (reverse, False))(
        layout.stretches,
        (b, c, call.g, borders, weights, first, *(borders,) * 4, call.masks(CHUNK), *layout.table, _first_chunks(call)),
    )
    return join(call, layout, borders, weights, reverse=reverse)


def join(call: Call, layout: Layout, borders: Tensor, weights: Tensor, *, reverse: bool) -> Tensor:
    """`borders`, where every segment has left what it adds, with the states at the borders in their place."""
    _join(call.plan, layout.per_row, reverse)(layout.documents, (borders, weights, borders, layout.first))
    return borders


@lru_cache(MOST)
def _join(plan: Plan, per_row: int, reverse: bool) -> Launch:
    return Launch(join_kernel, plan.H * cdiv(plan.K, 16) * cdiv(plan.V, 64), (per_row,), dict(
        H=plan.H, K=plan.K, V=plan.V, BK=16, BV=64, KIND=plan.kind, PACKED=plan.packed, REVERSE=reverse,
        HAS_FINISH=False, EARLY=True,
    ), 4, early=True)  # fmt: skip


def _first_chunks(call: Call) -> Tensor:
    """For each packed document the number of its first chunk."""
    return call.q if call.cu is None else Layout(call.q, call.cu, CHUNK).first


def _sizes(plan: Plan, span: int) -> tuple[int | float, ...]:
    return plan.length, cdiv(plan.length, span), span, plan.scale


@lru_cache(MOST)
def _outputs(plan: Plan, span: int, segmented: bool, has_start: bool, save: bool) -> list[Launch]:
    """For every head, and for those that decay too fast for the first."""
    from linscale.ops.decay_attention.kernels.hopper_channel import hopper_channel_kernel

    warps = plan.V // 16
    return [
        Launch(hopper_channel_kernel, plan.H, (*plan.strides, *_sizes(plan, span)), dict(
            H=plan.H, K=plan.K, V=plan.V, C=CHUNK, PACKED=plan.packed, SEGMENTED=segmented, HAS_START=has_start,
            SAVE=save, STRONG=strong, PARTS=plan.precision.parts, WARPS=warps,
        ), warps)
        for strong in (False, True)
    ]  # fmt: skip


@lru_cache(MOST)
def _states(plan: Plan, strides: Strides, span: int, given: tuple[bool, bool, bool], does: tuple[bool, bool]) -> Launch:
    """strides: of b and c; given: borders, start, finish; does: reverse, every chunk."""
    from linscale.ops.decay_attention.kernels.hopper_states import hopper_channel_states_kernel

    (segmented, has_start, has_finish), (reverse, every_chunk), warps = given, does, plan.V // 16
    return Launch(hopper_channel_states_kernel, plan.H, (
        *strides[:3], *strides[4:7], *plan.g_strides, *_sizes(plan, span),
    ), dict(
        H=plan.H, K=plan.K, V=plan.V, C=CHUNK, PACKED=plan.packed, REVERSE=reverse, EVERY_CHUNK=every_chunk,
        SEGMENTED=segmented, HAS_START=has_start, HAS_FINISH=has_finish, PARTS=plan.precision.parts, WARPS=warps,
    ), warps)  # fmt: skip


@lru_cache(MOST)
def _grads(plan: Plan, do: Strides, span: int) -> list[Launch]:
    """As `_outputs`."""
    from linscale.ops.decay_attention.kernels.hopper_channel_grads import hopper_channel_grads_kernel

    return [
        Launch(hopper_channel_grads_kernel, plan.H, (*plan.strides, *do[:3], *_sizes(plan, span)), dict(
            H=plan.H, K=plan.K, V=plan.V, C=CHUNK, PACKED=plan.packed, STRONG=strong, PARTS=plan.precision.parts,
            WARPS=8,
        ), 8)
        for strong in (False, True)
    ]  # fmt: skip
