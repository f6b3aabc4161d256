"""Fit a law to a table of points, group by group: the content of the JSON that `linscale fit` writes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from linscale.config import UserError
from linscale.study.classical import classical
from linscale.study.laws import PFLOP_S_DAY, UNITS
from linscale.study.points import Points
from linscale.study.profile import Profile, profiles
from linscale.study.surface_fit import AGREE, Loss, Problem, Solution, Unit, fit, resample
from linscale.study.surface_warnings import warnings
from linscale.study.surfaces import Array, Law, optimum

BUDGET_GAP = 0.05  # in log C: points closer than this to a neighbour are of one budget
INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class PointFit:
    """How the points are fitted."""

    law: Law
    loss: Loss
    drop: tuple[str, int] = ("highest", 0)
    """"highest" or "lowest" losses of each group, and how many of them are left out."""
    bootstrap: int = 1000
    by: Unit = "point"
    seed: int = 0


def parse_drop(text: str) -> tuple[str, int]:
    """ "highest:5" or "lowest:2". Raises UserError for anything else."""
    end, _, count = text.partition(":")
    if end not in ("highest", "lowest") or not count.isdecimal():
        raise UserError(f"drop = {text!r}: expected highest:COUNT or lowest:COUNT, as in highest:5")
    return end, int(count)


def default_unit(points: Points) -> Unit:
    """What to resample by where nothing is said: runs where the table tells them apart, else points."""
    return "run" if "run" in points.labels else "point"


def fit_points(points: Points, settings: PointFit) -> dict[str, Any]:
    """Fit every group. A group that cannot be fitted is in `refused` with its reason; UserError when none can."""
    groups, refused = [], []
    for name in sorted(set(points.groups.tolist())):
        try:
            groups.append(_group(points, name, settings))
        except UserError as error:
            refused.append({"group": name, "reason": str(error)})
    if not groups:
        raise UserError("; ".join(f"{item['group']}: {item['reason']}" for item in refused))
    return {
        "version": 1,
        "units": UNITS,
        "columns": dict(points.columns),
        "settings": {
            "loss": str(settings.loss),
            "drop": ":".join(map(str, settings.drop)) if settings.drop[1] else None,
            "bootstrap": settings.bootstrap,
            "by": settings.by,
            "seed": settings.seed,
        },
        "dropped": [{"row": row, "rule": rule} for row, rule in points.dropped],
        "groups": groups,
        "refused": refused,
    }


def _group(points: Points, name: str, settings: PointFit) -> dict[str, Any]:
    members = np.flatnonzero(points.groups == name)
    kept, dropped = _drop(points.numbers["loss"], members, settings.drop)
    law = settings.law
    problem = Problem(
        law, settings.loss, np.array([_input(points, role)[kept] for role in law.inputs]), points.numbers["loss"][kept]
    )
    labels = _labels(points, settings.by)[kept] if settings.bootstrap else np.empty(0)
    solution, second = fit(problem), classical(problem)
    if second.objective < solution.objective * (1 - AGREE):
        solution = replace(solution, vector=second.vector, objective=second.objective, agree=0)
    replicates, settled = np.empty((0, len(solution.vector))), np.empty(0, dtype=bool)
    units = 0
    if settings.bootstrap:
        units = len(np.unique(labels))
        replicates, settled = resample(problem, solution.vector, labels, settings.bootstrap, settings.seed)
    verdicts = profiles(problem, solution)
    parameters = _parameters(problem, solution, replicates, verdicts)
    derived = _derived(problem, solution.vector, replicates) if "d" in law.inputs else {}
    residuals = problem.residuals(solution.vector)
    return {
        "group": name,
        "law": law.name,
        "formula": law.formula,
        "parameters": parameters,
        "derived": derived,
        "objective": {"name": str(settings.loss), "value": solution.objective},
        "starts": {"tried": solution.starts, "agree": solution.agree, "settled": solution.settled},
        "classical": {
            "method": "L-BFGS-B",
            "value": second.objective,
            "tried": second.starts,
            "agree": second.agree,
            "settled": second.settled,
        },
        "points_used": len(kept),
        "dropped": [
            {"row": int(points.rows[at]), "rule": f"drop: {':'.join(map(str, settings.drop))}"} for at in dropped
        ],
        "bootstrap": {"replicates": len(replicates), "settled": int(settled.sum()), "units": units, "by": settings.by},
        "points": {
            "row": points.rows[kept].tolist(),
            "loss": problem.values.tolist(),
            "residual": residuals.tolist(),
        },
        "warnings": warnings(points, kept, solution, parameters, settled, units),
    }


def _drop(loss: Array, members: Array, rule: tuple[str, int]) -> tuple[Array, Array]:
    """Indices that are kept and those that are not, in the order of the rows; of equal losses the later row goes."""
    end, count = rule
    order = np.argsort(-loss[members] if end == "lowest" else loss[members], kind="stable")
    cut = max(len(members) - count, 0)
    return np.sort(members[order[:cut]]), np.sort(members[order[cut:]])


def _input(points: Points, role: str) -> Array:
    return points.numbers[role] / (PFLOP_S_DAY if role == "c" else 1.0)


def _labels(points: Points, by: Unit) -> Array:
    """(m,) what tells units apart. Raises UserError when the table does not say."""
    if by == "point":
        return points.rows
    if by in points.labels:
        return points.labels[by]
    if by == "run":
        raise UserError("by = run: no column tells runs apart; name it with --columns run=NAME, or use --by point")
    if "c" not in points.numbers:
        raise UserError("by = budget: needs FLOPs; name them with --columns c=NAME or c=6nd, or budget=NAME")
    order = np.argsort(points.numbers["c"])
    steps = np.diff(np.log(points.numbers["c"][order]), prepend=np.nan)
    labels = np.empty(order.size, dtype=int)
    labels[order] = np.cumsum(steps > BUDGET_GAP)
    return labels


def _summary(value: float, replicates: Array) -> dict[str, Any]:
    low, high = np.percentile(replicates, INTERVAL) if replicates.size else (None, None)
    return {
        "value": float(value),
        "se": float(np.std(replicates, ddof=1)) if replicates.size > 1 else None,
        "low": None if low is None else float(low),
        "high": None if high is None else float(high),
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
        table[name] = _summary(values[number], spread[:, number]) | {
            "at_bound": at_bound[number],
            "identified": verdict.identified and not at_bound[number],
            "profile": [verdict.low, verdict.high],
        }
    return table


def _derived(problem: Problem, vector: Array, replicates: Array) -> dict[str, dict[str, Any]]:
    """Where 6 N D FLOPs are spent best: exponents, and coefficients at 1 PFLOP/s-day."""
    names = problem.law.parameters
    both = problem.numbers(np.vstack([vector, replicates]))
    if min(both[0, names.index("alpha")], both[0, names.index("beta")]) <= 0:
        return {}
    with np.errstate(all="ignore"):
        a, log_n, log_d = optimum(*(both[:, names.index(name)] for name in ("A", "B", "alpha", "beta")))
        day = np.log(PFLOP_S_DAY / 6)
        values = {
            "a": a,
            "n_opt_coefficient": np.exp(log_n + a * day),
            "n_opt_exponent": a,
            "d_opt_coefficient": np.exp(log_d + (1 - a) * day),
            "d_opt_exponent": 1 - a,
        }
    return {name: _summary(each[0], each[1:][np.isfinite(each[1:])]) for name, each in values.items()}
