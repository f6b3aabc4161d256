"""The forward and the backward pass of `decay_attention` on a GPU: which kernels run, over which pieces of a sequence.

One number a step for a whole head (no decay, (H,), (B, T, H)): kernels/walk.py, with the state on chip from one end of
a segment to the other; o, dq, dk and dv are each one such walk. Per-channel decay, and gradients of a decay given step
by step: kernels/states.py writes the state at every chunk, then every chunk is worked on at once, by kernels/channel.py
or kernels/token.py. A long sequence is cut into just enough segments to fill the device.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from linscale.ops.decay_attention import hopper
from linscale.ops.decay_attention.kernels.channel import grads_kernel, output_kernel, value_grad_kernel
from linscale.ops.decay_attention.kernels.states import join_kernel, states_kernel
from linscale.ops.decay_attention.kernels.token import token_grads_kernel
from linscale.ops.decay_attention.kernels.walk import walk_grads_kernel, walk_kernel
from linscale.ops.decay_attention.layout import (
    CHANNEL,
    NONE,
    Call,
    Layout,
    Plan,
    Strides,
    new_like,
    state_layout,
    walk_layout,
)  # fmt: skip
from linscale.ops.decay_attention.tiles import Tiles, cdiv, walk_tiles
from linscale.ops.launch import MOST, Launch


def walk(call: Call, layout: Layout, borders: Tensor | None, start: Tensor | None, finish: Tensor) -> Tensor:
    """o, from kernels/walk.py; writes the final states into `finish`."""
    out = new_like(call.v)
    _walk(call.plan, layout.span, borders is not None, start is not None)(layout.stretches, (
        call.q, call.k, call.v, call.g, out, out if borders is None else borders, out if start is None else start,
        finish, *layout.table,
    ))  # fmt: skip
    return out


@lru_cache(MOST)
def _walk(plan: Plan, span: int, segmented: bool, has_start: bool) -> Launch:
    tiles = walk_tiles(plan.dtype, plan.K, plan.V)
    return Launch(walk_kernel, plan.H * cdiv(plan.V, tiles.values), (
        *plan.strides, plan.length, cdiv(plan.length, span), span, plan.scale,
    ), dict(
        H=plan.H, K=plan.K, V=plan.V, BK=tiles.keys, BV=tiles.values, C=tiles.chunk, KIND=plan.kind,
        PACKED=plan.packed, SEGMENTED=segmented, HAS_START=has_start,
        DOT=plan.precision.operand, PRECISION=plan.precision.products, STAGES=tiles.stages,
    ), tiles.warps)  # fmt: skip


class States(NamedTuple):
    """What kernels/states.py leaves: states (chunks, H, K, V), scales (chunks, H, K, tiles across V) of float16 states,
    fades (chunks, H, K), borders (borders, H, K, V)."""

    states: Tensor
    scales: Tensor
    fades: Tensor
    borders: Tensor


def run_states(
    call: Call, b: Tensor, c: Tensor, layout: Layout, chunks: Layout | None,
    start: Tensor | None, finish: Tensor | None, *, reverse: bool,
) -> States:  # fmt: skip
    """The state (its gradient, in reverse) at every chunk if `chunks` is given, and at every border of a segment."""
    plan, tiles, H, K = call.plan, call.plan.tiles[0], call.H, call.K
    borders = call.new(layout.borders, H, K, call.V)
    weights = call.new(layout.stretches if call.kind != NONE else 0, H, K)
    states = scales = fades = borders
    if chunks is not None:
        states = call.new(chunks.stretches, H, K, call.V, dtype=call.precision.stored)
        scales = call.new(chunks.stretches, H, K, cdiv(call.V, tiles.values))
        fades = call.new(chunks.stretches, H, K) if layout.segmented else borders
    nothing = call.q if finish is None else finish
    every, join = _states(
        plan, b.stride(), c.stride(), layout.span, chunks is not None, layout.segmented, start is not None,
        finish is not None, reverse,
    )  # fmt: skip
    every(layout.stretches, (
        b, c, call.g, call.masks(tiles.chunk), states, scales, fades, borders, weights,
        start if start is not None else states, nothing,
        *layout.table, layout.first if chunks is None else chunks.first,
    ))  # fmt: skip
    if layout.segmented:
        join(layout.documents, (borders, weights, nothing, layout.first))
    return States(states, scales, fades, borders)


@lru_cache(MOST)
def _states(
    plan: Plan, b: Strides, c: Strides, span: int, every_chunk: bool, segmented: bool, has_start: bool,
    has_finish: bool, reverse: bool,
) -> tuple[Launch, Launch]:  # fmt: skip
    """The states at the chunks and at the ends of segments, then those of a whole sequence at its borders."""
    tiles, per_row = plan.tiles[0], cdiv(plan.length, span)
    H, K, V = plan.H, plan.K, plan.V
    pieces = H * cdiv(K, tiles.keys) * cdiv(V, tiles.values)
    sizes = dict(H=H, K=K, V=V, BK=tiles.keys, BV=tiles.values, KIND=plan.kind, PACKED=plan.packed, REVERSE=reverse)
    every = Launch(states_kernel, pieces, (
        *b[:3], *c[:3], *plan.g_strides, plan.length, per_row, span, plan.scale,
    ), dict(
        **sizes, C=tiles.chunk, EVERY_CHUNK=every_chunk, SEGMENTED=segmented, HAS_START=has_start,
        HAS_FINISH=has_finish, DOT=plan.precision.operand, PRECISION=plan.precision.products,
        PARTS=plan.precision.parts, STAGES=tiles.stages,
    ), tiles.warps)  # fmt: skip
    return every, Launch(join_kernel, pieces, (per_row,), dict(**sizes, HAS_FINISH=has_finish, EARLY=False), 4)


def kept(call: Call, documents: int) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of what the forward pass keeps for the backward pass. documents: N, the batch if not packed.

    The states at the borders of segments. Under per-channel decay the scores of every chunk with their scales; with the
    Hopper kernels the state before every chunk, transposed.
    """
    on_hopper = hopper.serves(call)
    if call.kind != CHANNEL:
        layout = hopper.walk_segments(call) if on_hopper else walk_layout(call)
        borders = call.q.shape[1] // layout.span if call.plan.packed else layout.borders
        return ((borders, call.H, call.K, call.V) if layout.segmented else (0,)), torch.float32
    chunk = hopper.CHUNK if on_hopper else call.plan.tiles[1].chunk
    rows, T = call.q.shape[:2]
    chunks = T // chunk + documents if call.plan.packed else rows * cdiv(T, chunk)
    if on_hopper:
        return (chunks, call.H, call.V, call.K), call.q.dtype
    return (chunks, call.H, chunk + 1, chunk), call.precision.stored


def run_forward(call: Call, state: Tensor | None, save: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """o (B, T, H, V), the final state and, if `save`, what the backward pass need not compute again: see `kept`."""
    if hopper.serves(call):
        return hopper.run_forward(call, state, save)
    finish = call.new(*call.state_shape)
    if call.kind != CHANNEL:
        layout, borders = walk_layout(call), None
        if layout.segmented:
            borders = run_states(call, call.k, call.v, layout, None, state, None, reverse=False).borders
        out = walk(call, layout, borders, state, finish)
        return out, finish, borders if save else None
    chunk = call.plan.tiles[1].chunk
    layout, chunks = state_layout(call), Layout(call.q, call.cu, chunk)
    known = run_states(call, call.k, call.v, layout, chunks, state, finish, reverse=False)
    out = new_like(call.v)
    scores = call.new(chunks.stretches if save else 0, call.H, chunk + 1, chunk, dtype=call.precision.stored)
    _outputs(call.plan, layout.span, save)(chunks.stretches, (
        call.q, call.k, call.v, call.g, call.masks(chunk), out, scores, *known, *chunks.table, layout.first,
    ))  # fmt: skip
    return out, finish, scores


@lru_cache(MOST)
def _outputs(plan: Plan, span: int, save: bool) -> Launch:
    (_, _, tile, _, _), tiles, _ = plan.tiles
    return Launch(output_kernel, plan.H * cdiv(plan.V, tiles.values), (
        *plan.strides, *_places(plan, tiles, span),
    ), dict(
        H=plan.H, K=plan.K, V=plan.V, BK=tiles.keys, BV=tiles.values, C=tiles.chunk, TILE=tile,
        PACKED=plan.packed, SEGMENTED=span < plan.length, SAVE=save, DOT=plan.precision.operand,
        PRECISION=plan.precision.products, PARTS=plan.precision.parts,
    ), tiles.warps)  # fmt: skip


def _places(plan: Plan, tiles: Tiles, span: int) -> tuple[int, int, int, float]:
    """What kernels that work on every chunk at once take: T, chunks a row, chunks of a segment, scale."""
    return plan.length, cdiv(plan.length, tiles.chunk), span // tiles.chunk, plan.scale


def run_backward(
    call: Call, do: Tensor, saved: Tensor | None, state: Tensor | None, dfinal: Tensor | None, dstate: Tensor | None,
    decay_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """dq, dk, dv and, if asked for, dlog_decay, (B, T, H), of a head's one decay too, or (B, T, H, K); writes the
    gradient of `state` into dstate."""
    if hopper.serves(call) and (call.kind == CHANNEL or not decay_grad or max(call.K, call.V) <= 128):
        return hopper.run_backward(call, do, saved, state, dfinal, dstate, decay_grad)
    if call.kind == CHANNEL or decay_grad:
        return run_chunk_grads(call, do, saved, state, dfinal, dstate)
    return *run_walks(call, do, saved, state, dfinal, dstate), None


def run_walks(
    call: Call, do: Tensor, saved: Tensor | None, state: Tensor | None, dfinal: Tensor | None, dstate: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv where log_decay needs no gradient; writes the gradient of `state` into dstate."""
    q, k, v = call.q, call.k, call.v
    layout, behind = walk_layout(call), None
    if layout.segmented:
        behind = run_states(call, q, do, layout, None, dfinal, None, reverse=True).borders
    # In place of what is not given stands something of the dtype of what is: a program chooses between them.
    borders = [saved, behind, state, dfinal, dstate]
    nothing = next((x for x in borders if x is not None), q)
    dq, dk, dv = new_like(q), new_like(k), new_like(v)
    tensors = (
        q, k, v, call.g, do, dq, dk, dv, *(nothing if x is None else x for x in borders), *layout.table,
    )  # fmt: skip
    given = state is not None, dfinal is not None, dstate is not None
    for work in _walks_back(call.plan, do.stride(), layout.span, *given):
        work(layout.stretches, tensors)
    return dq, dk, dv


@lru_cache(MOST)
def _walks_back(plan: Plan, do: Strides, span: int, has_start: bool, has_final: bool, has_dstate: bool) -> list[Launch]:
    """dq and dk walk with states (V, K), dv with (K, V): one launch where both are as wide fills the device best."""
    H, K, V = plan.H, plan.K, plan.V
    works, widths = [], {(V, K): (0, 2), (K, V): (2, 1)} if K != V else {(K, V): (0, 3)}
    for (shared, columns), (first, roles) in widths.items():
        tiles = walk_tiles(plan.dtype, shared, columns)
        slices = cdiv(columns, tiles.values)
        works.append(Launch(walk_grads_kernel, H * slices * roles, (
            *plan.strides, *do[:3], plan.length, cdiv(plan.length, span), span, first, plan.scale,
        ), dict(
            H=H, K=K, V=V, BA=tiles.keys, BX=tiles.values, SLICES=slices, ROLES=roles, C=tiles.chunk, KIND=plan.kind,
            PACKED=plan.packed, SEGMENTED=span < plan.length, HAS_START=has_start, HAS_FINAL=has_final,
            HAS_DSTART=has_dstate, DOT=plan.precision.operand, PRECISION=plan.precision.products,
            STAGES=tiles.stages,
        ), tiles.warps))  # fmt: skip
    return works


def run_chunk_grads(
    call: Call, do: Tensor, saved: Tensor | None, state: Tensor | None, dfinal: Tensor | None, dstate: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv and dlog_decay, (B, T, H) or (B, T, H, K), from the states around each chunk."""
    q, k, v, g, plan = call.q, call.k, call.v, call.g, call.plan
    chunk = plan.tiles[2].chunk
    layout, chunks = state_layout(call), Layout(q, call.cu, chunk)
    before = run_states(call, k, v, layout, chunks, state, None, reverse=False)
    behind = run_states(call, q, do, layout, chunks, dfinal, dstate, reverse=True)
    dq, dk, dv = new_like(q), new_like(k), new_like(v)
    places = (*chunks.table, layout.first)
    if call.kind != CHANNEL:
        dg = call.new(plan.rows, plan.length, plan.H)
        work = _token_grads(plan, do.stride(), layout.span)
        work(chunks.stretches, (q, k, v, g, do, dq, dk, dv, dg, *before, *behind, *places))
        return dq, dk, dv, dg
    assert saved is not None
    dg, masks = new_like(g), call.masks(chunk)
    grads, value_grad = _channel_grads(plan, do.stride(), layout.span)
    grads(chunks.stretches, (q, k, v, g, do, masks, dq, dk, dg, *before, *behind, *places))
    value_grad(chunks.stretches, (k, g, do, masks, dv, saved, *behind, *places))
    return dq, dk, dv, dg


@lru_cache(MOST)
def _token_grads(plan: Plan, do: Strides, span: int) -> Launch:
    (_, _, tile, _, _), _, tiles = plan.tiles
    return Launch(token_grads_kernel, plan.H, (
        *plan.strides, *do[:3], *_places(plan, tiles, span),
    ), dict(
        H=plan.H, K=plan.K, V=plan.V, BK=tiles.keys, BV=tiles.values, C=tiles.chunk, TILE=tile, KIND=plan.kind,
        PACKED=plan.packed, SEGMENTED=span < plan.length, DOT=plan.precision.operand,
        PRECISION=plan.precision.products,
    ), tiles.warps)  # fmt: skip


@lru_cache(MOST)
def _channel_grads(plan: Plan, do: Strides, span: int) -> tuple[Launch, Launch]:
    """dq, dk and dlog_decay; dv."""
    (_, _, tile, _, _), _, tiles = plan.tiles
    places = _places(plan, tiles, span)
    constants = dict(
        H=plan.H, K=plan.K, V=plan.V, BK=tiles.keys, BV=tiles.values, C=tiles.chunk, TILE=tile, PACKED=plan.packed,
        SEGMENTED=span < plan.length, DOT=plan.precision.operand, PRECISION=plan.precision.products,
        PARTS=plan.precision.parts,
    )  # fmt: skip
    strides = (*plan.strides, *do[:3])
    values = (*plan.strides[3:6], *plan.g_strides, *do[:3])
    return (
        Launch(grads_kernel, plan.H * cdiv(plan.K, tiles.keys), (*strides, *places), constants, tiles.warps),
        Launch(value_grad_kernel, plan.H * cdiv(plan.V, tiles.values), (*values, *places), constants, tiles.warps),
    )
