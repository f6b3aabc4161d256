"""One token through a block of a recurrent transformer, with its state changed in place: what a decoding step takes.

It computes what the block's forward pass does for one token behind a state, and to the same bits. A forward pass makes
a new state of all its places; here one row of a few of them is written, and where a block has become full the next one
begins. Nothing waits for the device and all shapes are fixed: a CUDA graph can hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from linscale.models.recurrent_block import RecurrentBlock
from linscale.models.recurrent_state import (
    CLOSED_K,
    LEFT_K,
    LEFT_V,
    NEWER,
    NEXT_K,
    OLDER,
    RIGHT_K,
    turned,
)

Turn = Callable[[Tensor, Tensor, Tensor], None]
"""See `turn`."""


def turn(state: Tensor, positions: Tensor, active: Tensor) -> None:
    """state (S, P, K, D) <- the next block's, in rows that are active (S,) and whose token at positions (S,) is the
    last of its block. In plain PyTorch, which waits for the device; ops/decode/turn.py is a kernel."""
    rows = ((positions % state.shape[2] == state.shape[2] - 1) & (active > 0)).nonzero()[:, 0]
    if len(rows):
        state[rows] = turned(state[rows])


def step(
    block: RecurrentBlock, x: Tensor, state: Tensor, positions: Tensor, active: Tensor, next_block: Turn = turn
) -> Tensor:
    """y (S, 1, D) of x (S, 1, D), the tokens at positions (S,); state (S, P, K, D) float32 is changed in place.

    What comes out in rows that are not active (S,) means nothing, and their state stays.
    """
    narrow, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
    size, alive = block.block, (active > 0)[:, None, None]
    places = positions % size
    at = places[:, None, None].expand_as(x)
    began = (positions >= size)[:, None, None]
    seen = torch.arange(size, device=x.device) <= places[:, None, None]  # (S, 1, K)
    turns = block.mixer.turns(2 * size, x)
    left = right = None
    if turns is not None:
        left, right = turns[:, places, None], turns[:, size + places, None]  # (2, S, 1, K / 2)

    def put(place: int, new: Tensor) -> None:
        room = state[:, place]
        room.scatter_(1, at, torch.where(alive, new.to(room.dtype), room.gather(1, at)))

    def passed(u: Tensor, keys: int, angles: Tensor | None, past: Sequence[Tensor] = ()) -> Tensor:
        h = block.mixer_norm(u)
        for place, new in zip((keys, keys + 1), block.mixer.keys(h, angles), strict=True):
            put(place, new)
        k, v, visible = state[:, keys], state[:, keys + 1], seen
        if past:
            before = began.expand_as(seen)
            k, v, visible = torch.cat([past[0], k], 1), torch.cat([past[1], v], 1), torch.cat([before, seen], 2)
        return block.finish(u, block.mixer.queries(h, angles), k, v, visible[:, None])

    past = [state[:, LEFT_K], state[:, LEFT_V]]
    if block.left is None:
        y = passed(passed(x, RIGHT_K, right, past), NEXT_K, left)
    else:
        c = passed(block.left(x, state[:, OLDER].gather(1, at)), RIGHT_K, right, past)
        p = torch.where(began, state[:, NEWER].gather(1, at), x)
        put(NEWER, p)
        y = passed(block.left(c, p), NEXT_K, left)
        put(OLDER, y)
        if block.closes:
            y = passed(c, CLOSED_K, left)
    next_block(state, positions, active)
    return y.to(narrow)
