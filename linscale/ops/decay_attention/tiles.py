"""Sizes of the kernels' tiles, a table by widths and dtype, and how products are taken. Nothing is searched for."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from linscale.ops.decay_attention.kernels.common import BF16


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

    In bf16 narrow heads are padded to 64: with tiles of 16 and 32 columns Triton 3.6 compiled channel.py to accesses
    out of bounds (seen on an H200).
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
