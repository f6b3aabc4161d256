"""Fit a surface of N and D, or a power law of C, to one group of points: parameters, intervals, verdicts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from linscale.study.flops import Flops
from linscale.study.table.classical import classical
from linscale.study.table.compute import compute_of, described, optima
from linscale.study.table.group import Group, PointFit, draws, listed_points, summary
from linscale.study.table.noise import Repeats, find_repeats, lack_of_fit, redraw
from linscale.study.table.profile import Profile, profiles
from linscale.study.table.surface_fit import AGREE, Problem, Solution, find_valley, fit, refit, spread, stretching
from linscale.study.table.surfaces import LAWS, Array
from linscale.study.table.warnings import point_warnings, surface_warnings, valley_warnings


def fit_surface(group: Group, settings: PointFit) -> dict[str, Any]:
    """The entry of one group for the laws of `surfaces.LAWS`. Raises UserError when the points are too few."""
    law = LAWS[settings.law]
    flops = compute_of(group) if "d" in law.inputs else None
    inputs = np.array([group.compute if role == "c" else group.numbers[role] for role in law.inputs])
    problem = Problem(law, settings.loss, inputs, group.numbers["loss"], group.numbers.get("weight"))
    repeats = find_repeats(group, law.inputs)
    solution, second = fit(problem), classical(problem)
    if second.objective < solution.objective * (1 - AGREE):
        solution = replace(solution, vector=second.vector, objective=second.objective, agree=0)
    drawn, settled, units, factor = _resampled(problem, solution.vector, group, repeats, settings)
    replicates = spread(problem, solution.vector, drawn, factor)
    counted = ("c",) if "c" in group.columns and "c" not in law.inputs else ()  # predictions count compute by them
    parameters = _parameters(problem, solution, replicates, profiles(problem, solution))
    valley = find_valley(problem, solution.vector)
    noise = None if repeats is None else _seed_noise(problem, solution.vector, repeats)
    return {
        "law": law.name,
        "formula": law.formula,
        "parameters": parameters,
        "derived": {} if flops is None else _derived(problem, np.vstack([solution.vector, drawn]), flops, factor),
        **({} if flops is None else {"compute": described(group, flops)}),
        "objective": {"name": str(settings.loss), "value": solution.objective},
        "starts": {"tried": solution.starts, "agree": solution.agree, "settled": solution.settled},
        "classical": {
            "method": "L-BFGS-B",
            "value": second.objective,
            "tried": second.starts,
            "agree": second.agree,
            "settled": second.settled,
        },
        "points_used": len(group.rows),
        "bootstrap": {
            "replicates": len(drawn),
            "settled": int(settled.sum()),
            "units": units,
            "by": settings.by,
            "prediction_stretch": factor,
        },
        "draws": draws(law.parameters, problem.numbers(drawn)),
        "points": listed_points(group, (*law.inputs, *counted, "loss"), problem.residuals(solution.vector)),
        "condition": valley.condition,
        "seed_noise": noise,
        "warnings": [
            *point_warnings(group),
            *surface_warnings(solution, parameters, settled, units),
            *valley_warnings(valley, noise),
        ],
    }


def _resampled(
    problem: Problem, vector: Array, group: Group, repeats: Repeats | None, settings: PointFit
) -> tuple[Array, Array, int, float]:
    """Centred vectors of resamples, which of them settled, how many units there are, and how far to stretch."""
    if not settings.bootstrap:
        return np.empty((0, len(vector))), np.empty(0, dtype=bool), 0, 1.0
    if settings.by == "seed":
        drawn, settled = redraw(problem, vector, repeats, settings.bootstrap, settings.seed)
        return drawn, settled, len(np.unique(repeats.runs)) if repeats else 0, 1.0
    labels = group.units(settings.by)
    drawn, settled = refit(problem, vector, labels, settings.bootstrap, settings.seed)
    return drawn, settled, len(np.unique(labels)), stretching(problem, vector, labels, drawn)


def _seed_noise(problem: Problem, vector: Array, repeats: Repeats) -> dict[str, float | None]:
    fits = lack_of_fit(problem, vector, repeats)
    return {"sd": repeats.sd, "degrees": repeats.freedom, "lack_of_fit": fits}


def _parameters(
    problem: Problem, solution: Solution, replicates: Array, verdicts: dict[str, Profile]
) -> dict[str, dict[str, Any]]:
    law, table = problem.law, {}
    values, spread = problem.numbers(solution.vector), problem.numbers(replicates)
    near = np.abs(solution.vector - problem.bounds) < 1e-6
    at_bound: list[bool] = np.any(near, axis=0)[list(law.free)].tolist()
    for number, name in enumerate(law.parameters):
        verdict = verdicts[name]
        table[name] = summary(values[number], spread[:, number]) | {
            "at_bound": at_bound[number],
            "identified": verdict.identified and not at_bound[number],
            "profile": [verdict.low, verdict.high],
        }
    return table


def _derived(problem: Problem, vectors: Array, flops: Flops, factor: float) -> dict[str, dict[str, Any]]:
    """Where FLOPs are spent best, by centred vectors (1 + r, p), the fit's first."""
    return optima(dict(zip(problem.law.parameters, problem.numbers(vectors).T, strict=True)), flops, factor)
