"""Robust regression on any law with a known gradient, for many starts, resamples or held values at once.

The method of `minimise`, for laws that are not of the family of `surfaces`: damped steps of all problems of a batch
together, entries on a bound held there while the gradient points outward. Second derivatives are J'J, at first with
the parabola that lies above rho; in long descents also the law's own, from differences of the exact gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from linscale.study.table.minimise import CHUNK, LAD_DELTAS, SETTLED, Space, damped_step
from linscale.study.table.surfaces import Array

Predict = Callable[[Array], tuple[Array, Array]]
"""Vectors (P, p) -> predictions (P, m) and their gradients (P, m, p)."""
MAX_STEPS = 300
MAJORISED = 8  # first steps, with the parabola above rho; later every fourth
CURVED_FROM = 24  # steps: what is not at rest by then gets the law's curvature, at a price, every fourth
DIFFERENCE = 1e-6
SMALLEST = 1e-9  # of the lowest target: what a prediction is held above where its logarithm is taken


@dataclass(frozen=True)
class Regression:
    """What is minimised: the sum of rho(prediction - target), of logarithms or as they are."""

    predict: Predict
    target: Array
    """(m,)"""
    delta: float
    """Where Huber's rho = r^2 / 2 turns into delta * (|r| - delta / 2); inf for squares."""
    space: Space

    def residuals(self, predictions: Array) -> Array:
        """Residuals (..., m) from predictions (..., m)."""
        if self.space == "log":
            return np.log(np.maximum(predictions, SMALLEST * self.target.min())) - np.log(self.target)
        return predictions - self.target

    def objective(self, predictions: Array, weights: Array) -> Array:
        """(P,) from predictions (P, m) and weights (P, m) or (1, m)."""
        size = np.abs(self.residuals(predictions))
        inside = np.minimum(size, self.delta)
        return np.nan_to_num((weights * inside * (size - inside / 2)).sum(-1), nan=np.inf)

    def jacobian(self, predictions: Array, gradients: Array) -> Array:
        """Gradients (P, m, p) of the residuals."""
        if self.space == "log":
            return gradients / np.maximum(predictions, SMALLEST * self.target.min())[..., None]
        return gradients

    def derivatives(
        self, vectors: Array, at: tuple[Array, Array], weights: Array, majorise: bool, curved: bool = False
    ) -> tuple[Array, Array]:
        """Gradient (P, p) and second derivatives (P, p, p), `at` what the law predicts for the vectors.

        `majorise`: with the parabola above rho. `curved`: with the curvature of the law, which J'J is without.
        """
        jacobian, residuals = self.jacobian(*at), self.residuals(at[0])
        slope = weights * np.clip(residuals, -self.delta, self.delta)
        far = np.abs(residuals) > self.delta
        bend = weights * np.where(far, self.delta / np.maximum(np.abs(residuals), 1e-300) if majorise else 0.0, 1.0)
        gradient = (slope[:, None, :] @ jacobian)[:, 0]
        second = (jacobian * bend[..., None]).transpose(0, 2, 1) @ jacobian
        return gradient, second + self._curvature(vectors, slope, gradient) if curved else second

    def _curvature(self, vectors: Array, slope: Array, gradient: Array) -> Array:
        """Sum over points of slope (P, m) times the second derivatives of the residuals: (P, p, p)."""
        rows = []
        for entry in range(vectors.shape[1]):
            step = DIFFERENCE * np.maximum(np.abs(vectors[:, entry]), 1.0)
            moved = vectors.copy()
            moved[:, entry] += step
            there = (slope[:, None, :] @ self.jacobian(*self.predict(moved)))[:, 0]
            rows.append((there - gradient) / step[:, None])
        second = np.stack(rows, axis=1)
        return (second + second.transpose(0, 2, 1)) / 2


def regress(
    problem: Regression, starts: Array, *, weights: Array, free: Array, bounds: Array
) -> tuple[Array, Array, Array]:
    """Minimise from each start (P, p), over entries that are `free` (P, p), within bounds (2, p) or (2, P, p).

    weights (P, m), or (1, m) for the same in all. Returns vectors (P, p), objectives (P,), and whether each settled.
    """
    vectors, objective = starts.copy(), np.empty(len(starts))
    settled = np.zeros(len(starts), dtype=bool)
    limits = np.broadcast_to(bounds if bounds.ndim == 3 else bounds[:, None], (2, *starts.shape))
    size = max(1, CHUNK // problem.target.size)
    for first in range(0, len(starts), size):
        chunk = slice(first, first + size)
        part = weights if len(weights) == 1 else weights[chunk]
        vectors[chunk], objective[chunk], settled[chunk] = _descend(
            problem, starts[chunk], part, free[chunk], limits[:, chunk]
        )
    return vectors, objective, settled


def regress_absolute(
    problem: Regression, starts: Array, *, weights: Array, free: Array, bounds: Array
) -> tuple[Array, Array, Array]:
    """As `regress`, for the sum of absolute residuals: Huber's loss with a delta that shrinks, over delta."""
    scale = float(np.std(np.log(problem.target) if problem.space == "log" else problem.target)) or 1.0
    vectors = starts
    for share in LAD_DELTAS:
        smooth = replace(problem, delta=share * scale)
        vectors, _, settled = regress(smooth, vectors, weights=weights, free=free, bounds=bounds)
    return vectors, (weights * np.abs(problem.residuals(problem.predict(vectors)[0]))).sum(-1), settled


def _descend(
    problem: Regression, starts: Array, weights: Array, free: Array, bounds: Array
) -> tuple[Array, Array, Array]:
    vectors = np.where(free, np.clip(starts, *bounds), starts)
    value, gradients = problem.predict(vectors)
    objective = problem.objective(value, weights)
    damping, quiet = np.full(len(vectors), 1e-3), np.zeros(len(vectors), dtype=int)
    for count in range(MAX_STEPS):
        active = np.flatnonzero(quiet < 2)
        if not active.size:
            break
        here, (low, high) = vectors[active], bounds[:, active]
        part = weights if len(weights) == 1 else weights[active]
        at = (value[active], gradients[active])
        majorise, curved = count < MAJORISED or count % 4 == 0, count >= CURVED_FROM and count % 4 == 2
        gradient, second = problem.derivatives(here, at, part, majorise, curved)
        outward = ((here <= low) & (gradient > 0)) | ((here >= high) & (gradient < 0))
        step = damped_step(gradient, second, free[active] & ~outward, damping[active])
        there = np.where(free[active], np.clip(here + step, low, high), here)
        moved = problem.predict(there)
        after = problem.objective(moved[0], part)
        better = after <= objective[active]
        fall = np.where(better, objective[active] - after, 0.0)
        kept = active[better]
        vectors[kept], objective[kept] = there[better], after[better]
        value[kept], gradients[kept] = moved[0][better], moved[1][better]
        damping[active] = np.clip(damping[active] * np.where(better, 0.2, 8.0), 1e-12, 1e12)
        small = fall <= SETTLED * np.abs(objective[active]) + 1e-300
        quiet[active] = np.where(small & (better | (damping[active] > 1e6)), quiet[active] + 1, 0)
    return vectors, objective, quiet >= 2
