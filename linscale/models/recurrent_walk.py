"""How the block of a recurrent transformer goes over rows that begin where a block begins, window after window.

What no window waits for is done for many at once: gradients of weights (layers/products.py); and where alpha is 0, the
queries, keys and values of all blocks on the right ahead of the loop, and all second passes behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from linscale.layers import Products
from linscale.models.recurrent_state import LEFT_K, LEFT_V, NEWER, OLDER, Ends, behind, window_mask
from linscale.ops.backend import Backend, autocast_dtype, choose
from linscale.ops.window_attention import window_attention

if TYPE_CHECKING:
    from linscale.models.recurrent_block import RecurrentBlock

AT_ONCE = 1 << 14  # tokens of second passes that nothing waits for

Keys = Callable[[], tuple[Any, Any]]
"""Gives keys and values of L and of R of a window."""

QKV, OUT, UP, DOWN, GATE = range(5)  # the products; and where alpha is 0,
KV, Q = 4, 5


def _these(left: Any, right: Any) -> tuple[Any, Any]:
    return left, right


def weights_of(block: RecurrentBlock) -> list[Tensor]:
    """Of the products, in this order, with the scales of the norms before them."""
    mixer, mlp = block.mixer, block.mlp
    qkv = block.mixer_norm.scaled(torch.cat([part.weight for part in (mixer.q_proj, mixer.k_proj, mixer.v_proj)]))
    weights = [qkv, mixer.o_proj.weight, block.mlp_norm.scaled(mlp.entering()), mlp.down_proj.weight]
    if block.left is None:
        return [*weights, qkv[qkv.shape[1] :], qkv[: qkv.shape[1]]]
    if block.left.gate is not None and block.left.gate_norm is not None:
        weights.append(block.left.gate_norm.scaled(block.left.gate.weight))
    return weights


class Walk:
    """Over x (B, T, D), at least float32, by `turns` of a whole window; `ends` is told what states are made of."""

    def __init__(self, block: RecurrentBlock, x: Tensor, turns: Tensor | None, ends: Ends) -> None:
        self.size, self.left, self.closes, self.ends = block.block, block.left, block.closes, ends
        self.mixer, self.parts, self.turns = block.mixer, block.parts, turns
        self.dropout = block.dropout if block.training else 0.0
        self.dtype = autocast_dtype(x.device) or x.dtype
        self.products = Products(weights_of(block), self.dtype)
        self.recomputed = block.recomputed
        self.backend: Backend = "chunk" if torch.compiler.is_compiling() else "auto"
        self.seeded = self.dropout > 0 and choose(self.backend, x.device, self.dtype).form == "triton"
        self.found: list[Tensor] = []

    def accumulate(self, text: Tensor, cache: Tensor | None) -> list[Tensor]:
        """y of every block. Window 0 is R_0, window j + 1 is [L_j; R_{j+1}]: T of it is y_j and c_{j+1}."""
        assert self.left is not None
        size, blocks, slide = self.size, self.products.enter(text).split(self.size, 1), self.recomputed(self._slide)
        x, past = blocks[0], None
        u, lefts = x, [None, x]  # lefts: p for R and p for L of a block
        if cache is not None:
            past, lefts = (cache[:, LEFT_K], cache[:, LEFT_V]), [cache[:, OLDER], cache[:, NEWER]]
            u = self.left(x, cache[:, OLDER, : x.shape[1]])
        taken: Tensor | int = lefts[1]
        right = None if self.turns is None else self.turns[:, size : size + x.shape[1]]
        z, f, *own = self._window(u, past, right, window_mask(past, x))
        before: Keys = partial(_these, past, own)
        parts: tuple[Any, ...] = ()
        for j, (scale, alpha, seed) in enumerate(self._given(x, len(blocks))):
            following = blocks[j + 1] if j + 1 < len(blocks) else None
            both, z, f, qkv = slide(z, f, following, taken, scale, alpha, seed)
            c = both
            if j:
                y, c = both[:, :size], both[:, size:]
                self._add(j - 1, y, *parts)
                lefts = [lefts[1], y]
            taken = size  # of the next T(u), what is y
            here: Keys = partial(self._keys, qkv, blocks[j].shape[1])
            parts, before = (c, before, here, lefts), here
        self._add(len(blocks) - 1, self.parts.added(z, f, self.dropout), *parts)
        return self.found

    def forget(self, text: Tensor, cache: Tensor | None) -> list[Tensor]:
        """y of every block where alpha is 0: only c goes from block to block."""
        size, text = self.size, self.products.enter(text)
        past = None if cache is None else (cache[:, LEFT_K].to(self.dtype), cache[:, LEFT_V].to(self.dtype))
        places = torch.arange(text.shape[1], device=text.device) % size
        turns = None if self.turns is None else self.turns[:, size + places]
        qkv = [z.split(size, 1) for z in self.recomputed(self._project)(text, turns)]
        advance, second = self.recomputed(self._advance), self.recomputed(self._second)
        made: list[tuple[Tensor, Tensor, Tensor]] = []
        mask: Tensor | None = None
        for j, (x, *own) in enumerate(zip(text.split(size, 1), *qkv, strict=True)):
            if mask is None or mask.shape[2] != x.shape[1]:
                mask = self._bias(window_mask(past, x))
            made.append(advance(x, tuple(own), past, self._left_turns(x.shape[1]), mask))
            self.ends.add(j, (past, tuple(own[1:]), made[-1][1:]))
            past = made[-1][1:]
        whole = len(made) if made[-1][0].shape[1] == size else len(made) - 1  # the last block may be shorter
        most = max(1, AT_ONCE // (size * len(text)))
        for first in [*range(0, whole, most), *range(whole, len(made))]:
            group = made[first : min(first + most, whole) if first < whole else None]
            c, k, v = (torch.cat(z) for z in zip(*group, strict=True))  # (n B, m, D)
            self.found += second(c, k, v, self._left_turns(c.shape[1])).chunk(len(group))
        return self.found

    def finish(self, u: Tensor, o: Tensor) -> tuple[Tensor, Tensor]:
        """T(u) (B, m, D) from what was attended to (B, m, D), in two parts to be added."""
        z, h = self.parts.between(u, self.products(OUT, o), self.dropout)
        return z, self.products(DOWN, self.parts.inner(self.products(UP, h)))

    def _window(
        self, u: Tensor, past: tuple[Tensor, Tensor] | None, turns: Tensor | None, visible: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """T(u) behind the keys and values of `past`, in two parts; and its own keys and values, all (B, m, D)."""
        q, k, v = self.parts.heads(self.products(QKV, self.parts.normed(u, self.dtype)), turns)
        past = None if past is None else (past[0].to(k.dtype), past[1].to(v.dtype))
        return *self.finish(u, self._weigh(q, *behind(past, k, v), self._bias(visible))), k, v

    def _slide(
        self, z: Tensor, f: Tensor, x: Tensor | None, taken: Tensor | int, scale: Tensor | float, alpha: Tensor | None,
        seed: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """T of a window, from its two parts; those of the next one; and the product for its q, k and v."""
        if alpha is None:
            both, u, n = self.parts.handed(z, f, x, taken, scale, self.dropout)
        else:
            both, before, n, left = self.parts.ended(z, f, x, taken, self.dropout)
            first = before.shape[1] - (0 if x is None else x.shape[1])
            u, n = self.parts.gated(before, self.products(GATE, n), left, scale, alpha, first)
        qkv = self.products(QKV, n)
        turns, heads = self._left_turns(u.shape[1]), self.mixer.n_heads
        o = window_attention(qkv, heads, turns, dropout=self.dropout, seed=seed, backend=self.backend)
        return both, *self.finish(u, o), qkv

    def _project(self, x: Tensor, turns: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v (B, T, D) of all blocks on the right, where alpha is 0."""
        return self.parts.heads(self.products(QKV, self.parts.normed(x, self.dtype)), turns)

    def _advance(
        self, x: Tensor, qkv: tuple[Tensor, ...], past: tuple[Tensor, Tensor] | None, turns: Tensor | None,
        visible: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """c of a block from its x, q, k and v (B, m, D), where alpha is 0; and the keys and values of c."""
        q, k, v = qkv
        c, n = self.parts.closed(*self.finish(x, self._weigh(q, *behind(past, k, v), visible)), self.dropout)
        return c, *self.parts.keys(self.products(KV, n), turns)

    def _second(self, c: Tensor, k: Tensor, v: Tensor, turns: Tensor | None) -> Tensor:
        """y of blocks (n B, m, D) from their c and its keys and values, where alpha is 0."""
        q = self.mixer.rotated(self.products(Q, self.parts.normed(c, self.dtype)), turns)
        return self.parts.added(*self.finish(c, self._weigh(q, k, v, None)), self.dropout)

    def _weigh(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        return self.mixer.weigh(q, k, v, visible, self.dropout)

    def _add(self, j: int, y: Tensor, c: Tensor, before: Keys, here: Keys, lefts: Sequence[Tensor | None]) -> None:
        """Block j is through: `found` and `ends` get to know. before, here: the windows that it is R and L of."""
        if j not in self.ends.ending:
            self.found.append(y)
            return
        out, closed = y, None
        if self.closes:
            z, f, *closed = self._window(c, None, self._left_turns(c.shape[1]), None)
            out = torch.where((self.ends.last == j)[:, None, None], self.parts.added(z, f, self.dropout), y)
        (past, own), (following, _) = before(), here()
        self.ends.add(j, (past, own, following, (y, lefts[0]), lefts[1], closed))
        self.found.append(out)

    def _keys(self, qkv: Tensor, first: int) -> tuple[Any, Any]:
        """Keys and values of L and of R of a window, whose L has `first` places."""
        _, k, v = self.parts.heads(qkv, self._left_turns(qkv.shape[1]))
        return (k[:, :first], v[:, :first]), (k[:, first:], v[:, first:])

    def _given(self, x: Tensor, count: int) -> Iterable[tuple[Tensor | float, Tensor | None, Tensor | None]]:
        """For each of `count` windows, by what is taken over, alpha before the gates, and the seed of its dropout.

        Parameters are a copy each, (B, 1, D): their gradients are sums over a window, added up at once at the end.
        """
        assert self.left is not None

        def copies(given: Tensor | float) -> Sequence[Any]:
            return [given] * count if isinstance(given, float) else given.expand(count, len(x), 1, -1).unbind()

        alpha = self.left.alpha if self.left.form == "gated" else None
        none = [None] * count
        seeds = torch.randint(1 << 31, (count, 1), device=x.device).unbind() if self.seeded else none
        return zip(copies(self.left.scale()), none if alpha is None else copies(alpha), seeds, strict=True)

    def _left_turns(self, width: int) -> Tensor | None:
        return None if self.turns is None else self.turns[:, :width]

    def _bias(self, visible: Tensor | None) -> Tensor | None:
        """What attention adds, made once: from a mask it makes one in each call."""
        if visible is None:
            return None
        return torch.zeros_like(visible, dtype=self.dtype).masked_fill(~visible, -torch.inf)
