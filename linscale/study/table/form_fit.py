"""Fit a form: many starts, resamples, a second opinion, profiles, and the parts of the JSON that come of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from linscale.study.table.form import FormProblem
from linscale.study.table.group import Group, PointFit, draws, listed_points, summary
from linscale.study.table.minimise import LAD_DELTAS, Space
from linscale.study.table.profile import CHI_SQUARED, STEPS, Profile, crossing, unit_of_rise
from linscale.study.table.resampling import drawn_counts, steadied, stretch
from linscale.study.table.surface_fit import AGREE, ROUNDING, Solution, Valley
from linscale.study.table.surfaces import Array
from linscale.study.table.warnings import point_warnings, surface_warnings, valley_warnings

KEPT = 48  # starts of a grid that are minimised: those with the lowest objective
OPINIONS = 16  # of them, those that L-BFGS-B starts from
FINER = 6  # parts that a profile's step across the quantile is cut into
ON_BOUND = 1e-6  # relative rise of the objective for which an entry is put on its bound


@dataclass(frozen=True)
class Fitted:
    """A problem with its minimum, the second opinion, its resamples and its profiles."""

    problem: FormProblem
    solution: Solution
    second: Solution
    replicates: Array
    """(r, p) vectors of resamples as they were fitted."""
    factor: float
    """How far they are stretched for intervals: see `stretching`."""
    settled: Array
    """(r,)"""
    profiles: dict[str, Profile]


def fit_form(problem: FormProblem, grid: Array, counts: Array, labels: Array) -> Fitted:
    """Fit from a grid of vectors (P, p), and again with every row of counts (r, m), resamples of the units of labels.

    Raises UserError when the points are too few for the law.
    """
    problem.enough()
    grid = grid[np.argsort(_heights(problem, grid), kind="stable")[:KEPT]]
    solution, second = minimum(problem, grid), classical(problem, grid)
    if second.objective < solution.objective * (1 - AGREE):
        solution = replace(solution, vector=second.vector, objective=second.objective, agree=0)
    replicates, settled = refit(problem, solution.vector, counts)
    factor = stretching(problem, solution.vector, labels, replicates) if len(counts) else 1.0
    return Fitted(problem, solution, second, replicates, factor, settled, profiles(problem, solution))


def refit(problem: FormProblem, best: Array, counts: Array) -> tuple[Array, Array]:
    """Minimise from `best` for every row of counts (r, m): vectors (r, p) and whether each settled (r,)."""
    if not len(counts):
        return np.empty((0, best.size)), np.empty(0, dtype=bool)
    vectors, _, settled = problem.solve(np.tile(best, (len(counts), 1)), counts=counts)
    return vectors, settled


def stretching(problem: FormProblem, best: Array, labels: Array, vectors: Array) -> float:
    """How far fits of resamples (r, p) are stretched: see `resampling`'s stretch and steadied."""
    residuals = problem.residuals(best)
    factor = stretch(residuals, labels, best.size)
    if problem.loss.kind == "l2":
        return factor
    free = ~problem.form.at_bound(best)
    goal = problem.regression(problem.form.predict)
    columns = goal.jacobian(*goal.predict(best[None]))[0][:, free] * np.sqrt(problem.weight)[:, None]
    return factor * steadied(columns, residuals, labels, problem.loss.corner, vectors[:, free] - best[free])


def stretched(fitted: Fitted) -> Array:
    """(r, p) vectors for intervals of parameters, in bounds."""
    best = fitted.solution.vector
    inside: Array = np.clip(best + (fitted.replicates - best) * fitted.factor, *fitted.problem.form.bounds)
    return inside


def minimum(problem: FormProblem, grid: Array) -> Solution:
    """The best of the starts (P, p), and how many agree with it."""
    vectors, objectives, settled = problem.solve(grid)
    best, lowest = _to_bound(problem, vectors[int(np.argmin(objectives))])
    agree = int((objectives <= lowest * (1 + AGREE) + ROUNDING * problem.target.size).sum())
    return Solution(best, lowest, len(grid), max(agree, 1), int(settled.sum()))


def _to_bound(problem: FormProblem, best: Array) -> tuple[Array, float]:
    """Minimised once more, with what went to nothing or infinity on its bound: in logarithms the way has no end."""
    entries = np.flatnonzero(problem.form.logs)
    starts = np.tile(best, (1 + 2 * entries.size, 1))
    for number, entry in enumerate(entries):
        starts[1 + 2 * number : 3 + 2 * number, entry] = problem.form.bounds[:, entry]
    vectors, objectives, _ = problem.solve(starts)
    lowest = objectives.min()
    level = objectives <= lowest + ON_BOUND * abs(lowest)
    bound = np.array([problem.form.at_bound(vector).sum() for vector in vectors])
    chosen = int(np.argmax(np.where(level, bound, -1)))
    return vectors[chosen], float(objectives[chosen])


def classical(problem: FormProblem, grid: Array) -> Solution:
    """The same objective and bounds, minimised by scipy's L-BFGS-B from the first 16 of the starts (P, p)."""
    from scipy.optimize import minimize

    goal = problem.regression(problem.form.predict)
    if problem.loss.kind == "lad":
        target = np.log(problem.target) if problem.loss.space == "log" else problem.target
        goal = replace(goal, delta=LAD_DELTAS[-1] * (float(np.std(target)) or 1.0))
    ones = problem.weight[None]
    found = []
    for start in grid[:OPINIONS]:
        start = np.clip(start, *problem.form.bounds)
        unit = float(goal.objective(goal.predict(start[None])[0], ones)[0]) or 1.0

        def scaled(vector: Array, unit: float = unit) -> tuple[float, Array]:
            at = goal.predict(vector[None])
            gradient, _ = goal.derivatives(vector[None], at, ones, majorise=True)
            return float(goal.objective(at[0], ones)[0]) / unit, gradient[0] / unit

        options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-14, "gtol": 1e-10}
        result = minimize(scaled, start, jac=True, method="L-BFGS-B", bounds=problem.form.bounds.T, options=options)
        found.append((float(_heights(problem, result.x[None])[0]), result.x, bool(result.success)))
    lowest, best, _ = min(found, key=lambda each: each[0])
    agree = sum(height <= lowest * (1 + AGREE) + 1e-15 for height, _, _ in found)
    return Solution(best, lowest, len(found), agree, sum(each[2] for each in found))


def _heights(problem: FormProblem, vectors: Array) -> Array:
    """(P,) objectives of vectors (P, p)."""
    goal = problem.regression(problem.form.predict)
    values = goal.predict(np.clip(vectors, *problem.form.bounds))[0]
    if problem.loss.kind == "lad":
        heights: Array = (problem.weight * np.abs(goal.residuals(values))).sum(-1)
        return heights
    return goal.objective(values, problem.weight[None])


def profiles(problem: FormProblem, solution: Solution) -> dict[str, Profile]:
    """The profile of each parameter, by name, as `profile` has it for surfaces."""
    form = problem.form
    unit = unit_of_rise(problem.residuals(solution.vector), problem.weight, problem.loss, len(form.parameters))
    entries = np.repeat(np.arange(len(form.parameters)), 2)  # one a side
    start = (form.readings @ solution.vector)[entries]
    edges = np.array([problem.range_of(entry) for entry in range(len(form.parameters))]).ravel()

    def rise(values: Array) -> Array:
        objectives = problem.solve_held(solution.vector, np.repeat(entries, values.shape[1]), values.ravel())
        return 2 * (objectives.reshape(values.shape) - solution.objective) / unit

    values = start[:, None] + (edges - start)[:, None] * np.geomspace(1e-4, 1, STEPS)  # (2 p, STEPS)
    heights = rise(values)
    first = np.argmax(heights > CHI_SQUARED, axis=1)  # 0 as well where none is: then the finer ones are of no use
    side = np.arange(len(entries))
    inner = np.where(first > 0, values[side, first - 1], start)
    finer = inner[:, None] + (values[side, first] - inner)[:, None] * np.arange(1, FINER) / FINER
    order = np.argsort(np.abs(np.hstack([values, finer]) - start[:, None]), axis=1, kind="stable")
    values, heights = (
        np.take_along_axis(np.hstack(pair), order, axis=1) for pair in ((values, finer), (heights, rise(finer)))
    )
    found = [crossing(float(start[each]), values[each], heights[each]) for each in side]
    ends = [
        None if end is None else float(np.exp(end)) if form.logs[entry] else end
        for end, entry in zip(found, entries, strict=True)
    ]
    return {name: Profile(*ends[2 * at : 2 * at + 2]) for at, name in enumerate(form.parameters)}


def find_valley(fitted: Fitted) -> Valley:
    """How flat the objective is in its flattest direction, over the entries that are not on a bound."""
    problem, vector = fitted.problem, fitted.solution.vector
    free = ~problem.form.at_bound(vector)
    goal = problem.regression(problem.form.predict)
    columns = goal.jacobian(*goal.predict(vector[None]))[0][:, free] * np.sqrt(problem.weight)[:, None]
    return Valley.of(columns, [name for name, each in zip(problem.form.parameters, free, strict=True) if each])


def parameters_of(fitted: Fitted) -> dict[str, dict[str, Any]]:
    """The entry `parameters` of the JSON."""
    form, vector = fitted.problem.form, fitted.solution.vector
    values, spread, at_bound = form.numbers(vector), form.numbers(stretched(fitted)), form.at_bound(vector)
    table = {}
    for number, name in enumerate(form.parameters):
        verdict = fitted.profiles[name]
        table[name] = summary(values[number], spread[:, number]) | {
            "at_bound": bool(at_bound[number]),
            "identified": verdict.identified and not at_bound[number],
            "profile": [verdict.low, verdict.high],
        }
    return table


def minimum_of(fitted: Fitted, of: str) -> dict[str, Any]:
    """The entries `objective`, `starts` and `classical` of the JSON; `of` is the symbol of what is predicted."""
    first, second = fitted.solution, fitted.second
    return {
        "objective": {"name": str(fitted.problem.loss).removesuffix("L") + of, "value": first.objective},
        "starts": {"tried": first.starts, "agree": first.agree, "settled": first.settled},
        "classical": {
            "method": "L-BFGS-B",
            "value": second.objective,
            "tried": second.starts,
            "agree": second.agree,
            "settled": second.settled,
        },
    }


def resampled(group: Group, settings: PointFit) -> tuple[Array, Array]:
    """How often each point is in each resample (r, m), and what tells units apart (m,); both empty for no bootstrap."""
    if not settings.bootstrap:
        return np.empty((0, len(group.rows))), np.empty(0)
    labels = group.units(settings.by)
    return drawn_counts(labels, settings.bootstrap, settings.seed), labels


def group_entry(group: Group, settings: PointFit, fitted: Fitted, units: int, roles: tuple[str, ...]) -> dict[str, Any]:
    """The entry of one group in the JSON; the last of `roles`, which are what the law reads, is what it predicts."""
    form, parameters, settled = fitted.problem.form, parameters_of(fitted), fitted.settled
    valley = find_valley(fitted)
    return {
        "law": form.name,
        "formula": form.formula,
        "parameters": parameters,
        "derived": {},
        **minimum_of(fitted, "L" if roles[-1] == "loss" else roles[-1]),
        "points_used": len(group.rows),
        "bootstrap": {
            "replicates": len(settled),
            "settled": int(settled.sum()),
            "units": units,
            "by": settings.by,
            "prediction_stretch": fitted.factor,
        },
        "draws": draws(form.parameters, form.numbers(fitted.replicates)),
        "points": listed_points(group, roles, fitted.problem.residuals(fitted.solution.vector)),
        "condition": valley.condition,
        "warnings": [
            *point_warnings(group),
            *surface_warnings(fitted.solution, parameters, settled, units),
            *valley_warnings(valley, None),
        ],
    }


def projected(terms: Array, target: Array, space: Space) -> Array:
    """(q,) coefficients, none negative, with which terms (q, m) come closest to the target (m,), relatively in logs.

    A coefficient of nothing is raised to a hundredth of what would give the target alone: a start must be able to move.
    """
    from scipy.optimize import nnls

    weights = 1 / target if space == "log" else np.ones_like(target)
    solved, _ = nnls((terms * weights).T, target * weights)
    least: Array = np.maximum(solved, 1e-2 * target.mean() / terms.mean(1))
    return least
