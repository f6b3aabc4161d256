"""The block of a recurrent transformer: one transformer block T that goes over windows of two blocks of tokens.

    L_j = c_j + alpha p_j              the block that was read last, as T left it, and what it takes over: "left"
    R_j = x_j + alpha p_{j-1}          a block of K new tokens: "right"
    [y_j, c_{j+1}] = T([L_j; R_{j+1}])     causal over 2K places;  p_{j+1} = y_j
    c_0 = T(x_0),  p_0 = x_0,  R_1 = x_1 + alpha x_0

So each token goes through T twice: on the right it sees the whole block before its own, on the left what comes out is
its output. A token's two passes need nothing behind it, and a state is what they need of what came before: keys and
values of the two blocks, and the two left states. Where alpha is 0, nothing of y goes on, and all blocks' second passes
are one call behind the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout, pad

from linscale.layers import GLU, MLP, Context, LeftState, WindowAttention
from linscale.models.block import Block
from linscale.models.recurrent_parts import WindowParts
from linscale.models.recurrent_state import (
    CLOSED_K,
    CLOSES,
    FORGETS,
    LEFT_K,
    LEFT_V,
    NEWER,
    NEXT_K,
    OLDER,
    RIGHT_K,
    TAKES_OVER,
    Ends,
    taken,
    turned,
)
from linscale.models.recurrent_walk import Walk


def as_it_is(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step of the loop whose inside is kept for the backward pass: see train/parallel.py."""
    return step


class RecurrentBlock(Block):
    """x (B, T, D) and a state (B, S, K, D) in at least float32; see above."""

    mixer: WindowAttention
    mlp: GLU | MLP

    def __init__(self, *parts: Any, block: int, left: LeftState | None, closes: bool) -> None:
        """`parts` as for Block; block: K; left: None where alpha is 0; closes: the last block of a text as T(c)."""
        super().__init__(*parts)
        self.block, self.left, self.closes = block, left, closes and left is not None
        self.slots = FORGETS if left is None else CLOSES if self.closes else TAKES_OVER
        self.parts = WindowParts(self.mixer_norm, self.mixer, self.mlp_norm, self.mlp, left)
        self.recomputed: Callable[[Callable[..., Any]], Callable[..., Any]] = as_it_is

    def forward(self, x: Tensor, state: Tensor | None, context: Context) -> tuple[Tensor, Tensor]:
        if context.piece is not None:
            raise ValueError("a recurrent transformer reads its windows one after another: ranks cannot share a text")
        if context.cu_seqlens is None:
            return self._rows(x, state, context.start, None)
        assert context.rows is not None
        lengths = context.cu_seqlens.diff()
        outputs, states = [], []
        for group in context.rows.groups:
            count, own = len(group.documents), group.documents
            wide = x.new_zeros(count * group.width, x.shape[2]).index_copy(0, group.slots, x[0, group.places])
            before = None if state is None else state[own]
            y, after = self._rows(wide.unflatten(0, (count, -1)), before, context.start[own], lengths[own])
            outputs.append(y.flatten(0, 1)[group.slots])
            states.append(after)
        return torch.cat(outputs)[context.rows.token_order][None], torch.cat(states)[context.rows.document_order]

    def finish(self, u: Tensor, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        """T(u) (B, m, D) from its queries (B, m, D) and all keys and values (B, S, D)."""
        p = self.dropout if self.training else 0.0
        z = u + dropout(self.mixer.attend(q, k, v, visible, p), p)
        return z + dropout(self.mlp(self.mlp_norm(z)), p)

    def _rows(self, x: Tensor, state: Tensor | None, start: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows (B, T, D), of which `lengths` (B,) are tokens (None: all), behind `start` (B,) others."""
        narrow, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
        y, state = self._from(x, state, start, lengths)
        return y.to(narrow), state

    def _from(self, x: Tensor, state: Tensor | None, start: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same, at least float32: what is handed on adds up over many blocks."""
        cache = x.new_zeros(len(x), self.slots, self.block, x.shape[2]) if state is None else state.to(x.dtype)
        if not x.numel():
            return x, cache
        turns = self.mixer.turns(2 * self.block, x)
        if state is None:
            return self._blocks(x, None, turns, lengths)
        if x.shape[1] == 1:
            return self._segment(x, cache, start, turns, None, None)
        if not bool(start.any()):
            return self._blocks(x, None, turns, lengths)
        if bool(((start % self.block == 0) & (start > 0)).all()):
            return self._blocks(x, cache, turns, lengths)
        return self._from_anywhere(x, cache, start, turns, lengths)

    def _from_anywhere(
        self, x: Tensor, cache: Tensor, start: Tensor, turns: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Rows that stand inside of blocks: first up to the end of each one's block, then all that is left."""
        count = torch.full_like(start, x.shape[1]) if lengths is None else lengths.to(start.dtype)
        room = self.block - start % self.block  # (B,)
        here = torch.minimum(count, room)
        steps = torch.arange(x.shape[1], device=x.device)
        most, rest = int(here.max()), (count - room).clamp(min=0)
        valid = None if bool((here == most).all()) else steps[:most] < here[:, None]
        y, cache = self._segment(x[:, :most], cache, start, turns, valid, rest == 0)
        y = pad(y, (0, 0, 0, x.shape[1] - most))
        if not (longest := int(rest.max())):
            return y, cache
        later = (room[:, None] + steps[:longest]).clamp(max=x.shape[1] - 1)  # where what is left lies
        more, cache = self._blocks(taken(x, later), cache, turns, rest)
        back = (steps - room[:, None]).clamp(0, longest - 1)
        return torch.where((steps < room[:, None])[..., None], y, taken(more, back)), cache

    def _segment(
        self, x: Tensor, cache: Tensor, start: Tensor, turns: Tensor | None, valid: Tensor | None, ends: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """m tokens (B, m, D) of each row's current block, of which `valid` (B, m) count; `ends` (B,): whether the text
        of the row ends there. No step of it depends on numbers that only the device knows."""
        size, own = self.block, torch.arange(x.shape[1], device=x.device)
        places = start[:, None] % size + own  # (B, m)
        slots = places if valid is None else torch.where(valid, places, size)  # `size`: a place that is thrown away
        at = slots[..., None].expand(-1, -1, x.shape[2])
        parts = list((cache if valid is None else pad(cache, (0, 0, 0, 1))).unbind(1))
        began = (start >= size)[:, None, None]
        seen = torch.arange(parts[0].shape[1], device=x.device) <= places[..., None]  # (B, m, K or K + 1)
        before = began.expand(-1, len(own), size)
        inside = places.clamp(max=size - 1)
        left_turns, right_turns = (None, None) if turns is None else (turns[:, inside], turns[:, size + inside])

        def passed(u: Tensor, keys: int, angles: Tensor | None, past: Sequence[Tensor] = ()) -> Tensor:
            h = self.mixer_norm(u)
            for slot, new in zip((keys, keys + 1), self.mixer.keys(h, angles), strict=True):
                parts[slot] = parts[slot].scatter(1, at, new.to(x.dtype))
            k, v = parts[keys : keys + 2]
            visible = seen
            if past:
                k, v, visible = torch.cat([past[0], k], 1), torch.cat([past[1], v], 1), torch.cat([before, seen], 2)
            return self.finish(u, self.mixer.queries(h, angles), k, v, visible[:, None])

        past = [cache[:, LEFT_K], cache[:, LEFT_V]]
        if self.left is None:
            y = passed(passed(x, RIGHT_K, right_turns, past), NEXT_K, left_turns)
        else:
            c = passed(self.left(x, parts[OLDER].gather(1, at)), RIGHT_K, right_turns, past)
            p = torch.where(began, parts[NEWER].gather(1, at), x)
            parts[NEWER] = parts[NEWER].scatter(1, at, p)
            y = passed(self.left(c, p), NEXT_K, left_turns)
            parts[OLDER] = parts[OLDER].scatter(1, at, y)
            if self.closes:
                closed = passed(c, CLOSED_K, left_turns)
                y = closed if ends is None else torch.where(ends[:, None, None], closed, y)
        after = torch.stack(parts, 1)[:, :, :size]
        return y, torch.where((slots == size - 1).any(1)[:, None, None, None], turned(after), after)

    def _blocks(
        self, x: Tensor, cache: Tensor | None, turns: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Rows that stand where a block begins: all behind others (`cache`), or all at the beginning of their text."""
        ends = Ends(x, cache, lengths, self.block, self.slots)
        walk = Walk(self, x, turns, ends)
        blocks = walk.forget(x, cache) if self.left is None else walk.accumulate(x, cache)
        return torch.cat(blocks, 1), ends.state
