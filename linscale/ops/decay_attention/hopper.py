"""The walks on a Hopper GPU, by kernels/hopper_walk.py: when it serves a call, how sequences are cut, what is launched."""

from __future__ import annotations

import importlib.util
from functools import cache, lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from linscale.ops.backend import interpreting
from linscale.ops.decay_attention.kernels.states import join_kernel
from linscale.ops.decay_attention.layout import CHANNEL, Call, Layout, Plan
from linscale.ops.decay_attention.tiles import cdiv
from linscale.ops.launch import MOST, launch

CHUNK = 64
WIDTHS = (64, 128, 256)  # of heads; under per-channel decay the first two
TESTED = ((3, 6),)  # versions of Triton
SEGMENT_COST = 3  # chunks: what reading and writing the states of a segment costs
STATES_COST = 0.4  # of a walk: what finding the states between segments costs


@cache
def obstacle(device: torch.device) -> str | None:
    """Why the Hopper kernels cannot run on this device, or None."""
    if device.type != "cuda" or interpreting():
        return "they are compiled for a GPU, and only for one"
    if torch.cuda.get_device_capability(device) != (9, 0):
        return "they use instructions of compute capability 9.0 alone"
    if importlib.util.find_spec("triton.experimental.gluon.language.nvidia.hopper") is None:
        return "this version of Triton has no Gluon"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) not in TESTED:
        return (
            f"Gluon is experimental, and they were tested with Triton {', '.join(f'{a}.{b}' for a, b in TESTED)} alone"
        )
    return None


def serves(call: Call) -> bool:
    """Whether the Hopper kernels run this call."""
    return fits(call.plan, call.g.dtype) and obstacle(call.q.device) is None


def fits(plan: Plan, decay: torch.dtype) -> bool:
    """Whether the Hopper kernels take calls of these shapes: bf16, heads of whole warpgroups, copied 16 bytes at a time."""
    entries = [stride % 16 == 0 for stride in plan.strides[:9]]
    if plan.kind != CHANNEL:
        return plan.dtype == torch.bfloat16 and plan.K in WIDTHS and plan.V in WIDTHS and all(entries)
    entries += [stride % 16 == 0 for stride in plan.g_strides]
    known = plan.dtype == torch.bfloat16 and decay in (torch.bfloat16, torch.float32)
    return known and plan.K == plan.V and plan.K in WIDTHS[:2] and all(entries)


def aligned(x: Tensor) -> Tensor:
    """x, at an address from which 16 bytes can be copied at a time; itself unless it is a slice cut elsewhere."""
    return x.clone() if x.data_ptr() % 16 else x


def walk_segments(call: Call) -> Layout:
    """Segments for one call, one program a multiprocessor at a time; o and all gradients walk over the same ones."""
    slices = 1 if call.kind == CHANNEL else cdiv(min(call.K, call.V), 128)
    chunks = int(cdiv(call.plan.length, CHUNK))
    count = cut(int(call.plan.rows) * call.H * slices, chunks, multiprocessors(call.q.device))
    return Layout(call.q, call.cu, cdiv(chunks, count) * CHUNK)


@cache
def multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@lru_cache(MOST)
def cut(heads: int, chunks: int, processors: int) -> int:
    """How many segments to cut `heads` sequences of `chunks` chunks into: as few rounds, as short, as can be."""

    def cost(segments: int) -> float:
        rounds = cdiv(heads * segments, processors)
        return rounds * (cdiv(chunks, segments) + SEGMENT_COST) * (1.0 + STATES_COST * (segments > 1))

    return min(range(1, min(64, chunks) + 1), key=cost)


def warps(columns: int) -> int:
    """A warpgroup takes 64 rows of the transposed state."""
    return 4 if columns == 64 else 8


class Met(NamedTuple):
    """For the gradient of log decays: see hopper_walk_kernel. sums (B, T, H), crossing (segments, H)."""

    sums: Tensor
    crossing: Tensor
    behind: Tensor | None
    final: Tensor | None


def run_walk(
    call: Call, layout: Layout, inputs: tuple[Tensor, Tensor, Tensor], out: Tensor, borders: Tensor | None,
    start: Tensor | None, finish: Tensor | None, *, reverse: bool, transposed: bool, met: Met | None = None,
) -> None:  # fmt: skip
    """One walk of all segments. inputs: a, b, c as in kernels/walk.py."""
    _launch(call, layout, inputs, out, borders, None, start, finish, reverse, transposed, True, met)


def run_borders(call: Call, layout: Layout, b: Tensor, c: Tensor, start: Tensor | None, *, reverse: bool) -> Tensor:
    """The states (K, V) at the borders of segments; their gradients in reverse."""
    H, K, V = call.H, call.K, call.V
    borders = call.new(layout.borders, H, K, V)
    weights = call.new(layout.stretches, H, K)
    _launch(call, layout, (b, b, c), borders, borders, weights, start, None, reverse, False, False)
    documents = layout.documents
    launch(join_kernel, documents * H * cdiv(K, 64) * cdiv(V, 64), (
        borders, weights, borders, layout.first,
    ), (layout.per_row,), dict(
        H=H, K=K, V=V, BK=64, BV=64, KIND=call.kind, PACKED=call.cu is not None, REVERSE=reverse, HAS_FINISH=False,
    ), 4)  # fmt: skip
    return borders


def _launch(
    call: Call, layout: Layout, inputs: tuple[Tensor, Tensor, Tensor], out: Tensor, borders: Tensor | None,
    weights: Tensor | None, start: Tensor | None, finish: Tensor | None, reverse: bool, transposed: bool, output: bool,
    met: Met | None = None,
) -> None:  # fmt: skip
    from linscale.ops.decay_attention.kernels.hopper_walk import hopper_walk_kernel

    a, b, c = inputs
    A, X = a.shape[-1], c.shape[-1]
    BX = min(X, 128 if output else 64)
    spare = out if out.dtype == torch.float32 else call.new(0)
    stages = (2 if A == 256 else 3) if output else 4 - A // 128
    d = call.q if met is not None else c
    sums, crossing, behind, final = (spare, spare, None, None) if met is None else met
    launch(hopper_walk_kernel, layout.stretches * call.H * (X // BX), (
        a, b, c, d, call.g, out,
        *(spare if x is None else x for x in (borders, weights, start, finish, sums, behind, final, crossing)),
        *layout.table,
    ), (
        *a.stride()[:3], *b.stride()[:3], *c.stride()[:3], *d.stride()[:3], *call.g_strides, layout.length, layout.per_row, layout.span,
        call.scale,
    ), dict(
        H=call.H, A=A, X=X, BX=BX, C=CHUNK, KIND=call.kind, PACKED=call.cu is not None,
        SEGMENTED=borders is not None, REVERSE=reverse, TRANSPOSED=transposed, OUTPUT=output,
        SUMS=met is not None, HAS_START=start is not None, HAS_FINISH=finish is not None, HAS_FINAL=final is not None,
        STAGES=stages, WARPS=warps(BX),
    ), warps(BX))  # fmt: skip


def run_grads(
    call: Call, layout: Layout, do: Tensor, dk: Tensor, dv: Tensor, behind: Tensor | None, dfinal: Tensor | None,
    dstate: Tensor | None, met: Met | None = None, dg: Tensor | None = None,
) -> None:  # fmt: skip
    """dk and dv at once, of heads up to 128 wide; and dg (B, T, H)."""
    from linscale.ops.decay_attention.kernels.hopper_walk_grads import hopper_grads_kernel

    q, k, v = call.q, call.k, call.v
    spare = call.new(0)
    count = 8 if max(call.K, call.V) > 64 else 4
    launch(hopper_grads_kernel, layout.stretches * call.H, (
        q, k, v, call.g, do, dk, dv, *(spare if x is None else x for x in (
            dg, None if met is None else met.sums, None if met is None else met.crossing, behind, dfinal, dstate
        )), *layout.table,
    ), (
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *call.g_strides, *do.stride()[:3],
        layout.length, layout.per_row, layout.span, call.scale,
    ), dict(
        H=call.H, K=call.K, V=call.V, C=CHUNK, KIND=call.kind, PACKED=call.cu is not None,
        SEGMENTED=behind is not None, DECAY_GRAD=dg is not None, HAS_FINAL=dfinal is not None,
        HAS_DSTART=dstate is not None, STAGES=2, WARPS=count,
    ), count)  # fmt: skip


def run_forward(call: Call, state: Tensor | None, save: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """o, the final states and, if `save`, what the backward pass needs: the states at the borders of segments, of chunks
    under per-channel decay."""
    call.q, call.k, call.v, call.g = aligned(call.q), aligned(call.k), aligned(call.v), aligned(call.g)
    layout = walk_segments(call)
    if call.kind == CHANNEL:
        return channel_forward(call, state, layout, save)
    return forward(call, state, layout)


def run_backward(
    call: Call, do: Tensor, saved: Tensor | None, state: Tensor | None, dfinal: Tensor | None, dstate: Tensor | None,
    decay_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """dq, dk, dv and dlog_decay, (B, T, H) or (B, T, H, K); writes the gradient of `state` into dstate."""
    call.q, call.k, call.v, call.g, do = (aligned(x) for x in (call.q, call.k, call.v, call.g, do))
    layout = walk_segments(call)
    do = do if all(stride % 16 == 0 for stride in do.stride()[:3]) else do.contiguous()
    if call.kind == CHANNEL:
        assert saved is not None
        return channel_backward(call, do, saved, state, dfinal, dstate, layout)
    return backward(call, do, saved, state, dfinal, dstate, layout, decay_grad)


def forward(call: Call, state: Tensor | None, layout: Layout) -> tuple[Tensor, Tensor, Tensor | None]:
    """o, the final states, and the states at the borders."""
    finish = call.new(*call.state_shape)
    out = torch.empty(call.v.shape, dtype=call.v.dtype, device=call.v.device)
    borders = run_borders(call, layout, call.k, call.v, state, reverse=False) if layout.segmented else None
    run_walk(call, layout, (call.q, call.k, call.v), out, borders, state, finish, reverse=False, transposed=False)
    return out, finish, borders


def backward(
    call: Call, do: Tensor, borders: Tensor | None, state: Tensor | None, dfinal: Tensor | None,
    dstate: Tensor | None, layout: Layout, decay_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """dq, dk, dv and, if asked for, dlog_decay (B, T, H); writes the gradient of `state` into dstate."""
    q, k, v = call.q, call.k, call.v
    assert call.kind != CHANNEL
    behind = run_borders(call, layout, q, do, dfinal, reverse=True) if layout.segmented else None
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    dg, met = None, None
    if decay_grad:
        dg = call.new(*q.shape[:3])
        met = Met(call.new(*q.shape[:3]), call.new(layout.stretches, call.H), behind, dfinal)
    run_walk(call, layout, (do, v, k), dq, borders, state, None, reverse=False, transposed=True, met=met)
    if max(call.K, call.V) <= 128:
        run_grads(call, layout, do, dk, dv, behind, dfinal, dstate, met, dg)
    else:
        run_walk(call, layout, (v, do, q), dk, behind, dfinal, None, reverse=True, transposed=True)
        run_walk(call, layout, (k, q, do), dv, behind, dfinal, dstate, reverse=True, transposed=False)
    return dq, dk, dv, dg


def channel_borders(call: Call, layout: Layout, b: Tensor, c: Tensor, start: Tensor | None, *, reverse: bool) -> Tensor:
    """The states (K, V) at the borders of segments under per-channel decay; their gradients in reverse."""
    H, K, V = call.H, call.K, call.V
    borders, weights = call.new(layout.borders, H, K, V), call.new(layout.stretches, H, K)
    _channel_states(call, layout, (b, c), (borders, weights, start, None, None, None, None), reverse)
    launch(join_kernel, layout.documents * H * cdiv(K, 64) * cdiv(V, 64), (
        borders, weights, borders, layout.first,
    ), (layout.per_row,), dict(
        H=H, K=K, V=V, BK=64, BV=64, KIND=call.kind, PACKED=call.cu is not None, REVERSE=reverse, HAS_FINISH=False,
    ), 4)  # fmt: skip
    return borders


def _channel_states(
    call: Call, layout: Layout, inputs: tuple[Tensor, Tensor],
    tensors: tuple[Tensor | None, ...], reverse: bool,
) -> None:  # fmt: skip
    """tensors: from `borders` to `through`, as in the kernel."""
    from linscale.ops.decay_attention.kernels.hopper_states import hopper_channel_states_kernel

    b, c = inputs
    borders, weights, start, finish, states, gradients, through = tensors
    spare = call.new(0)
    launch(hopper_channel_states_kernel, layout.stretches * call.H, (
        b, c, call.g, *(spare if x is None else x for x in tensors), call.masks(CHUNK), *layout.table,
        chunk_table(call),
    ), (
        *b.stride()[:3], *c.stride()[:3], *call.g_strides, layout.length, layout.per_row, layout.span, call.scale,
    ), dict(
        H=call.H, K=call.K, V=call.V, C=CHUNK, PACKED=call.cu is not None, REVERSE=reverse,
        EVERY_CHUNK=states is not None, SEGMENTED=states is not None and layout.segmented,
        HAS_START=start is not None, HAS_FINISH=finish is not None, PARTS=call.precision.parts, WARPS=warps(call.V),
    ), warps(call.V))  # fmt: skip


def chunk_table(call: Call) -> Tensor:
    """For each packed document the number of its first chunk."""
    return call.q if call.cu is None else Layout(call.q, call.cu, CHUNK).first


def channel_forward(call: Call, state: Tensor | None, layout: Layout, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """o, the final states, and what the backward pass needs of every chunk."""
    from linscale.ops.decay_attention.kernels.hopper_channel import hopper_channel_kernel

    q, k, v, H, K, V = call.q, call.k, call.v, call.H, call.K, call.V
    finish = call.new(*call.state_shape)
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    borders = channel_borders(call, layout, k, v, state, reverse=False) if layout.segmented else None
    documents = call.state_shape[0]
    chunks = call.plan.length // CHUNK + documents if call.cu is not None else documents * cdiv(call.plan.length, CHUNK)
    saved = call.new(chunks if save else 0, H, V, K, dtype=v.dtype)
    flags = torch.zeros(layout.stretches * H, dtype=torch.int32, device=q.device)
    for strong in (False, True):
        launch(hopper_channel_kernel, layout.stretches * H, (
            q, k, v, call.g, out, saved, *(finish if x is None else x for x in (borders, state)), finish, flags,
            call.masks(CHUNK), *layout.table, chunk_table(call),
        ), (
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *call.g_strides,
            layout.length, layout.per_row, layout.span, call.scale,
        ), dict(
            H=H, K=K, V=V, C=CHUNK, PACKED=call.cu is not None, SEGMENTED=layout.segmented,
            HAS_START=state is not None, SAVE=save, STRONG=strong, PARTS=call.precision.parts,
            WARPS=warps(V),
        ), warps(V))  # fmt: skip
    return out, finish, saved


def channel_backward(
    call: Call, do: Tensor, saved: Tensor, state: Tensor | None, dfinal: Tensor | None, dstate: Tensor | None,
    layout: Layout,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv and dlog_decay."""
    from linscale.ops.decay_attention.kernels.hopper_channel_grads import hopper_channel_grads_kernel

    q, k, v, g, H, K, V = call.q, call.k, call.v, call.g, call.H, call.K, call.V
    behind = channel_borders(call, layout, q, do, dfinal, reverse=True) if layout.segmented else None
    gradients, through = torch.empty_like(saved), call.new(saved.shape[0], H, K)
    _channel_states(call, layout, (q, do), (behind, None, dfinal, dstate, saved, gradients, through), True)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    dg = torch.empty(q.shape, dtype=g.dtype, device=q.device)
    flags = torch.zeros(layout.stretches * H, dtype=torch.int32, device=q.device)
    for strong in (False, True):
        launch(hopper_channel_grads_kernel, layout.stretches * H, (
            q, k, v, g, do, dq, dk, dv, dg, saved, gradients, through, flags, call.masks(CHUNK), *layout.table,
            chunk_table(call),
        ), (
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *call.g_strides, *do.stride()[:3],
            layout.length, layout.per_row, layout.span, call.scale,
        ), dict(
            H=H, K=K, V=V, C=CHUNK, PACKED=call.cu is not None, STRONG=strong, PARTS=call.precision.parts,
            WARPS=8,
        ), 8)  # fmt: skip
    return dq, dk, dv, dg
