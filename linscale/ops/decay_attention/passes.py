"""The forward and the backward pass of `decay_attention` on a GPU: which kernels run, over which pieces of a sequence.

One number a step for a whole head (no decay, (H,), (B, T, H)): kernels/walk.py, with the state on chip from one end of
a segment to the other; o, dq, dk and dv are each one such walk. Per-channel decay, and gradients of a decay given step
by step: kernels/states.py writes the state at every chunk, then every chunk is worked on at once, by kernels/channel.py
or kernels/token.py. A long sequence is cut into just enough segments to fill the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from linscale.ops.decay_attention import hopper
from linscale.ops.decay_attention.kernels.channel import grads_kernel, output_kernel, value_grad_kernel
from linscale.ops.decay_attention.kernels.states import join_kernel, states_kernel
from linscale.ops.decay_attention.kernels.token import token_grads_kernel
from linscale.ops.decay_attention.kernels.walk import walk_grads_kernel, walk_kernel
from linscale.ops.decay_attention.layout import CHANNEL, NONE, Call, Layout, state_layout, walk_layout
from linscale.ops.decay_attention.tiles import cdiv, chunk_tiles, walk_tiles
from linscale.ops.launch import launch


def walk(call: Call, layout: Layout, borders: Tensor | None, start: Tensor | None, finish: Tensor) -> Tensor:
    """o, from kernels/walk.py; writes the final states into `finish`."""
    tiles = walk_tiles(call.v.dtype, call.K, call.V)
    out = torch.empty(call.v.shape, dtype=call.v.dtype, device=call.v.device)
    launch(walk_kernel, layout.stretches * call.H * cdiv(call.V, tiles.values), (
        call.q, call.k, call.v, call.g, out, out if borders is None else borders, out if start is None else start,
        finish, *layout.table,
    ), (
        *call.q.stride()[:3], *call.k.stride()[:3], *call.v.stride()[:3], *call.g_strides,
        layout.length, layout.per_row, layout.span, call.scale,
    ), dict(
        H=call.H, K=call.K, V=call.V, BK=tiles.keys, BV=tiles.values, C=tiles.chunk, KIND=call.kind,
        PACKED=call.cu is not None, SEGMENTED=borders is not None, HAS_START=start is not None,
        DOT=call.precision.operand, PRECISION=call.precision.products, STAGES=tiles.stages,
    ), tiles.warps)  # fmt: skip
    return out


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
    tiles = chunk_tiles(call.q.dtype, call.K, call.V)[0]
    H, K, V = call.H, call.K, call.V
    states = scales = fades = call.new(0)
    if chunks is not None:
        states = call.new(chunks.stretches, H, K, V, dtype=call.precision.stored)
        scales = call.new(chunks.stretches, H, K, cdiv(V, tiles.values))
        fades = call.new(chunks.stretches if layout.segmented else 0, H, K)
    borders = call.new(layout.borders, H, K, V)
    weights = call.new(layout.stretches if call.kind != NONE else 0, H, K)
    pieces = cdiv(K, tiles.keys) * cdiv(V, tiles.values)
    nothing = call.q if finish is None else finish
    launch(states_kernel, layout.stretches * H * pieces, (
        b, c, call.g, call.masks(tiles.chunk), states, scales, fades, borders, weights,
        start if start is not None else states, nothing,
        *layout.table, layout.first if chunks is None else chunks.first,
    ), (
        *b.stride()[:3], *c.stride()[:3], *call.g_strides, layout.length, layout.per_row, layout.span, call.scale,
    ), dict(
        H=H, K=K, V=V, BK=tiles.keys, BV=tiles.values, C=tiles.chunk,
        KIND=call.kind, PACKED=call.cu is not None, REVERSE=reverse, EVERY_CHUNK=chunks is not None,
        SEGMENTED=layout.segmented, HAS_START=start is not None, HAS_FINISH=finish is not None,
        DOT=call.precision.operand, PRECISION=call.precision.products, PARTS=call.precision.parts,
        STAGES=tiles.stages,
    ), tiles.warps)  # fmt: skip
    if layout.segmented:
        launch(join_kernel, layout.documents * H * pieces, (
            borders, weights, nothing, layout.first,
        ), (
            layout.per_row,
        ), dict(
            H=H, K=K, V=V, BK=tiles.keys, BV=tiles.values, KIND=call.kind, PACKED=call.cu is not None,
            REVERSE=reverse, HAS_FINISH=finish is not None,
        ), 4)  # fmt: skip
    return States(states, scales, fades, borders)


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
    chunk = hopper.CHUNK if on_hopper else chunk_tiles(call.q.dtype, call.K, call.V)[1].chunk
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
        return out, finish, borders if save and borders is not None else call.new(0)
    (_, _, tile, _, _), tiles, _ = chunk_tiles(call.q.dtype, call.K, call.V)
    layout, chunks = state_layout(call), Layout(call.q, call.cu, tiles.chunk)
    known = run_states(call, call.k, call.v, layout, chunks, state, finish, reverse=False)
    out = torch.empty(call.v.shape, dtype=call.v.dtype, device=call.v.device)
    scores = call.new(
        chunks.stretches if save else 0, call.H, tiles.chunk + 1, tiles.chunk, dtype=call.precision.stored
    )
    launch(output_kernel, chunks.stretches * call.H * cdiv(call.V, tiles.values), (
        call.q, call.k, call.v, call.g, call.masks(tiles.chunk), out, scores, *known, *chunks.table, layout.first,
    ), (
        *call.q.stride()[:3], *call.k.stride()[:3], *call.v.stride()[:3], *call.g_strides,
        chunks.length, chunks.per_row, layout.span // tiles.chunk, call.scale,
    ), dict(
        H=call.H, K=call.K, V=call.V, BK=tiles.keys, BV=tiles.values, C=tiles.chunk, TILE=tile,
        PACKED=call.cu is not None, SEGMENTED=layout.segmented, SAVE=save, DOT=call.precision.operand,
        PRECISION=call.precision.products, PARTS=call.precision.parts,
    ), tiles.warps)  # fmt: skip
    return out, finish, scores


def run_backward(
    call: Call, do: Tensor, saved: Tensor, state: Tensor | None, dfinal: Tensor | None, dstate: Tensor | None,
    decay_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """dq, dk, dv and, if asked for, dlog_decay, (B, T, H) or (B, T, H, K), of a head's one decay too; writes the gradient
    of `state` into dstate."""
    if hopper.serves(call) and (call.kind == CHANNEL or not decay_grad or max(call.K, call.V) <= 128):
        return hopper.run_backward(call, do, saved, state, dfinal, dstate, decay_grad)
    if call.kind == CHANNEL or decay_grad:
        return run_chunk_grads(call, do, saved, state, dfinal, dstate)
    return *run_walks(call, do, saved, state, dfinal, dstate), None


def run_walks(
    call: Call, do: Tensor, saved: Tensor, state: Tensor | None, dfinal: Tensor | None, dstate: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv where log_decay needs no gradient; writes the gradient of `state` into dstate."""
    q, k, v = call.q, call.k, call.v
    layout, before, behind = walk_layout(call), None, None
    if layout.segmented:
        before = saved
        behind = run_states(call, q, do, layout, None, dfinal, None, reverse=True).borders
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    tensors = (
        q, k, v, call.g, do, dq, dk, dv, *(q if x is None else x for x in (before, behind, state, dfinal, dstate)),
        *layout.table,
    )  # fmt: skip
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *call.g_strides, *do.stride()[:3])
    # dq and dk walk with states (V, K), dv with (K, V): one launch where both are as wide fills the device best.
    widths = {(call.V, call.K): (0, 2), (call.K, call.V): (2, 1)} if call.K != call.V else {(call.K, call.V): (0, 3)}
    for (shared, columns), (first, roles) in widths.items():
        tiles = walk_tiles(q.dtype, shared, columns)
        slices = cdiv(columns, tiles.values)
        launch(walk_grads_kernel, layout.stretches * call.H * slices * roles, tensors, (
            *strides, layout.length, layout.per_row, layout.span, first, call.scale,
        ), dict(
            H=call.H, K=call.K, V=call.V, BA=tiles.keys, BX=tiles.values, SLICES=slices, ROLES=roles,
            C=tiles.chunk, KIND=call.kind, PACKED=call.cu is not None, SEGMENTED=behind is not None,
            HAS_START=state is not None, HAS_FINAL=dfinal is not None, HAS_DSTART=dstate is not None,
            DOT=call.precision.operand, PRECISION=call.precision.products, STAGES=tiles.stages,
        ), tiles.warps)  # fmt: skip
    return dq, dk, dv


def run_chunk_grads(
    call: Call, do: Tensor, saved: Tensor, state: Tensor | None, dfinal: Tensor | None, dstate: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv and dlog_decay, (B, T, H) or (B, T, H, K), from the states around each chunk."""
    q, k, v, g, H = call.q, call.k, call.v, call.g, call.H
    (_, _, tile, _, _), _, tiles = chunk_tiles(q.dtype, call.K, call.V)
    layout, chunks = state_layout(call), Layout(q, call.cu, tiles.chunk)
    before = run_states(call, k, v, layout, chunks, state, None, reverse=False)
    behind = run_states(call, q, do, layout, chunks, dfinal, dstate, reverse=True)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    places = (*chunks.table, layout.first)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *call.g_strides, *do.stride()[:3])
    sizes = (chunks.length, chunks.per_row, layout.span // tiles.chunk, call.scale)
    down, across = cdiv(call.K, tiles.keys), cdiv(call.V, tiles.values)
    if call.kind != CHANNEL:
        dg = call.new(*q.shape[:3])
        launch(token_grads_kernel, chunks.stretches * H, (
            q, k, v, g, do, dq, dk, dv, dg, *before, *behind, *places,
        ), (*strides, *sizes), dict(
            H=H, K=call.K, V=call.V, BK=tiles.keys, BV=tiles.values, C=tiles.chunk, TILE=tile, KIND=call.kind,
            PACKED=call.cu is not None, SEGMENTED=layout.segmented, DOT=call.precision.operand,
            PRECISION=call.precision.products,
        ), tiles.warps)  # fmt: skip
        return dq, dk, dv, dg
    dg = torch.empty(q.shape, dtype=g.dtype, device=q.device)
    launch(grads_kernel, chunks.stretches * H * down, (
        q, k, v, g, do, call.masks(tiles.chunk), dq, dk, dg, *before, *behind, *places,
    ), (*strides, *sizes), dict(
        H=H, K=call.K, V=call.V, BK=tiles.keys, BV=tiles.values, C=tiles.chunk, TILE=tile,
        PACKED=call.cu is not None, SEGMENTED=layout.segmented, DOT=call.precision.operand,
        PRECISION=call.precision.products, PARTS=call.precision.parts,
    ), tiles.warps)  # fmt: skip
    launch(value_grad_kernel, chunks.stretches * H * across, (
        k, g, do, call.masks(tiles.chunk), dv, saved, *behind, *places,
    ), (
        *k.stride()[:3], *call.g_strides, *do.stride()[:3], *sizes,
    ), dict(
        H=H, K=call.K, V=call.V, BK=tiles.keys, BV=tiles.values, C=tiles.chunk, TILE=tile,
        PACKED=call.cu is not None, SEGMENTED=layout.segmented, DOT=call.precision.operand,
        PRECISION=call.precision.products, PARTS=call.precision.parts,
    ), tiles.warps)  # fmt: skip
    return dq, dk, dv, dg
