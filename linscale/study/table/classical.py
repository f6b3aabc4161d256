"""The classical way to fit a law, as a second opinion: L-BFGS-B from many starts (Hoffmann et al. 2022)."""

from __future__ import annotations

import numpy as np

from linscale.study.table.minimise import LAD_DELTAS, Residual
from linscale.study.table.surface_fit import AGREE, ROUNDING, Problem, Solution, starts
from linscale.study.table.surfaces import Array, evaluate

STARTS = 16  # of the grid, those with the lowest objective
STEPS = 3000


def classical(problem: Problem) -> Solution:
    """The same objective, bounds and grid as `surface_fit.fit`, minimised by scipy from the best 16 of the grid.

    The sum is divided by its value at the start: L-BFGS stops on absolute differences, which for a loss of 1e-3 come
    long before the minimum.
    """
    from scipy.optimize import minimize

    goal, free = _goal(problem), np.array(problem.law.free)
    grid = starts(problem)
    weights = problem.weight[None]
    heights = goal.objective(goal.residuals(evaluate(grid, goal.x).value), weights)
    found = []
    for start in grid[np.argsort(heights, kind="stable")[:STARTS]]:
        vector = np.where(free, np.clip(start, *problem.bounds), start)
        unit = float(goal.objective(goal.residuals(evaluate(vector[None], goal.x).value), weights)[0]) or 1.0

        def scaled(values: Array, vector: Array = vector, unit: float = unit) -> tuple[float, Array]:
            full = vector[None].copy()
            full[0, free] = values
            at = evaluate(full, goal.x)
            gradient, _ = goal.derivatives(at, weights, majorise=True)
            return float(goal.objective(goal.residuals(at.value), weights)[0]) / unit, gradient[0, free] / unit

        options = {"maxiter": STEPS, "maxfun": 2 * STEPS, "ftol": 1e-14, "gtol": 1e-10}
        bounds = problem.bounds[:, free].T
        result = minimize(scaled, vector[free], jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        vector[free] = result.x
        found.append((_height(problem, vector), vector, result.success))
    lowest, best, _ = min(found, key=lambda each: each[0])
    agree = sum(height <= lowest * (1 + AGREE) + ROUNDING * problem.values.size for height, _, _ in found)
    return Solution(best, lowest, len(found), agree, sum(bool(each[2]) for each in found))


def _goal(problem: Problem) -> Residual:
    """What is minimised; absolute values as Huber's loss with the smallest delta that `least_absolute` uses."""
    kind, space = problem.loss.kind, problem.loss.space
    log_loss = np.log(problem.values)
    spread = float(np.std(log_loss if space == "log" else problem.values)) or 1.0
    delta = {"huber": problem.loss.delta, "l2": np.inf, "lad": LAD_DELTAS[-1] * spread}[kind]
    return Residual(np.log(problem.inputs) - problem.centre, log_loss, delta, space)


def _height(problem: Problem, vector: Array) -> float:
    residuals = np.abs(problem.residuals(vector))
    if problem.loss.kind == "lad":
        return float((problem.weight * residuals).sum())
    inside = np.minimum(residuals, problem.loss.delta if problem.loss.kind == "huber" else np.inf)
    return float((problem.weight * inside * (residuals - inside / 2)).sum())
