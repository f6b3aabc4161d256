"""Robust regression of loss on a law, for many starts, resamples or fixed values at once.

Newton's method on all problems of a batch together: exact second derivatives, the absolute value of negative
curvature, damping until the objective falls, and entries on a bound held there while the gradient points outward.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from linscale.distributed import cores
from linscale.study.table.surfaces import Array, Evaluation, evaluate, log_loss, weighted_squares

Space = Literal["log", "linear"]
MAX_STEPS = 1000
SETTLED = 1e-9  # relative fall of the objective that ends a problem, twice in a row
LAD_DELTAS = (1e-2, 1e-4)  # of the spread of losses: absolute values as the limit of Huber's loss
LONGEST = 20.0  # step, in logarithms of coefficients
CHUNK = 250_000  # points times problems that a thread works on at most: bounds memory
LEAST = 100_000  # at least: below it threads wait for each other


@dataclass(frozen=True)
class Residual:
    """What is minimised: the sum of rho(prediction - loss), of logarithms or as they are."""

    x: Array
    """(K, m) logarithms of the inputs."""
    log_loss: Array
    """(m,), or (P, m) where every problem has its own."""
    delta: float
    """Where Huber's rho = r^2 / 2 turns into delta * (|r| - delta / 2); inf for squares."""
    space: Space = "log"

    def part(self, problems: Array | slice) -> Residual:
        """Some of the problems."""
        return self if self.log_loss.ndim == 1 else replace(self, log_loss=self.log_loss[problems])

    def residuals(self, value: Array) -> Array:
        """Residuals (P, m) from log L (P, m)."""
        if self.space == "log":
            return value - self.log_loss
        return np.exp(np.minimum(value, 100.0)) - np.exp(self.log_loss)

    def objective(self, residuals: Array, weights: Array) -> Array:
        """(P,) from residuals (P, m) and weights (P, m) or (1, m)."""
        inside = np.minimum(np.abs(residuals), self.delta)
        return (weights * inside * (np.abs(residuals) - inside / 2)).sum(-1)

    def derivatives(self, at: Evaluation, weights: Array, majorise: bool) -> tuple[Array, Array]:
        """Gradient (P, p) and second derivatives (P, p, p); `majorise` with the parabola that lies above rho."""
        residuals = self.residuals(at.value)
        slope = weights * np.clip(residuals, -self.delta, self.delta)
        far = np.abs(residuals) > self.delta
        bend = weights * np.where(far, self.delta / np.maximum(np.abs(residuals), 1e-300) if majorise else 0.0, 1.0)
        if self.space == "linear":
            level = np.exp(np.minimum(at.value, 100.0))
            bend = bend * level**2 + (0.0 if majorise else slope * level)
            slope = slope * level
        gradient = (at.rows @ slope[..., None])[..., 0]
        second = weighted_squares(at.rows, bend)
        return gradient, second if majorise else second + at.curvature(slope)


def minimise(
    problem: Residual, starts: Array, *, weights: Array, free: Array, bounds: Array
) -> tuple[Array, Array, Array]:
    """Minimise from each start (P, p), over the entries that are `free` (P, p) or (p,), within bounds (2, p).

    weights (P, m), or (1, m) for the same in all. Returns vectors (P, p), objectives (P,), and whether each settled.
    """
    vectors, free = starts.copy(), np.broadcast_to(free, starts.shape)
    objective, settled = np.empty(len(starts)), np.zeros(len(starts), dtype=bool)
    points = problem.log_loss.shape[-1]
    size = max(1, LEAST // points, min(CHUNK // points, -(-len(starts) // cores())))

    def solve(first: int) -> None:
        chunk = slice(first, first + size)
        part = weights if len(weights) == 1 else weights[chunk]
        solved = _newton(problem.part(chunk), starts[chunk], part, free[chunk], bounds)
        vectors[chunk], objective[chunk], settled[chunk] = solved

    chunks = range(0, len(starts), size)
    with ThreadPoolExecutor(min(cores(), len(chunks))) as pool:  # numpy lets go of Python's lock in its loops
        list(pool.map(solve, chunks))
    return vectors, objective, settled


def least_absolute(
    problem: Residual, starts: Array, *, weights: Array, free: Array, bounds: Array
) -> tuple[Array, Array, Array]:
    """As `minimise`, for the sum of absolute residuals: Huber's loss with a delta that shrinks, over delta."""
    scale = float(np.std(problem.log_loss if problem.space == "log" else np.exp(problem.log_loss))) or 1.0
    vectors = starts
    for share in LAD_DELTAS:
        smooth = Residual(problem.x, problem.log_loss, share * scale, problem.space)
        vectors, _, settled = minimise(smooth, vectors, weights=weights, free=free, bounds=bounds)
    residuals = problem.residuals(log_loss(vectors, problem.x))
    return vectors, (weights * np.abs(residuals)).sum(-1), settled


def _newton(problem: Residual, starts: Array, weights: Array, free: Array, bounds: Array) -> tuple[Array, Array, Array]:
    vectors = np.where(free, np.clip(starts, *bounds), starts)
    objective = problem.objective(problem.residuals(log_loss(vectors, problem.x)), weights)
    damping, quiet = np.full(len(vectors), 1e-3), np.zeros(len(vectors), dtype=int)
    for count in range(MAX_STEPS):
        active = np.flatnonzero(quiet < 2)
        if not active.size:
            break
        here, own = vectors[active], problem.part(active)
        part = weights if len(weights) == 1 else weights[active]
        majorise = count < 6 or count % 3 == 0
        gradient, second = own.derivatives(evaluate(here, problem.x), part, majorise)
        outward = ((here <= bounds[0]) & (gradient > 0)) | ((here >= bounds[1]) & (gradient < 0))
        step = damped_step(gradient, second, free[active] & ~outward, damping[active])
        there = np.where(free[active], np.clip(here + step, *bounds), here)
        after = own.objective(own.residuals(log_loss(there, problem.x)), part)
        better = after <= objective[active]
        fall = np.where(better, objective[active] - after, 0.0)
        vectors[active[better]], objective[active[better]] = there[better], after[better]
        damping[active] = np.clip(damping[active] * np.where(better, 0.2, 8.0), 1e-12, 1e12)
        small = fall <= SETTLED * np.abs(objective[active]) + 1e-300
        still = small & (better | (damping[active] > 1e6))
        quiet[active] = np.where(still, quiet[active] + 1, 0)
    return vectors, objective, quiet >= 2


def damped_step(gradient: Array, second: Array, free: Array, damping: Array) -> Array:
    """-(|second| + damping)^-1 gradient over the free entries, in units in which the diagonal is one."""
    mask = free.astype(float)
    diagonal = np.abs(np.diagonal(second, axis1=1, axis2=2)) * mask
    largest = diagonal.max(1, keepdims=True)
    scale = mask / np.sqrt(np.where(largest > 0, np.maximum(diagonal, 1e-12 * largest), 1.0))
    scaled = second * scale[:, :, None] * scale[:, None, :]
    values, basis = np.linalg.eigh(scaled)
    size = np.maximum(np.abs(values), 1e-12) + damping[:, None]
    along = (basis.transpose(0, 2, 1) @ (gradient * scale)[..., None])[..., 0]
    return np.clip(-scale * (basis @ (along / size)[..., None])[..., 0], -LONGEST, LONGEST)
