"""The forward and the backward pass on a Hopper GPU: when its kernels serve a call, how sequences are cut, what is
launched. Per-channel decay is in hopper_channel.py."""

from __future__ import annotations

import importlib.util
from functools import cache, lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from linscale.ops.backend import interpreting
from linscale.ops.decay_attention import hopper_channel
from linscale.ops.decay_attention.layout import CHANNEL, HEAD, NONE, Call, Layout, Plan, Strides, new_like
from linscale.ops.decay_attention.tiles import cdiv
from linscale.ops.launch import MOST, Launch

CHUNK = hopper_channel.CHUNK
TESTED = ((3, 6),)  # versions of Triton
SEGMENT_COST = 3  # chunks: what reading and writing the states of a segment costs
STATES_COST = 0.4  # of a walk: what finding the states between segments costs


@cache
def obstacle(device: torch.device) -> str | None:
    """Why the Hopper kernels cannot run on this device, or None."""
    if device.type != "cuda" or interpreting():
        return "they are compiled for a GPU, and only for one"
    if torch.version.hip is not None:  # AMD's gfx90a calls itself 9.0 too
        return "they are written for NVIDIA's GPUs"
    if torch.cuda.get_device_capability(device) != (9, 0):
        return "they use instructions of compute capability 9.0 alone"
    if importlib.util.find_spec("triton.experimental.gluon.language.nvidia.hopper") is None:
        return "this version of Triton has no Gluon"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) not in TESTED:
        versions = ", ".join(f"{major}.{minor}" for major, minor in TESTED)
        return f"Gluon is experimental, and they were tested with Triton {versions} alone, not {triton.__version__}"
    return None


def serves(call: Call) -> bool:
    """Whether the Hopper kernels run this call."""
    return call.plan.for_hopper and obstacle(call.q.device) is None


def aligned(x: Tensor) -> Tensor:
    """x, at an address from which 16 bytes can be copied at a time; itself unless it is a slice cut elsewhere."""
    return x.clone(memory_format=torch.contiguous_format) if x.data_ptr() % 16 else x


def aligned_call(call: Call) -> Call:
    """The call with `aligned` inputs: the plan of a copy is its own, for a slice's strides are not kept by it."""
    q, k, v, g = (aligned(x) for x in (call.q, call.k, call.v, call.g))
    if q is call.q and k is call.k and v is call.v and g is call.g:
        return call
    return Call(q, k, v, None if call.kind == NONE else g, call.cu, call.scale)


def walk_segments(call: Call) -> Layout:
    """Segments for one call, as many programs at a time as the device holds; o and all gradients walk over the same."""
    plan = call.plan
    slots = multiprocessors(call.q.device) * (2 if plan.kind != CHANNEL and max(plan.K, plan.V) == 64 else 1)
    chunks = int(cdiv(plan.length, CHUNK))  # int: symbols of torch.compile have no hash
    count = cut(int(plan.rows * plan.H * cdiv(min(plan.K, plan.V), 128)), chunks, slots)
    return Layout(call.q, call.cu, cdiv(chunks, count) * CHUNK)


@cache
def multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@lru_cache(MOST)
def cut(heads: int, chunks: int, slots: int) -> int:
    """How many segments to cut `heads` sequences of `chunks` chunks into: as few rounds, as short, as can be."""

    def cost(segments: int) -> float:
        rounds = cdiv(heads * segments, slots)
        return rounds * (cdiv(chunks, segments) + SEGMENT_COST) * (1.0 + STATES_COST * (segments > 1))

    return min(range(1, min(64, chunks) + 1), key=cost)


def run_forward(call: Call, state: Tensor | None, save: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """o, the final states and, if `save`, what the backward pass needs: the states at the borders of segments, or of
    chunks under per-channel decay."""
    call = aligned_call(call)
    layout = walk_segments(call)
    if call.kind == CHANNEL:
        return hopper_channel.run_forward(call, layout, state, save)
    finish, out = call.new(*call.state_shape), new_like(call.v)
    borders = run_borders(call, layout, call.k, call.v, state, reverse=False) if layout.segmented else None
    walk(call, layout, (call.q, call.k, call.v), out, States(borders, state, finish), early=layout.segmented)
    return out, finish, borders if save else None


def run_backward(
    call: Call, do: Tensor, saved: Tensor | None, state: Tensor | None, dfinal: Tensor | None, dstate: Tensor | None,
    decay_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """dq, dk, dv and dlog_decay, (B, T, H) or (B, T, H, K); writes the gradient of `state` into dstate."""
    call, do = aligned_call(call), aligned(do)
    q, k, v = call.q, call.k, call.v
    layout = walk_segments(call)
    if any(stride % 16 for stride in do.stride()[:3]):
        do = do.clone(memory_format=torch.contiguous_format)  # contiguous() keeps any stride of a batch of one
    if call.kind == CHANNEL:
        assert saved is not None
        return hopper_channel.run_backward(call, layout, do, saved, dfinal, dstate)
    saved, behind = saved if layout.segmented else None, None
    dq, dk, dv = new_like(q), new_like(k), new_like(v)
    wide = max(call.K, call.V) > 128
    # What segments add to the gradients of states: by the walk that gives dq, where it has registers enough for that.
    widest = {NONE: 128, HEAD: 64}.get(call.kind, 0)
    adds = layout.segmented and not decay_grad and call.V <= call.K <= widest
    if layout.segmented and not adds:
        behind = run_borders(call, layout, q, do, dfinal, reverse=True)
    if wide:
        walk(call, layout, (do, v, k), dq, States(saved, state, None), transposed=True, early=layout.segmented)
        walk(call, layout, (v, do, q), dk, States(behind, dfinal, None), reverse=True, transposed=True, early=True)
        walk(call, layout, (k, q, do), dv, States(behind, dfinal, dstate), reverse=True, early=True)
        return dq, dk, dv, None
    dg = sums = crossing = beside = None
    if adds:
        added, weights = call.new(layout.borders, call.H, call.K, call.V), call.new(layout.stretches, call.H, call.K)
        beside = Beside(None, None, weights, added, dfinal)
    elif decay_grad:
        dg, sums, crossing = call.new(*q.shape[:3]), call.new(*q.shape[:3]), call.new(layout.stretches, call.H)
        beside = Beside(sums, crossing, None, behind, dfinal)
    early = layout.segmented and not adds
    walk(call, layout, (do, v, k), dq, States(saved, state, None), transposed=True, beside=beside, early=early)
    if adds:
        behind = hopper_channel.join(call, layout, added, weights, reverse=True)
    spared = (q if x is None else x for x in (dg, sums, crossing, behind, dfinal, dstate))
    _grads(call.plan, do.stride(), layout.span, behind is not None, decay_grad, dfinal is not None, dstate is not None)(
        layout.stretches, (q, k, v, call.g, do, dk, dv, *spared, *layout.table)
    )
    return dq, dk, dv, dg


class States(NamedTuple):
    """Of a walk: the states at the borders of segments, that it starts from, and where the one it ends with goes."""

    borders: Tensor | None
    start: Tensor | None
    finish: Tensor | None


class Beside(NamedTuple):
    """Beside dq, of the walk that gives it: either, for the gradient of log decays, sums (B, T, H) and crossing
    (segments, H), from the gradients `behind` of the states at the borders; or else what every segment adds to those,
    into `behind`, and its decay, into weights (segments, H, K). final: the gradients of the final states."""

    sums: Tensor | None
    crossing: Tensor | None
    weights: Tensor | None
    behind: Tensor | None
    final: Tensor | None


def walk(
    call: Call, layout: Layout, inputs: tuple[Tensor, Tensor, Tensor], out: Tensor, states: States, *,
    reverse: bool = False, transposed: bool = False, beside: Beside | None = None, early: bool,
) -> None:  # fmt: skip
    """One walk of all segments. inputs: a, b, c as in kernels/walk.py; early: not the first kernel of a pass."""
    a, b, c = inputs
    borders, start, finish = states
    d, (sums, crossing, weights, behind, final) = (c, (None,) * 5) if beside is None else (call.q, beside)
    given = tuple(x is not None for x in (borders, start, finish, final))
    launch = _walk(
        call.plan, (*a.stride(), *b.stride(), *c.stride(), *d.stride()), (a.shape[3], c.shape[3]), layout.span, given,
        (reverse, transposed, True, sums is not None, weights is not None), early,
    )  # fmt: skip
    spared = (out if x is None else x for x in (borders, weights, start, finish, sums, behind, final, crossing))
    launch(layout.stretches, (a, b, c, d, call.g, out, *spared, *layout.table))


def run_borders(call: Call, layout: Layout, b: Tensor, c: Tensor, start: Tensor | None, *, reverse: bool) -> Tensor:
    """The states (K, V) at the borders of segments; their gradients in reverse."""
    borders = call.new(layout.borders, call.H, call.K, call.V)
    weights = call.new(layout.stretches, call.H, call.K)
    launch = _walk(
        call.plan, (*b.stride(), *b.stride(), *c.stride(), *c.stride()), (call.K, call.V), layout.span,
        (True, start is not None, False, False), (reverse, False, False, False, False), False,
    )  # fmt: skip
    first = borders if start is None else start
    launch(layout.stretches, (
        b, b, c, c, call.g, borders, borders, weights, first, *(borders,) * 5, *layout.table,
    ))  # fmt: skip
    return hopper_channel.join(call, layout, borders, weights, reverse=reverse)


@lru_cache(MOST)
def _walk(
    plan: Plan, strides: Strides, widths: tuple[int, int], span: int, given: tuple[bool, ...], does: tuple[bool, ...],
    early: bool,
) -> Launch:  # fmt: skip
    """strides: of a, b, c, d; widths: of a and c; given: borders, start, finish, final; does: reverse, transposed,
    output, sums, gradient."""
    from linscale.ops.decay_attention.kernels.hopper_walk import hopper_walk_kernel

    (A, X), (segmented, has_start, has_finish, has_final) = widths, given
    reverse, transposed, output, sums, gradient = does
    # Without an output, half as wide twice fills a multiprocessor better.
    BX = min(X, 128 if output else 64)
    stages = (2 if A == 256 else 3) if output else 4 - A // 128
    warps = BX // 16  # a warpgroup takes 64 rows of the transposed state
    return Launch(hopper_walk_kernel, plan.H * (X // BX), (
        *strides[:3], *strides[4:7], *strides[8:11], *strides[12:15], *plan.g_strides,
        plan.length, cdiv(plan.length, span), span, plan.scale,
    ), dict(
        H=plan.H, A=A, X=X, BX=BX, C=CHUNK, KIND=plan.kind, PACKED=plan.packed, SEGMENTED=segmented,
        REVERSE=reverse, TRANSPOSED=transposed, OUTPUT=output, SUMS=sums, GRADIENT=gradient, HAS_START=has_start,
        HAS_FINISH=has_finish, HAS_FINAL=has_final, STAGES=stages, WARPS=warps,
    ), warps, early=early)  # fmt: skip


@lru_cache(MOST)
def _grads(
    plan: Plan, do: Strides, span: int, segmented: bool, decay_grad: bool, has_final: bool, has_dstart: bool
) -> Launch:
    """dk and dv at once, of heads up to 128 wide; and dg (B, T, H)."""
    from linscale.ops.decay_attention.kernels.hopper_walk_grads import hopper_grads_kernel

    warps = 8 if max(plan.K, plan.V) > 64 else 4
    return Launch(hopper_grads_kernel, plan.H, (
        *plan.strides, *do[:3], plan.length, cdiv(plan.length, span), span, plan.scale,
    ), dict(
        H=plan.H, K=plan.K, V=plan.V, C=CHUNK, KIND=plan.kind, PACKED=plan.packed, SEGMENTED=segmented,
        DECAY_GRAD=decay_grad, HAS_FINAL=has_final, HAS_DSTART=has_dstart, STAGES=2, WARPS=warps,
    ), warps, early=True)  # fmt: skip
