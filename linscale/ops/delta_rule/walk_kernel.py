# mypy: allow-untyped-defs
"""`walk` on a GPU: one launch, where the loop of walk.py makes two or three for every chunk.

A program holds BV columns of one head's state, and walks with them over the chunks of one sequence: columns do not
mix.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from linscale.ops.launch import launch

COLUMNS = 16  # of a state in one program: few, so that one long sequence has work for many
DEEP = 64  # K up to which the next two chunks are on their way, beyond it one


@triton.jit
def delta_walk_kernel(
    update, transition, decay, state, cu_chunks, met, final,
    chunks, B,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DECAYS: tl.constexpr,
    PACKED: tl.constexpr, BACKWARDS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Shapes as in `walk`, all contiguous float32. One program a (sequence, head, BV columns)."""
    across: tl.constexpr = (V + BV - 1) // BV
    program = tl.program_id(0)
    head = (program // across) % H
    sequence = program // (across * H)
    first = 0
    count = chunks
    row = sequence
    if PACKED:
        first = tl.load(cu_chunks + sequence).to(tl.int32)
        count = tl.load(cu_chunks + sequence + 1).to(tl.int32) - first
        row = 0
    wide = tl.arange(0, BK)
    columns = (program % across) * BV + tl.arange(0, BV)
    inside = wide[:, None] * V + columns[None, :]
    known = (wide[:, None] < K) & (columns[None, :] < V)
    square = wide[:, None] * K + wide[None, :]
    in_square = (wide[:, None] < K) & (wide[None, :] < K)
    own = (tl.cast(sequence, tl.int64) * H + head) * K * V
    now = tl.load(state + own + inside, mask=known, other=0.0)
    for step in tl.range(0, count, num_stages=STAGES):
        n = first + (count - 1 - step if BACKWARDS else step)
        at = (tl.cast(n, tl.int64) * B + row) * H + head
        matrix = tl.load(transition + at * K * K + square, mask=in_square, other=0.0)
        kept = tl.load(update + at * K * V + inside, mask=known, other=0.0)
        tl.store(met + at * K * V + inside, now, mask=known)
        if DECAYS:
            kept += tl.load(decay + at) * now
        else:
            kept += now
        if BACKWARDS:
            matrix = tl.trans(matrix)
        now = tl.dot(matrix, now, kept, input_precision="tf32x3")
    tl.store(final + own + inside, now, mask=known)


def run(
    update: Tensor, transition: Tensor, decay: Tensor | None, state: Tensor, cu_chunks: Tensor | None, backwards: bool
) -> tuple[Tensor, Tensor]:
    """`walk` of float32 tensors."""
    update, transition, state = update.contiguous(), transition.contiguous(), state.contiguous()
    chunks, B, H, K, V = update.shape
    met, final = torch.empty_like(update), torch.empty_like(state)
    BK = max(16, triton.next_power_of_2(K))
    constants: dict[str, Any] = {
        "H": H, "K": K, "V": V, "BK": BK, "BV": COLUMNS, "DECAYS": decay is not None,
        "PACKED": cu_chunks is not None, "BACKWARDS": backwards, "STAGES": 3 if BK <= DEEP else 2,
    }  # fmt: skip
    programs = len(state) * H * triton.cdiv(V, COLUMNS)
    decay = state if decay is None else decay.contiguous()
    cu = state if cu_chunks is None else cu_chunks.contiguous()
    launch(delta_walk_kernel, programs, (update, transition, decay, state, cu, met, final), (chunks, B), constants, 4)
    return met, final
