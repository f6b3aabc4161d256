"""`linear_scan` on a GPU: which programs run, over which channels and segments of time, for one call.

It is bound by memory: where the channels alone fill the device, x and decay are read once and h is written once. Where
they do not, time is cut into segments: what each does to h, the same scan over these totals, then each segment from the
h before it, which reads x and decay once more. `cut` decides by shape alone, so that two runs give the same bits.

Registered as custom operators, so that torch.compile sees one node with known shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from linscale.ops.launch import launch
from linscale.ops.linear_scan.kernels import backward_kernel, forward_kernel, totals_kernel
from linscale.ops.packing import document_lengths

NO_GRAD, EACH, SUM_TIME, SUM_CHANNELS = range(4)  # as in kernels.py
WARPS = 1  # more would pass the h of their blocks on through shared memory
LANE_BYTES = 32 * WARPS * 16  # every thread of a program loads 16 bytes at a time
ROW_BYTES = 64  # of neighbouring channels in one program, unless steps are few
STEPS = 8  # of a block, at most
STAGES = 3  # tiles on their way
FILL = 256  # programs that keep a device busy: with fewer, time is cut into segments
LEAST_SEGMENT = 512  # steps
LEAST_SHARED = 16  # neighbouring channels under one decay from which programs are cut along it


class Cut(NamedTuple):
    """Who works on what. A tile is U steps of S blocks of BC channels.

    inner, tiles    channel tiles divide runs of `inner` channels; there are `tiles` of them in all
    segments, span  of time: how many, and their steps
    """

    U: int
    S: int
    BC: int
    inner: int
    tiles: int
    segments: int
    span: int


def cut(rows: int, T: int, C: int, inner: int, itemsize: int, steps: int) -> Cut:
    """The one place where shapes decide how a scan of (rows, T, C) runs, with items of x `itemsize` bytes each.

    steps  of a block, at most
    """
    U = min(steps, triton.next_power_of_2(T))
    blocks = triton.next_power_of_2(triton.cdiv(T, U))
    lanes = LANE_BYTES // itemsize
    S = min(LANE_BYTES // ROW_BYTES, blocks)
    BC = min(max(1, lanes // S), triton.next_power_of_2(inner))
    S = min(max(1, lanes // BC), blocks)
    tiles = C // inner * triton.cdiv(inner, BC)
    segments = 1
    if rows * tiles < FILL:
        segments = min(triton.cdiv(4 * FILL, rows * tiles), triton.cdiv(T, max(LEAST_SEGMENT, U * S)))
    span = triton.cdiv(triton.cdiv(T, segments), U * S) * U * S
    return Cut(U, S, BC, inner, tiles, triton.cdiv(T, span), span)


class Strided(NamedTuple):
    """A tensor (B, T, ...) and how far apart its rows, its steps and its channels lie: 0 where it has size 1."""

    tensor: Tensor
    row: int
    time: int
    channels: tuple[int, ...]


def aligned(x: Tensor, decay: Tensor) -> tuple[Strided, Strided, tuple[int, ...]]:
    """x and decay with their channels, all axes from 2 on, merged into the same at most 3 axes, of these sizes.

    Where that takes more, x is copied, and if it is still not enough, decay is.
    """
    for attempt in range(3):
        x = x.contiguous() if attempt == 1 else x
        decay = decay.expand(*decay.shape[:2], *x.shape[2:]).contiguous() if attempt == 2 else decay
        sizes: list[int] = []
        merged: list[list[int]] = [[], []]
        strides = [_strides(x), _strides(decay)]
        for axis in range(2, x.ndim):
            size, own = x.shape[axis], [s[axis] for s in strides]
            if size == 1:
                continue
            if sizes and all(m[-1] == s * size for m, s in zip(merged, own, strict=True)):
                sizes[-1] *= size
            else:
                sizes.append(size)
                for m in merged:
                    m.append(0)
            for m, s in zip(merged, own, strict=True):
                m[-1] = s
        if len(sizes) <= 3:
            break
    padding = (1,) * (3 - len(sizes))
    shapes = [Strided(y, s[0], s[1], (*padding, *m)) for y, s, m in zip((x, decay), strides, merged, strict=True)]
    return shapes[0], shapes[1], (*padding, *sizes)


def _strides(x: Tensor) -> tuple[int, ...]:
    return tuple(0 if size == 1 else stride for size, stride in zip(x.shape, x.stride(), strict=True))


class Call:
    """One scan of x (B, T, ...), or back through time of its gradient, as the kernels take it."""

    def __init__(self, x: Tensor, decay: Tensor, cu_seqlens: Tensor | None, *, reverse: bool, steps: int) -> None:
        self.rows, self.T, self.C = x.shape[0], x.shape[1], math.prod(x.shape[2:])
        self.packed, self.reverse = cu_seqlens is not None, reverse
        shared = shared_channels(x.shape, decay.shape)
        self.x, self.decay, sizes = aligned(x, decay)
        self.cut = cut(self.rows, self.T, self.C, self.C if shared < LEAST_SHARED else shared, x.element_size(), steps)
        self.marks = x if cu_seqlens is None else document_marks(cu_seqlens, self.T)
        size = self.cut
        self.sizes = (size.segments, size.inner, size.tiles, size.span, self.T, self.C, *sizes[1:])
        self.strides = (
            self.x.row, self.x.time, *self.x.channels, self.decay.row, self.decay.time, *self.decay.channels,
        )  # fmt: skip
        self.constants = {
            "U": size.U, "S": size.S, "BC": size.BC, "GROUPS": max(1, 3 - sizes.count(1)),
            "IN_TIME": decay.shape[1] > 1, "SHARED": shared >= LEAST_SHARED, "PACKED": self.packed,
        }  # fmt: skip

    def launch(self, kernel: Any, tensors: Sequence[Tensor | None], constants: dict[str, Any]) -> None:
        """tensors  what the kernel takes after x, decay and marks; None for what it does not touch."""
        inputs = (self.x.tensor, self.decay.tensor, self.marks)
        given = [self.marks if y is None else y for y in tensors]
        programs = self.rows * self.cut.segments * self.cut.tiles
        # What a document starts from is found through marks: loads of loads are not worth fetching ahead.
        stages = 1 if self.packed and constants["ENTERING"] else STAGES
        every = {**self.constants, **constants, "STAGES": stages}
        launch(kernel, programs, (*inputs, *given), (*self.sizes, *self.strides), every, WARPS)

    def carries(self, entering: Tensor | None) -> Tensor | None:
        """What each segment ends with, (rows, segments, C) float32, or None if there is only one."""
        if self.cut.segments == 1:
            return None
        shape = (self.rows, self.cut.segments, self.C)
        products, ends = (torch.empty(shape, dtype=torch.float32, device=self.marks.device) for _ in range(2))
        self.launch(totals_kernel, (entering, products, ends), {
            "REVERSE": self.reverse, "ENTERING": self.packed and entering is not None,
        })  # fmt: skip
        return scan(ends, products, None if self.packed else entering, None, final=False, steps=1)[0]


def document_marks(cu_seqlens: Tensor, T: int) -> Tensor:
    """(T+1,) int32: n where document n starts, N behind the last token, -1 elsewhere."""
    marks = torch.full((T + 1,), -1, dtype=torch.int32, device=cu_seqlens.device)
    numbers = torch.arange(cu_seqlens.shape[0], dtype=torch.int32, device=cu_seqlens.device)
    return marks.index_copy_(0, cu_seqlens.long(), numbers)


def scan(
    x: Tensor, decay: Tensor, state: Tensor | None, cu_seqlens: Tensor | None, *, final: bool, steps: int
) -> tuple[Tensor, Tensor | None]:
    """h like x, and the final state (documents, ...) float32 if asked for. state is contiguous; steps as in `cut`."""
    call = Call(x, decay, cu_seqlens, reverse=False, steps=steps)
    h, last = _new_like(x), _new_state(x, cu_seqlens) if final else None
    carries = call.carries(state)
    call.launch(forward_kernel, (state, carries, h, last), {
        "ENTERING": state is not None, "SEGMENTED": carries is not None,
        "FINAL": final,
    })  # fmt: skip
    return h, last


def _new_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)


def _new_state(x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    documents = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return torch.empty((documents, *x.shape[2:]), dtype=torch.float32, device=x.device)


def shared_channels(shape: Sequence[int], decay_shape: Sequence[int]) -> int:
    """How many neighbouring channels share every decay: the product of x's last axes where decay's size is 1."""
    shared = 1
    for size, own in zip(reversed(shape[2:]), reversed(decay_shape[2:]), strict=True):
        if own != 1:
            break
        shared *= size
    return shared


class DecayGrad:
    """Where the gradient of the decay goes inside a kernel, and what is summed behind it.

    A program sums over the time that it walks, or over its channels; the rest is summed by torch, whose sums, unlike
    atomic additions, come out the same every time.
    """

    def __init__(self, shape: Sequence[int], decay: Tensor) -> None:
        self.shape, self.decay = tuple(shape), decay
        self.shared = shared_channels(shape, decay.shape)
        self.kind = EACH
        if decay.shape[1] == 1 and shape[1] > 1:
            self.kind = SUM_TIME
        elif self.shared >= LEAST_SHARED:
            self.kind = SUM_CHANNELS

    def new(self, size: Cut) -> Tensor:
        whole = self.kind == EACH and self.shape == tuple(self.decay.shape)
        dtype = self.decay.dtype if whole else torch.float32
        rows, T = self.shape[:2]
        shape = {
            EACH: self.shape, SUM_TIME: (rows, size.segments, *self.shape[2:]), SUM_CHANNELS: (rows, T, size.tiles)
        }[self.kind]  # fmt: skip
        return torch.empty(shape, dtype=dtype, device=self.decay.device)

    def finish(self, partial: Tensor) -> Tensor:
        """The gradient, in the decay's own shape and dtype."""
        if self.kind == SUM_CHANNELS:
            partial = partial.unflatten(2, (math.prod(self.shape[2:]) // self.shared, -1)).sum(-1)
            axis, left = len(self.shape), self.shared
            while left > 1:
                axis -= 1
                left //= self.shape[axis]
            partial = partial.reshape(*self.shape[:axis], *(1,) * (len(self.shape) - axis))
        return partial.sum_to_size(self.decay.shape).to(self.decay.dtype).contiguous()


def scan_backward(
    dh: Tensor, dfinal: Tensor | None, h: Tensor | None, decay: Tensor, state: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of x, of decay if h is given, and of state if it is."""
    grad = None if h is None else DecayGrad(dh.shape, decay)
    call = Call(dh, decay, cu_seqlens, reverse=True, steps=STEPS)
    dx = _new_like(dh)
    da = None if grad is None else grad.new(call.cut)
    dstate = None if state is None else torch.empty_like(state)
    carries = call.carries(dfinal)
    call.launch(backward_kernel, (dfinal, carries, h, state, dx, da, dstate), {
        "ENTERING": dfinal is not None,
        "SEGMENTED": carries is not None, "DECAY_GRAD": NO_GRAD if grad is None else grad.kind,
        "STATE": state is not None,
    })  # fmt: skip
    return dx, None if grad is None or da is None else grad.finish(da), dstate


# The custom operators. Outputs that are not asked for come back empty.
_DEFINITIONS = torch.library.Library("linscale", "FRAGMENT")
_DEFINITIONS.define("linear_scan(Tensor x, Tensor decay, Tensor? state, Tensor? cu_seqlens) -> (Tensor, Tensor)")
_DEFINITIONS.define(
    "linear_scan_backward(Tensor dh, Tensor? dfinal, Tensor? h, Tensor decay, Tensor? state, Tensor? cu_seqlens)"
    " -> (Tensor, Tensor, Tensor)"
)


def _forward(x: Tensor, decay: Tensor, state: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    if cu_seqlens is not None:
        document_lengths(cu_seqlens, x)
    h, final = scan(x, decay, None if state is None else state.contiguous(), cu_seqlens, final=True, steps=STEPS)
    assert final is not None
    return h, final


def _forward_shapes(x: Tensor, decay: Tensor, state: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    return _new_like(x), _new_state(x, cu_seqlens)


def _backward(
    dh: Tensor, dfinal: Tensor | None, h: Tensor | None, decay: Tensor, state: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    dfinal, state = (None if y is None else y.contiguous() for y in (dfinal, state))
    dx, da, dstate = scan_backward(dh, dfinal, h, decay, state, cu_seqlens)
    nothing = [dh.new_empty(0, dtype=torch.float32) for y in (da, dstate) if y is None]
    return dx, nothing.pop() if da is None else da, nothing.pop() if dstate is None else dstate


def _backward_shapes(
    dh: Tensor, dfinal: Tensor | None, h: Tensor | None, decay: Tensor, state: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    da, dstate = (dh.new_empty(0, dtype=torch.float32) for _ in range(2))
    return (
        _new_like(dh),
        da if h is None else torch.empty(decay.shape, dtype=decay.dtype, device=dh.device),
        dstate if state is None else torch.empty(state.shape, dtype=torch.float32, device=dh.device),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, decay, state, cu_seqlens = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0] if ctx.needs_input_grad[1] else None, decay, state, cu_seqlens)
    ctx.shape, ctx.dtype = output[0].shape, output[0].dtype


def _gradients(ctx: Any, backward: Any, dh: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
    """For x, decay, state and cu_seqlens."""
    h, decay, state, cu_seqlens = ctx.saved_tensors
    if dh is None:
        dh = torch.zeros((), dtype=ctx.dtype, device=decay.device).expand(ctx.shape)
    dx, da, dstate = backward(dh, dfinal, h, decay, state, cu_seqlens)
    return dx, None if h is None else da, None if state is None else dstate, None


def _differentiate(ctx: Any, dh: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, torch.ops.linscale.linear_scan_backward, dh, dfinal)


class LinearScan(torch.autograd.Function):
    """h, final = LinearScan.apply(x, decay, state, cu_seqlens): the operator without the dispatcher's detours."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = _forward(*inputs)
        _keep(ctx, inputs, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, _backward, dh, dfinal)


for _name, _run, _shapes in (
    ("linear_scan", _forward, _forward_shapes),
    ("linear_scan_backward", _backward, _backward_shapes),
):
    _DEFINITIONS.impl(_name, _run, "CUDA")
    _DEFINITIONS.impl(_name, _run, "CPU")  # Triton's interpreter
    torch.library.register_fake(f"linscale::{_name}", _shapes)
torch.library.register_autograd("linscale::linear_scan", _differentiate, setup_context=_keep)
