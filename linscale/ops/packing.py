"""Packed documents: several sequences laid end to end in one row, (1, ΣTᵢ, ...), cut at `cu_seqlens`."""

from __future__ import annotations

import torch
from torch import Tensor


def check_packing(cu_seqlens: Tensor, tokens: Tensor) -> None:
    """Raise ValueError unless `cu_seqlens` can belong to a packed row `tokens` (1, T, ...), its values aside."""
    if tokens.shape[0] != 1:
        raise ValueError(f"cu_seqlens needs one packed row (batch 1), got batch {tokens.shape[0]}")
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"cu_seqlens must be (N+1,) int32 or int64, got {tuple(cu_seqlens.shape)} {cu_seqlens.dtype}")
    if cu_seqlens.device != tokens.device:
        raise ValueError(f"cu_seqlens is on {cu_seqlens.device}, the tokens are on {tokens.device}")


def document_lengths(cu_seqlens: Tensor, tokens: Tensor) -> Tensor:
    """Lengths (N,) of the documents of a packed row `tokens` (1, T, ...), after checking that `cu_seqlens` fits it.

    cu_seqlens  (N+1,) integers, 0 = first < ... < last = T
    """
    check_packing(cu_seqlens, tokens)
    lengths = cu_seqlens.diff()
    if cu_seqlens[[0, -1]].tolist() != [0, tokens.shape[1]] or bool((lengths <= 0).any()):
        raise ValueError(f"cu_seqlens must rise strictly from 0 to T = {tokens.shape[1]}, got {cu_seqlens.tolist()}")
    return lengths


def document_positions(cu_seqlens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """For each of `length` packed tokens: its document (T,) and its place in that document, from 0 (T,)."""
    places = torch.arange(length, device=cu_seqlens.device)
    documents = torch.searchsorted(cu_seqlens[1:].contiguous(), places, right=True)
    return documents, places - cu_seqlens[documents]


class ChunkLayout:
    """Each document of a packed row moved to whole chunks of its own, the rest of its last chunk left empty.

    chunks      number of chunks M
    cu_chunks   (N+1,) the documents' boundaries, counted in chunks
    empty       (N,) places left empty behind each document
    """

    def __init__(self, cu_seqlens: Tensor, tokens: Tensor, chunk: int) -> None:
        lengths = document_lengths(cu_seqlens, tokens)
        chunks = (lengths + chunk - 1) // chunk
        self.cu_chunks = torch.cat([chunks.new_zeros(1), chunks.cumsum(0)])
        self.chunks = int(self.cu_chunks[-1])
        self.empty = chunks * chunk - lengths
        documents, places = document_positions(cu_seqlens, tokens.shape[1])
        self._slots = self.cu_chunks[documents] * chunk + places
        self._size = self.chunks * chunk

    def spread(self, x: Tensor) -> Tensor:
        """(1, T, ...) -> (1, M·C, ...), zero where no token is."""
        return x.new_zeros(1, self._size, *x.shape[2:]).index_copy(1, self._slots, x)

    def gather(self, x: Tensor) -> Tensor:
        """(1, M·C, ...) -> (1, T, ...): the inverse of `spread`."""
        return x.index_select(1, self._slots)
