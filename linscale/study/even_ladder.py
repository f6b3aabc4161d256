"""The usual ladders, even steps of size, to compare a designed one with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from linscale.study.design import criterion
from linscale.study.knowledge import Knowledge

Array = np.ndarray
FEWEST, RATIO = 4, 1.35  # sizes, and what is at least between two of them
MORE = 4.0  # tokens of every second size of one of the ladders, over its best ones
HALVINGS = 60


def even_ladder(known: Sequence[Knowledge], n: Array, per_token: Array, budget: float, runs: int) -> Array | None:
    """(2, r) N and D of the better of two ladders in even steps of log N that cost `budget` FLOPs, or None.

    One trains every size on the tokens with which it is the cheapest way to its loss, the other one every second size
    on four times as many. Both go down to the smallest of n (k,); FLOPs of a token of all architectures are
    interpolated from per_token (k,). None where four sizes cost more.
    """
    order = np.argsort(n, kind="stable")
    log_n, log_price = np.log(n[order]), np.log(per_token[order])

    def best_tokens(sizes: Array) -> Array:
        each: Array = np.exp(np.mean([np.log(one.tokens_for(sizes)) for one in known], axis=0))
        return each

    def spaced(top: float, more: float) -> tuple[Array, float]:
        steps = 1 + int((np.log(top) - log_n[0]) / np.log(RATIO))
        sizes = np.geomspace(np.exp(log_n[0]), top, max(FEWEST, min(runs, steps)))
        tokens = best_tokens(sizes) * np.where(np.arange(sizes.size) % 2, more, 1.0)
        price = np.exp(np.interp(np.log(sizes), log_n, log_price))
        return np.array([sizes, tokens]), float(price @ tokens)

    found = [_largest(functools.partial(spaced, more=more), log_n, budget) for more in (1.0, MORE)]
    ladders = [each for each in found if each is not None]

    def worth(ladder: Array) -> float:
        return criterion([one.question(*ladder) for one in known], np.ones(ladder.shape[1], dtype=int))

    return min(ladders, key=worth) if ladders else None


def _largest(ladder: Callable[[float], tuple[Array, float]], log_n: Array, budget: float) -> Array | None:
    """The ladder with the largest top that costs at most the budget; what is left of it goes into tokens."""
    low, high = log_n[0] + np.log(RATIO), log_n[-1]
    if ladder(float(np.exp(low)))[1] > budget:
        return None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if ladder(float(np.exp(middle)))[1] <= budget else (low, middle)
    found, cost = ladder(float(np.exp(low)))
    return found * np.array([[1.0], [budget / cost]])
