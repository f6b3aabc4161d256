"""IsoFLOP laws (approach 2 of Hoffmann et al. 2022): the minimum over sizes of each compute budget, and power laws
through the minima.

points -> budgets -> per budget the minimum of log loss over log N (valley.py)
       -> the compute, N_opt, D_opt and L of each minimum -> L, N_opt and D_opt = coefficient C^exponent
       -> intervals: noise added to the curves (by point or run), or to the minima (by budget), and all done anew
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from linscale.config import UserError
from linscale.study.laws import FORMULA, PARAMETERS, PFLOP_S_DAY
from linscale.study.table.budgets import Budget, choose_abscissa, split
from linscale.study.table.compute_laws import (
    WITH_E,
    bound_warnings,
    names,
    objective,
    parameter_table,
)
from linscale.study.table.group import Group, PointFit, draws, listed_points, part, rounded
from linscale.study.table.isoflop_warnings import isoflop_warnings, scatter_warning, shared_runs_warning
from linscale.study.table.minima import (
    Minima,
    find_minima,
    measured_noise,
    replicate,
    root_mean_squares,
    rule_of,
    runs_of,
)
from linscale.study.table.options import Abscissa, Method
from linscale.study.table.valley import NEEDED, drawn_curve
from linscale.study.table.warnings import point_warnings, resampling_warnings

Array = np.ndarray
METHODS: tuple[Method, ...] = ("parabola", "akima", "cubic-log")
CURVE_POINTS = 40


def fit_isoflop(group: Group, settings: PointFit) -> dict[str, Any]:
    """The entry of one group. Raises UserError when fewer than two budgets have a minimum between their sizes."""
    options, irreducible = settings.options, settings.law.endswith("_irreducible")
    found = split(group)
    abscissa = choose_abscissa(found, options.abscissa)
    rules = [rule_of(each, options.minimum) for each in found]
    used = [each for each, rule in zip(found, rules, strict=True) if rule is None]
    _enough(found, rules, irreducible)
    minima = find_minima(used, [each.log_loss[None] for each in used], options.minimum, abscissa)
    (law,) = minima.laws(irreducible)
    noise = measured_noise(group, used, settings)
    moved = replicate(group, used, settings, abscissa, minima, noise)
    replicates = moved.laws(irreducible)
    settled = np.isfinite(replicates).all(1)
    fitted = replicates[settled]
    left = root_mean_squares(minima, law[None])
    parameters = parameter_table(law, fitted, irreducible)
    runs = runs_of(group, used) if settings.by == "run" else None
    sensitivity = [_under(method, found, abscissa, irreducible) for method in METHODS]
    members = np.sort(np.concatenate([each.members for each in used]))
    units = len(used) if settings.by == "budget" else len(np.unique(group.units(settings.by)[members]))
    return {
        "law": "isoflop",
        "formula": WITH_E if irreducible else FORMULA,
        "parameters": parameters,
        "derived": {},
        "objective": objective(left[0]),
        "starts": None,
        "classical": None,
        "points_used": len(members),
        "bootstrap": noise.entry(settled, units, settings.by),
        "dropped": _dropped(group, found, rules),
        "draws": draws(names(irreducible), fitted),
        "abscissa": abscissa,
        "minima": {"compute": rounded(np.exp(minima.log_compute[0]))}
        | {
            name: rounded(np.exp(values))
            for name, values in zip(("loss", "params", "tokens"), minima.log_values[0], strict=True)
        },
        "curves": [_curve(each, rule, options.minimum, abscissa) for each, rule in zip(found, rules, strict=True)],
        "sensitivity": sensitivity,
        "points": _points(group, used, options.minimum, members),
        "warnings": point_warnings(group)
        + bound_warnings(parameters)
        + isoflop_warnings(found, rules, settings, noise, minima.z[0], sensitivity, runs)
        + shared_runs_warning(group, [each.members for each in used], settings)
        + _scatter(minima, moved, left[0], settings)
        + resampling_warnings(settled, 0),
    }


def _scatter(minima: Minima, moved: Minima, seen: Array, settings: PointFit) -> list[dict[str, str]]:
    """Whether the minima lie farther from the laws, `seen` (3,), than noise alone takes them from a line."""
    if settings.by == "budget":
        return []
    noise = Minima(moved.log_compute, moved.log_values - minima.log_values, moved.kept, moved.z)
    expected = root_mean_squares(noise, noise.laws(irreducible=False))
    return scatter_warning(seen, expected[np.isfinite(expected).all(1)])


def _enough(found: Sequence[Budget], rules: Sequence[str | None], irreducible: bool) -> None:
    used, needed = sum(rule is None for rule in rules), 4 if irreducible else 2
    if used < needed:
        counts = Counter(rule.removeprefix("budget: ") for rule in rules if rule)
        why = ", ".join(f"{rule}: {count}" for rule, count in counts.items())
        raise UserError(
            f"{used} budget(s) with a minimum between their sizes: an isoFLOP law{' with E' if irreducible else ''} "
            f"needs {needed}; add runs, name budgets with --columns budget=NAME, or take --law chinchilla"
            + (f" ({why})" if why else "")
        )


def _under(method: Method, found: Sequence[Budget], abscissa: Abscissa, irreducible: bool) -> dict[str, Any]:
    """The six parameters where minima are found in this way; null where it cannot be done."""
    used = [each for each in found if rule_of(each, method) is None]
    row: dict[str, Any] = {"minimum": method, "budgets": len(used)} | dict.fromkeys(PARAMETERS)
    if len(used) < (4 if irreducible else 2):
        return row
    minima = find_minima(used, [each.log_loss[None] for each in used], method, abscissa)
    return row | dict(zip(names(irreducible), minima.laws(irreducible)[0].tolist(), strict=True))


def _dropped(group: Group, found: Sequence[Budget], rules: Sequence[str | None]) -> list[dict[str, Any]]:
    pairs = [(row, rule) for each, rule in zip(found, rules, strict=True) if rule for row in group.rows[each.members]]
    return [{"row": int(row), "rule": rule} for row, rule in sorted(pairs)]


def _curve(budget: Budget, rule: str | None, method: Method, abscissa: Abscissa) -> dict[str, Any]:
    """One budget as a figure shows it: points, the curve along them, and the minimum where it is used."""
    entry: dict[str, Any] = {"compute": budget.flops / PFLOP_S_DAY, "rule": rule}
    for name, values in (("params", budget.log_n), ("tokens", budget.log_d), ("loss", budget.log_loss)):
        entry[name] = rounded(np.exp(values))
    entry |= {"fitted": None, "minimum": None, "edge": rule == "budget: minimum at an edge"}
    if budget.sizes >= NEEDED[method]:
        z = np.linspace(-1, 1, CURVE_POINTS)
        curve = drawn_curve(method, budget.axis, budget.log_loss, z)
        n = np.exp(budget.axis.centre + budget.axis.reach * z)
        entry["fitted"] = {"params": rounded(n), "loss": rounded(np.exp(curve))}
    if rule is None:
        minima = find_minima([budget], [budget.log_loss[None]], method, abscissa)
        loss, params, tokens = np.exp(minima.log_values[0, :, 0]).tolist()
        entry["minimum"] = {"params": params, "tokens": tokens, "loss": loss}
    return entry


def _points(group: Group, used: Sequence[Budget], method: Method, members: Array) -> dict[str, list[Any]]:
    """The points that are used; their residuals are of the curve of their budget."""
    left = np.full(len(group.rows), np.nan)
    for each in used:
        left[each.members] = drawn_curve(method, each.axis, each.log_loss, each.axis.z) - each.log_loss
    return listed_points(part(group, members), ("n", "d", "c", "loss"), left[members])
