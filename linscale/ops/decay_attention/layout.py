"""One call of the kernels: its inputs as they take them, and the cuts of its sequences into chunks and segments."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from linscale.ops.backend import interpreting
from linscale.ops.decay_attention.masks import masks
from linscale.ops.decay_attention.tiles import cdiv, chunk_tiles, precision_of, walk_tiles
from linscale.ops.launch import MOST

NONE, HEAD, TOKEN, CHANNEL = range(4)  # as in kernels/common.py
FILL = 256  # programs that keep a device busy; a sequence is cut into segments until there are about as many
LEAST_SEGMENT = 1024  # tokens: below, passing states on costs more than it brings
LARGEST_STRIDE = 1 << 22  # elements between tokens, so that offsets inside a tile fit in 32 bits

Strides = tuple[int, ...]


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


class Plan:
    """What calls of the same shapes, strides and dtypes have in common.

    `plan_of` makes one for all of them, so that a call costs the host little. Compared by identity, it is a quick key
    for what else they have in common.

    shape    of q;  width: V;  strides, dtype: of q, k and v;  decay: strides and dtype of log_decay
    strides  from here on of q, k, v and log_decay, each row, token, head
    tiles    those of `chunk_tiles`
    cuts     chunk and slices, as `Call.segments` takes them: of kernels/walk.py, then of kernels/states.py
    for_hopper  whether the kernels of hopper.py take it
    steady   whether every input is, as the function of this name has it
    """

    def __init__(
        self, shape: Sequence[int], width: int, strides: tuple[Strides, Strides, Strides], dtype: torch.dtype,
        decay: tuple[Strides, torch.dtype] | None, packed: bool, scale: float,
    ) -> None:  # fmt: skip
        self.rows, self.length, self.H, self.K = shape
        self.V, self.dtype, self.packed, self.scale = width, dtype, packed, scale
        self.kind, g_strides = NONE, strides[0]
        if decay is not None:
            self.kind, g_strides = {1: HEAD, 3: TOKEN, 4: CHANNEL}[len(decay[0])], decay[0]
        self.precision = precision_of(dtype, None if decay is None else torch.empty(0, dtype=decay[1], device="meta"))
        self.g_strides = (0, 0, *g_strides) if self.kind == HEAD else g_strides[:3]
        self.strides = (*strides[0][:3], *strides[1][:3], *strides[2][:3], *self.g_strides)
        narrow, wide = min(self.K, width), max(self.K, width)
        walks, self.tiles = walk_tiles(dtype, wide, narrow), chunk_tiles(dtype, self.K, width)
        states = self.tiles[0]
        self.cuts = (
            (walks.chunk, cdiv(narrow, walks.values)),
            (states.chunk, cdiv(self.K, states.keys) * cdiv(width, states.values)),
        )
        widths = (self.K, self.K, width, self.K)
        self.for_hopper = _for_hopper(self, decay)
        self.steady = all(is_steady(size, x) for size, x in zip(widths, (*strides, g_strides), strict=True))


def _for_hopper(plan: Plan, decay: tuple[Strides, torch.dtype] | None) -> bool:
    """bf16, heads of whole warpgroups, copied 16 bytes at a time; per-channel decay in bf16 or float32."""
    if plan.dtype != torch.bfloat16 or any(stride % 16 for stride in plan.strides[:9]):
        return False
    if plan.kind != CHANNEL or decay is None:
        return plan.K in (64, 128, 256) and plan.V in (64, 128, 256)
    known = decay[1] in (torch.bfloat16, torch.float32) and not any(stride % 16 for stride in plan.g_strides)
    return known and plan.K == plan.V and plan.K in (64, 128)


plan_of = lru_cache(MOST)(Plan)


class Call:
    """One call's inputs, as the kernels take them, and its cuts into chunks and segments."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, cu_seqlens: Tensor | None, scale: float
    ) -> None:
        plan = _plan(q, k, v, log_decay, cu_seqlens, scale)
        if not plan.steady:
            q, k, v = steady(q), steady(k), steady(v)
            log_decay = None if log_decay is None else steady(log_decay)
            plan = _plan(q, k, v, log_decay, cu_seqlens, scale)
        self.plan, self.q, self.k, self.v = plan, q, k, v
        self.cu = None if cu_seqlens is None else cu_seqlens.contiguous()
        self.g = q if log_decay is None else log_decay
        self.H, self.K, self.V = plan.H, plan.K, plan.V
        self.kind, self.scale, self.precision, self.g_strides = plan.kind, plan.scale, plan.precision, plan.g_strides
        self.state_shape = (plan.rows if cu_seqlens is None else cu_seqlens.shape[0] - 1, plan.H, plan.K, plan.V)

    def segments(self, chunk: int, slices: int) -> Layout:
        """As few segments as fill the device with `slices` programs a head."""
        tokens = self.plan.rows * self.plan.length
        span = max(LEAST_SEGMENT, cdiv(tokens * self.H * slices, FILL))
        return Layout(self.q, self.cu, cdiv(span, chunk) * chunk)

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.q.new_empty(*shape, dtype=dtype)

    def masks(self, chunk: int) -> Tensor:
        return masks(chunk, torch.float32 if interpreting() else torch.bfloat16, self.q.device)


def _plan(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, cu_seqlens: Tensor | None, scale: float
) -> Plan:  # fmt: skip
    make = plan_of if type(q) is Tensor else Plan  # sizes of fake tensors may be symbols, which have no hash
    decay = None if log_decay is None else (log_decay.stride(), log_decay.dtype)
    strides = q.stride(), k.stride(), v.stride()
    return make(q.shape, v.shape[3], strides, q.dtype, decay, cu_seqlens is not None, float(scale))


def steady(x: Tensor) -> Tensor:
    """x with its last axis dense and its tokens not too far apart; a copy only if they are not."""
    return x if is_steady(x.shape[-1], x.stride()) else x.contiguous()


def is_steady(width: int, strides: Strides) -> bool:
    """width: of the last axis."""
    dense = len(strides) < 4 or strides[3] == 1 or width == 1
    return dense and (len(strides) == 1 or strides[1] < LARGEST_STRIDE)


def new_like(x: Tensor) -> Tensor:
    """Room for something of the shape and dtype of x, dense whatever x is."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def walk_layout(call: Call) -> Layout:
    """Segments for the walks of one call, all over the same cuts."""
    return call.segments(*call.plan.cuts[0])


def state_layout(call: Call) -> Layout:
    """Segments for kernels/states.py."""
    return call.segments(*call.plan.cuts[1])
