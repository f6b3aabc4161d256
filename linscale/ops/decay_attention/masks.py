"""The 0/1 matrices that the kernels for per-channel decay multiply with and mask by: small constants, made once."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

LEVELS = 8


@cache
def masks(chunk: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(4 + 4 LEVELS, C, C), rows r, columns c. As factors on the left, sums over steps c for each row r.

    0 r >= c, the steps up to r;  1 r < c, those behind it;  2 r <= c;  3 r > c
    then one for each level l, where the rows are cut into blocks of C / 2^l, and those into halves (empty ones, once a
    block is one row):
    BETWEEN    the steps between r and the middle of its block: (middle, r] or (r, middle]
    LEAF       same block, r >= c
    BLOCKS     same block
    SEPARATED  same block, not the same half, r > c
    """
    rows = torch.arange(chunk, device=device)
    r, c = rows[:, None], rows[None, :]
    apart = r ^ c
    levels = [(chunk >> level, chunk >> (level + 1)) for level in range(LEVELS)]
    matrices = [r >= c, r < c, r <= c, r > c]
    matrices += [(apart < half) & ((r >= c) == ((r & half) != 0)) for _, half in levels]
    matrices += [(apart < max(block, 1)) & (r >= c) for block, _ in levels]
    matrices += [apart < max(block, 1) for block, _ in levels]
    matrices += [(apart < block) & (apart >= half) & (half > 0) & (r > c) for block, half in levels]
    return torch.stack([x.expand(chunk, chunk) for x in matrices]).to(dtype)
