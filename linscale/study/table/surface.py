"""Fit a surface of N and D, or a power law of C, to one group of points: parameters, intervals, verdicts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from linscale.study.table.classical import classical
from linscale.study.table.compute import ComputeLaw, compute_of, described, optima
from linscale.study.table.group import Group, PointFit, draws, listed_points, summary
from linscale.study.table.profile import Profile, profiles
from linscale.study.table.surface_fit import AGREE, Problem, Solution, fit, resample
from linscale.study.table.surfaces import LAWS, Array
from linscale.study.table.warnings import point_warnings, surface_warnings


def fit_surface(group: Group, settings: PointFit) -> dict[str, Any]:
    """The entry of one group for the laws of `surfaces.LAWS`. Raises UserError when the points are too few."""
    law = LAWS[settings.law]
    flops = compute_of(group)
    inputs = np.array([group.compute if role == "c" else group.numbers[role] for role in law.inputs])
    problem = Problem(law, settings.loss, inputs, group.numbers["loss"])
    labels = group.units(settings.by) if settings.bootstrap else np.empty(0)
    solution, second = fit(problem), classical(problem)
    if second.objective < solution.objective * (1 - AGREE):
        solution = replace(solution, vector=second.vector, objective=second.objective, agree=0)
    replicates, settled = np.empty((0, len(solution.vector))), np.empty(0, dtype=bool)
    units = 0
    if settings.bootstrap:
        units = len(np.unique(labels))
        replicates, settled = resample(problem, solution.vector, labels, settings.bootstrap, settings.seed)
    parameters = _parameters(problem, solution, replicates, profiles(problem, solution))
    return {
        "law": law.name,
        "formula": law.formula,
        "parameters": parameters,
        "derived": _derived(problem, solution.vector, replicates, flops) if "d" in law.inputs else {},
        **({"compute": described(group, flops)} if "d" in law.inputs else {}),
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
        "bootstrap": {"replicates": len(replicates), "settled": int(settled.sum()), "units": units, "by": settings.by},
        "draws": draws(law.parameters, problem.numbers(replicates)),
        "points": listed_points(group, (*law.inputs, "loss"), problem.residuals(solution.vector)),
        "warnings": point_warnings(group) + surface_warnings(solution, parameters, settled, units),
    }


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


def _derived(problem: Problem, vector: Array, replicates: Array, flops: ComputeLaw) -> dict[str, dict[str, Any]]:
    """Where FLOPs are spent best."""
    both = problem.numbers(np.vstack([vector, replicates]))
    return optima(dict(zip(problem.law.parameters, both.T, strict=True)), flops)
