"""Where compute is spent best when unique tokens are few: the repeat law has no closed form for it."""

from __future__ import annotations

import numpy as np

from linscale.study.prediction.compute_law import best_spent
from linscale.study.prediction.fitted import Fitted
from linscale.study.prediction.surface import effective, surface
from linscale.study.table.resampling import widened

Array = np.ndarray
REACH = 6.0  # in log N, on either side of the best size for new tokens
STEPS = 601


def repeated_loss(fitted: Fitted, n: Array, d: Array, unique: Array | float) -> Array:
    """(1 + r, ...) loss of n parameters and d tokens (1 + r, ...), passes over `unique` tokens."""
    return surface("repeat", fitted.values).loss(*effective(fitted.values, n, d, unique))


def best_repeated(fitted: Fitted, flops: float, unique: float) -> tuple[Array, Array, Array]:
    """Loss, N and D, each (1 + r,), where FLOPs are spent best: a grid over log N, and a parabola through its best."""
    start = best_spent(surface("repeat", fitted.values), fitted.flops).params(flops)
    assert start is not None
    grid = np.linspace(-REACH, REACH, STEPS)
    log_n = np.log(start)[:, None] + grid
    loss = _on_budget(fitted, np.exp(log_n), flops, unique)
    best = np.clip(np.argmin(np.where(np.isnan(loss), np.inf, loss), axis=1), 1, STEPS - 2)
    rows = np.arange(len(best))
    left, middle, right = (loss[rows, best + shift] for shift in (-1, 0, 1))
    with np.errstate(all="ignore"):
        vertex = 0.5 * (left - right) / (left - 2 * middle + right)
    step = np.where(np.abs(vertex) <= 1, vertex, 0.0) * (grid[1] - grid[0])
    n = np.exp(log_n[rows, best] + step)
    found = _on_budget(fitted, n, flops, unique), n, _tokens(fitted, n, flops)
    loss, n, d = (widened(each, fitted.stretch) for each in found)
    return loss, n, d


def _on_budget(fitted: Fitted, n: Array, flops: float, unique: float) -> Array:
    return repeated_loss(fitted, n, _tokens(fitted, n, flops), unique)


def _tokens(fitted: Fitted, n: Array, flops: float) -> Array:
    return np.asarray(flops / (fitted.flops.coefficient * n**fitted.flops.exponent))
