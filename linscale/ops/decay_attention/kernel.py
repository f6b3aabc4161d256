"""`decay_attention` on a GPU: which kernels run, over which pieces of the sequence, for one call.

One number a step for a whole head (no decay, (H,), (B, T, H)): kernels/walk.py, with the state on chip from one end of a
segment to the other; o, dq, dk and dv are each one such walk. Per-channel decay, and gradients of a decay given step by
step: kernels/states.py writes the state at every chunk, then every chunk is worked on at once, by kernels/channel.py or
kernels/token.py. A long sequence is cut into just enough segments to fill the device.

Registered as custom operators, so that torch.compile sees one node with known shapes. Tile sizes come from `tiles`, a
table by widths and dtype: nothing is searched for, and two runs give the same bits.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from linscale.ops.backend import interpreting
from linscale.ops.decay_attention.kernels.channel import grads_kernel, output_kernel, value_grad_kernel
from linscale.ops.decay_attention.kernels.common import BF16
from linscale.ops.decay_attention.kernels.launch import launch
from linscale.ops.decay_attention.kernels.states import join_kernel, states_kernel
from linscale.ops.decay_attention.kernels.step import step_kernel
from linscale.ops.decay_attention.kernels.token import token_grads_kernel
from linscale.ops.decay_attention.kernels.walk import walk_grads_kernel, walk_kernel
from linscale.ops.decay_attention.masks import masks
from linscale.ops.packing import document_lengths

NONE, HEAD, TOKEN, CHANNEL = range(4)  # as in kernels/common.py
FILL = 256  # programs that keep a device busy; a sequence is cut into segments until there are about as many
LEAST_SEGMENT = 1024  # tokens: below, passing states on costs more than it brings
LARGEST_STRIDE = 1 << 22  # elements between tokens, so that offsets inside a tile fit in 32 bits


class Tiles(NamedTuple):
    """Sizes of one kernel's tiles. chunk: steps; keys, values: widths; warps, stages: as Triton has them."""

    chunk: int
    keys: int
    values: int
    warps: int
    stages: int


class Precision(NamedTuple):
    """How products are taken. operand: dtype of their operands; parts: bf16 numbers that make up a log decay."""

    operand: Any
    products: str
    parts: int
    stored: torch.dtype


def precision_of(dtype: torch.dtype, log_decay: Tensor | None) -> Precision:
    """bf16: its own products. fp16 and fp32: three tf32 products, to fp32's digits and range."""
    parts = 1 if log_decay is None else {torch.bfloat16: 1, torch.float16: 2}.get(log_decay.dtype, 3)
    if dtype == torch.bfloat16:
        return Precision(BF16.value, "ieee", min(parts, 2), torch.float16)
    return Precision(tl.float32, "tf32x3", parts, torch.float32)


def walk_tiles(dtype: torch.dtype, shared: int, out: int) -> Tiles:
    """For kernels/walk.py: the whole shared width at once, the output's in slices."""
    wide, narrow = width(shared), width(out)
    if dtype == torch.bfloat16:
        return Tiles(64, wide, min(narrow, 32 if wide > 128 else 64), 4, 2)
    return Tiles(32, wide, min(narrow, 32), 4, 1 if wide > 128 else 2)


def chunk_tiles(dtype: torch.dtype, keys: int, values: int) -> tuple[Tiles, Tiles, Tiles]:
    """For states.py, for the output and for the gradients of a chunk.

    In bf16 narrow heads are padded to 64: with tiles of 16 and 32 Triton 3.6 compiles channel.py to reads out of bounds.
    """
    if dtype == torch.bfloat16:
        values = 64 if values <= 64 else 128
        return Tiles(64, 64, values, 4, 3), Tiles(64, 64, values, 4, 1), Tiles(64, 64, 64, 4, 1)
    small = Tiles(32, min(width(keys), 32), min(width(values), 32), 4, 1)
    return small, small, small


def width(size: int) -> int:
    """The power of two, at least 16, that a width is padded to inside a kernel."""
    return max(16, 1 << (size - 1).bit_length())


def cdiv(size: int, by: int) -> int:
    return (size + by - 1) // by


class Layout:
    """How the sequences of a call are cut into stretches: see kernels/common.py.

    rows, length  B and T;  documents: N, sequences in all;  span: tokens of a stretch
    stretches     how many there are; packed, at most so many
    borders       at most so many borders between stretches of one sequence
    """

    def __init__(self, q: Tensor, cu_seqlens: Tensor | None, span: int) -> None:
        self.rows, self.length, self.span, self.cu = q.shape[0], q.shape[1], span, cu_seqlens
        self.per_row = cdiv(self.length, span)
        if cu_seqlens is None:
            self.documents, self.stretches = self.rows, self.rows * self.per_row
            self.borders = self.rows * (self.per_row - 1)
            self.first = self.document = q  # never read
        else:
            self.documents = len(cu_seqlens) - 1
            self.stretches = self.length // span + self.documents
            self.borders = self.length // span
            counts = (cu_seqlens.diff() + (span - 1)) // span
            self.first = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
            places = torch.arange(self.stretches, device=q.device, dtype=torch.int32)
            document = torch.searchsorted(self.first[1:], places, right=True, out_int32=True)
            self.document = torch.where(document < self.documents, document, -1)
        self.segmented = self.per_row > 1

    @property
    def table(self) -> tuple[Tensor, Tensor, Tensor]:
        """cu, document_of, first_of."""
        return (self.first if self.cu is None else self.cu), self.document, self.first


class Call:
    """One call's inputs, as the kernels take them, and its cuts into chunks and segments."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, cu_seqlens: Tensor | None, scale: float
    ) -> None:
        self.q, self.k, self.v = (steady(x) for x in (q, k, v))
        self.kind = NONE if log_decay is None else {1: HEAD, 3: TOKEN, 4: CHANNEL}[log_decay.ndim]
        self.g = q if log_decay is None else steady(log_decay)
        self.cu, self.scale = cu_seqlens, scale
        self.H, self.K, self.V = q.shape[2], q.shape[3], v.shape[3]
        self.precision = precision_of(q.dtype, log_decay)
        self.state_shape = (q.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1, self.H, self.K, self.V)

    def segments(self, chunk: int, slices: int) -> Layout:
        """As few segments as fill the device with `slices` programs a head."""
        tokens = self.q.shape[0] * self.q.shape[1]
        span = max(LEAST_SEGMENT, cdiv(tokens * self.H * slices, FILL))
        return Layout(self.q, self.cu, cdiv(span, chunk) * chunk)

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.q.new_empty(shape, dtype=dtype)

    def masks(self, chunk: int) -> Tensor:
        return masks(chunk, torch.float32 if interpreting() else torch.bfloat16, self.q.device)

    @property
    def g_strides(self) -> tuple[int, int, int]:
        """row, token, head."""
        return (0, 0, 1) if self.g.ndim == 1 else self.g.stride()[:3]


def steady(x: Tensor) -> Tensor:
    """x with its last axis dense and its tokens not too far apart; a copy only if they are not."""
    dense = x.ndim < 4 or x.stride(-1) == 1 or x.shape[-1] == 1
    return x if dense and (x.ndim == 1 or x.stride(1) < LARGEST_STRIDE) else x.contiguous()


def walk(call: Call, layout: Layout, borders: Tensor | None, start: Tensor | None, finish: Tensor) -> Tensor:
    """o, from kernels/walk.py; writes the final states into `finish`."""
    tiles = walk_tiles(call.v.dtype, call.K, call.V)
    out = torch.empty(call.v.shape, dtype=call.v.dtype, device=call.v.device)
    launch(walk_kernel, layout.stretches * call.H * cdiv(call.V, tiles.values), (
        call.q, call.k, call.v, call.g, out, out if borders is None else borders, out if start is None else start, finish,
        *layout.table,
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
        b, c, call.g, call.masks(tiles.chunk), states, scales, fades, borders, weights, start if start is not None else states, nothing,
        *layout.table, layout.first if chunks is None else chunks.first,
    ), (
        *b.stride()[:3], *c.stride()[:3], *call.g_strides, layout.length, layout.per_row, layout.span, call.scale,
    ), dict(
        H=H, K=K, V=V, BK=tiles.keys, BV=tiles.values, C=tiles.chunk,
        KIND=call.kind, PACKED=call.cu is not None, REVERSE=reverse, EVERY_CHUNK=chunks is not None,
        SEGMENTED=layout.segmented, HAS_START=start is not None, HAS_FINISH=finish is not None,
        DOT=call.precision.operand, PRECISION=call.precision.products, PARTS=call.precision.parts,
        STAGES=tiles.stages,
    ), tiles.warps, 1)  # fmt: skip
    if layout.segmented:
        launch(join_kernel, layout.documents * H * pieces, (
            borders, weights, nothing, layout.first,
        ), (
            layout.per_row,
    ), dict(
        H=H, K=K, V=V, BK=tiles.keys, BV=tiles.values, KIND=call.kind, PACKED=call.cu is not None,
            REVERSE=reverse, HAS_FINISH=finish is not None,
    ), 4, 1)  # fmt: skip
    return States(states, scales, fades, borders)


def run_forward(call: Call, state: Tensor | None, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """o (B, T, H, V), the final state and, if `save`, what the backward pass need not compute again: the scores under
    per-channel decay, else the states at the borders of segments."""
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
        PACKED=call.cu is not None, SEGMENTED=layout.segmented, SAVE=save,        DOT=call.precision.operand, PRECISION=call.precision.products, PARTS=call.precision.parts,
    ), tiles.warps, 1)  # fmt: skip
    return out, finish, scores


def walk_layout(call: Call) -> Layout:
    """Segments for the walks of one call, all over the same cuts."""
    tiles = walk_tiles(call.q.dtype, max(call.K, call.V), min(call.K, call.V))
    return call.segments(tiles.chunk, cdiv(min(call.K, call.V), tiles.values))


def state_layout(call: Call) -> Layout:
    """Segments for kernels/states.py."""
    tiles = chunk_tiles(call.q.dtype, call.K, call.V)[0]
    return call.segments(tiles.chunk, cdiv(call.K, tiles.keys) * cdiv(call.V, tiles.values))


def run_backward(
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
    # dq and dk walk with states (V, K), dv with (K, V): one launch where both are as wide, for it fills the device best.
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
    """dq, dk, dv and dlog_decay, (B, T, H) or (B, T, H, K), from the states before and the gradients behind each chunk."""
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
        ), (*strides, *sizes,
    ), dict(
        H=H, K=call.K, V=call.V, BK=tiles.keys, BV=tiles.values, C=tiles.chunk, TILE=tile, KIND=call.kind,
            PACKED=call.cu is not None, SEGMENTED=layout.segmented, DOT=call.precision.operand,
            PRECISION=call.precision.products,
    ), tiles.warps, 1)  # fmt: skip
        return dq, dk, dv, dg
    dg = torch.empty(q.shape, dtype=g.dtype, device=q.device)
    launch(grads_kernel, chunks.stretches * H * down, (
        q, k, v, g, do, call.masks(tiles.chunk), dq, dk, dg, *before, *behind, *places,
    ), (*strides, *sizes,
    ), dict(
        H=H, K=call.K, V=call.V, BK=tiles.keys, BV=tiles.values, C=tiles.chunk, TILE=tile,
        PACKED=call.cu is not None, SEGMENTED=layout.segmented,
        DOT=call.precision.operand,
        PRECISION=call.precision.products, PARTS=call.precision.parts,
    ), tiles.warps, 1)  # fmt: skip
    launch(value_grad_kernel, chunks.stretches * H * across, (
        k, g, do, call.masks(tiles.chunk), dv, saved, *behind, *places,
    ), (
        *k.stride()[:3], *call.g_strides, *do.stride()[:3], *sizes,
    ), dict(
        H=H, K=call.K, V=call.V, BK=tiles.keys, BV=tiles.values, C=tiles.chunk, TILE=tile,
        PACKED=call.cu is not None, SEGMENTED=layout.segmented, DOT=call.precision.operand,
        PRECISION=call.precision.products, PARTS=call.precision.parts,
    ), tiles.warps, 1)  # fmt: skip
    return dq, dk, dv, dg


# The custom operators. "?" inputs may be None; outputs that are not asked for come back empty.
_DEFINITIONS = torch.library.Library("linscale", "FRAGMENT")
_DEFINITIONS.define(
    "decay_attention(Tensor q, Tensor k, Tensor v, Tensor? log_decay, Tensor? state, Tensor? cu_seqlens, float scale,"
    " bool save) -> (Tensor, Tensor, Tensor)"
)
_DEFINITIONS.define(
    "decay_attention_backward(Tensor? do, Tensor? dfinal, Tensor saved, Tensor q, Tensor k, Tensor v, Tensor? log_decay,"
    " Tensor? state, Tensor? cu_seqlens, float scale, bool decay_grad, bool state_grad)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_DEFINITIONS.define(
    "decay_attention_step(Tensor q, Tensor k, Tensor v, Tensor? log_decay, Tensor state, float scale)"
    " -> (Tensor, Tensor)"
)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, cu: Tensor | None, scale: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if cu is not None:
        document_lengths(cu, q)
    call = Call(q, k, v, log_decay, cu, scale)
    return run_forward(call, None if state is None else state.contiguous(), save)


def _forward_shapes(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, cu: Tensor | None, scale: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    call = Call(q, k, v, log_decay, None, scale)
    documents = q.shape[0] if cu is None else cu.shape[0] - 1
    saved = call.new(0)
    if save and call.kind == CHANNEL:
        chunk = chunk_tiles(q.dtype, call.K, call.V)[1].chunk
        chunks = q.shape[0] * cdiv(q.shape[1], chunk) if cu is None else q.shape[1] // chunk + documents
        saved = call.new(chunks, call.H, chunk + 1, chunk, dtype=call.precision.stored)
    elif save:
        span = walk_layout(call).span
        borders = q.shape[0] * (cdiv(q.shape[1], span) - 1) if cu is None else q.shape[1] // span
        saved = call.new(borders, call.H, call.K, call.V) if q.shape[1] > span else saved
    final = call.new(documents, call.H, call.K, call.V)
    return torch.empty(v.shape, dtype=v.dtype, device=v.device), final, saved


def _backward(
    do: Tensor | None, dfinal: Tensor | None, saved: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None,
    state: Tensor | None, cu: Tensor | None, scale: float, decay_grad: bool, state_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    call = Call(q, k, v, log_decay, cu, scale)
    do = steady(torch.zeros_like(v) if do is None else do)
    state, dfinal = (None if x is None else x.contiguous() for x in (state, dfinal))
    dstate = call.new(*call.state_shape) if state_grad else None
    nothing = call.new(0)
    if call.kind != CHANNEL and not decay_grad:
        dq, dk, dv = run_backward(call, do, saved, state, dfinal, dstate)
        return dq, dk, dv, nothing, nothing if dstate is None else dstate
    dq, dk, dv, dg = run_chunk_grads(call, do, saved, state, dfinal, dstate)
    dg = (dg.sum((0, 1)) if call.kind == HEAD else dg).to(call.g.dtype) if decay_grad else nothing
    return dq, dk, dv, dg, nothing if dstate is None else dstate


def _backward_shapes(
    do: Tensor | None, dfinal: Tensor | None, saved: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None,
    state: Tensor | None, cu: Tensor | None, scale: float, decay_grad: bool, state_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    dg = dstate = q.new_empty(0, dtype=torch.float32)
    if log_decay is not None and decay_grad:
        dg = torch.empty(log_decay.shape, dtype=log_decay.dtype, device=q.device)
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
    decay_grad, state_grad = ctx.needs_input_grad[3], ctx.needs_input_grad[4]
    dq, dk, dv, dg, dstate = backward(do, dfinal, saved, *tensors, ctx.scale, decay_grad, state_grad)
    return dq, dk, dv, dg if decay_grad else None, dstate if state_grad else None


class DecayAttention(torch.autograd.Function):
    """o, final = DecayAttention.apply(q, k, v, log_decay, state, cu_seqlens, scale).

    The custom operator without the dispatcher, whose detours through Python cost more time than small kernels take.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        *tensors, ctx.scale = inputs
        o, final, saved = _forward(*inputs, True)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, saved)
        return o, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        return (*_gradients(ctx, _backward, do, dfinal), None, None)


def run(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, cu: Tensor | None, scale: float,
    save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`decay_attention` outside torch.compile. save: autograd records it."""
    with on_device_of(q):
        if save:
            result: tuple[Tensor, Tensor] = DecayAttention.apply(q, k, v, log_decay, state, cu, scale)
            return result
        o, final, _ = _forward(q, k, v, log_decay, state, cu, scale, False)
        return o, final


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Kernels run on the current device."""
    if x.device.type != "cuda" or x.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)


def step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    q, k, v, state = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v, state))
    B, H, K, V = state.shape
    kind = NONE if log_decay is None else {1: HEAD, 2: TOKEN, 3: CHANNEL}[log_decay.ndim]
    g = state if log_decay is None else log_decay.contiguous()
    g_strides = (0, 1) if g.ndim == 1 else g.stride()[:2]
    out, new_state = (
        torch.empty(v.shape, dtype=v.dtype, device=v.device),
        torch.empty_like(state, memory_format=torch.contiguous_format),
    )
    BV = min(width(V), max(16, 4096 // width(K)))
    launch(step_kernel, B * H * cdiv(V, BV), (
        q, k, v, g, state, out, new_state,
    ), (
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *g_strides, *state.stride()[:3], scale,
    ), dict(
        H=H, K=K, V=V, BK=width(K), BV=BV, KIND=kind,
    ), 4, 1)  # fmt: skip
    return out, new_state


def _step_shapes(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    return torch.empty(v.shape, dtype=v.dtype, device=v.device), torch.empty(
        state.shape, dtype=state.dtype, device=v.device
    )


for _name, _run, _shapes in (
    ("decay_attention", _forward, _forward_shapes),
    ("decay_attention_backward", _backward, _backward_shapes),
    ("decay_attention_step", step, _step_shapes),
):
    _DEFINITIONS.impl(_name, _run, "CUDA")
    _DEFINITIONS.impl(_name, _run, "CPU")  # Triton's interpreter
    torch.library.register_fake(f"linscale::{_name}", _shapes)
torch.library.register_autograd("linscale::decay_attention", _differentiate, setup_context=_keep)
