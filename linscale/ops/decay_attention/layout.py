"""One call of the kernels: its inputs as they take them, and the cuts of its sequences into chunks and segments."""

from __future__ import annotations

import torch
from torch import Tensor

from linscale.ops.backend import interpreting
from linscale.ops.decay_attention.masks import masks
from linscale.ops.decay_attention.tiles import cdiv, chunk_tiles, precision_of, walk_tiles

NONE, HEAD, TOKEN, CHANNEL = range(4)  # as in kernels/common.py
FILL = 256  # programs that keep a device busy; a sequence is cut into segments until there are about as many
LEAST_SEGMENT = 1024  # tokens: below, passing states on costs more than it brings
LARGEST_STRIDE = 1 << 22  # elements between tokens, so that offsets inside a tile fit in 32 bits


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
        self.cu, self.scale = cu_seqlens, float(scale)
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
        if self.g.ndim == 1:
            return 0, 0, 1
        row, token, head = self.g.stride()[:3]
        return row, token, head


def steady(x: Tensor) -> Tensor:
    """x with its last axis dense and its tokens not too far apart; a copy only if they are not."""
    dense = x.ndim < 4 or x.stride(-1) == 1 or x.shape[-1] == 1
    return x if dense and (x.ndim == 1 or x.stride(1) < LARGEST_STRIDE) else x.contiguous()


def walk_layout(call: Call) -> Layout:
    """Segments for the walks of one call, all over the same cuts."""
    tiles = walk_tiles(call.q.dtype, max(call.K, call.V), min(call.K, call.V))
    return call.segments(tiles.chunk, cdiv(min(call.K, call.V), tiles.values))


def state_layout(call: Call) -> Layout:
    """Segments for kernels/states.py."""
    tiles = chunk_tiles(call.q.dtype, call.K, call.V)[0]
    return call.segments(tiles.chunk, cdiv(call.K, tiles.keys) * cdiv(call.V, tiles.values))
