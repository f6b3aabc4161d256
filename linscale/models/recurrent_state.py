"""The state of a layer of a recurrent transformer: S places of a block each, (B, S, K, D), and how it comes about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

FORGETS, TAKES_OVER, CLOSES = 6, 8, 10  # S: alpha is 0; else; and with the last block of a text closed as published

# What lies there, as far as the current block has come.
LEFT_K, LEFT_V = 0, 1  # keys and values of L of the block before: all K, or 0 in the first block
RIGHT_K, RIGHT_V = 2, 3  # of R of this block
NEXT_K, NEXT_V = 4, 5  # of L of this block
OLDER = 6  # p for R: y of two blocks before; where this block has come, its own y already
NEWER = 7  # p for L: y of the block before; in the first block x
CLOSED_K, CLOSED_V = 8, 9  # of c of this block, where the last block of a text is closed as published


def turned(cache: Tensor) -> Tensor:
    """The state when its block is full: the next one begins."""
    slots = cache.shape[1]
    fresh = torch.zeros_like(cache[:, RIGHT_K : NEXT_V + 1])
    kept = [cache[:, NEXT_K : NEXT_V + 1], fresh]
    if slots >= TAKES_OVER:
        kept += [cache[:, NEWER : NEWER + 1], cache[:, OLDER : OLDER + 1]]
    if slots == CLOSES:
        kept.append(fresh[:, :2])
    return torch.cat(kept, 1)


class Ends:
    """The state behind the last token of each row, while its blocks go by."""

    def __init__(self, x: Tensor, cache: Tensor | None, lengths: Tensor | None, block: int, slots: int) -> None:
        """x (B, T, D) begins where a block begins, behind `cache`; `lengths` (B,) of it are tokens, None: all."""
        self.block, self.slots, self.fresh = block, slots, cache is None
        self.lengths = torch.full((len(x),), x.shape[1], device=x.device) if lengths is None else lengths
        self.last = (self.lengths - 1).div(block, rounding_mode="floor")  # (B,); -1: nothing is read
        self.ending = {(x.shape[1] - 1) // block} if lengths is None else set(self.last.tolist())
        self.state = x.new_zeros(len(x), slots, block, x.shape[2]) if cache is None else cache

    def add(self, j: int, parts: Sequence[Any]) -> None:
        """Keep the state of the rows that end in block j: parts are the left, right and next keys and values; and with
        a left state (y, older), newer and the closed keys and values."""
        if j not in self.ending:
            return
        size, state = self.block, self.state
        filled = (self.lengths - j * size)[:, None]  # (B, 1), of the rows that end here at most K
        written = (torch.arange(size, device=state.device) < filled)[..., None]  # (B, K, 1)
        none = torch.zeros_like(state[:, 0])

        def whole(z: Tensor | None) -> Tensor:
            return none if z is None else pad(z.to(state.dtype), (0, 0, 0, size - z.shape[1]))

        def so_far(pair: tuple[Tensor, ...] | None) -> list[Tensor]:
            return [torch.where(written, whole(z), 0.0) for z in pair or (None, None)]

        past, own, following, *others = parts
        kept = [*map(whole, past or (None, None)), *so_far(own), *so_far(following)]
        if others:
            (y, older), newer, closed = others
            first = self.fresh and j == 0
            kept += [torch.where(written, whole(y), whole(older)), so_far((newer,))[0] if first else whole(newer)]
            kept += so_far(closed) if self.slots == CLOSES else []
        after = torch.stack(kept, 1)
        after = torch.where((filled >= size)[..., None, None], turned(after), after)
        self.state = torch.where((self.last == j)[:, None, None, None], after, state)


def behind(past: tuple[Tensor, Tensor] | None, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values (B, m, D) behind those of a whole block, if there is one."""
    return (k, v) if past is None else (torch.cat([past[0], k], 1), torch.cat([past[1], v], 1))


def window_mask(past: tuple[Tensor, Tensor] | None, x: Tensor) -> Tensor | None:
    """(1, 1, m, K + m): the whole block before, and in its own what comes before; None where nothing is before."""
    if past is None:
        return None
    m, before = x.shape[1], past[0].shape[1]
    return torch.ones(m, before + m, dtype=torch.bool, device=x.device).tril(before)[None, None]


def taken(x: Tensor, places: Tensor) -> Tensor:
    """x (B, T, D) at places (B, n) -> (B, n, D)."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))
