"""What a reader of an isoFLOP law must know: where approach 2 goes wrong (arXiv 2603.22339), and what was assumed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from linscale.study.laws import PFLOP_S_DAY
from linscale.study.table.budgets import Budget
from linscale.study.table.compute_laws import range_warnings
from linscale.study.table.curve_noise import Noise
from linscale.study.table.group import Group, PointFit, warning
from linscale.study.table.valley import design

Array = np.ndarray
OFF_CENTRE = 0.5  # of half the width of a grid: as far from its middle as from its end
CERTAIN = 3.0  # standard errors that a bend must have
UNEVEN = 1.1  # ratio of FLOPs within a budget
FEW_BUDGETS = 4
SKEWED_P = 0.05
SKEWED_N = 0.02  # relative difference of N_opt
SCATTER_QUANTILE = 99


def isoflop_warnings(
    found: Sequence[Budget],
    rules: Sequence[str | None],
    settings: PointFit,
    noise: Noise,
    places: Array,
    sensitivity: Sequence[Mapping[str, Any]],
    runs: Array | None,
) -> list[dict[str, str]]:
    """Warnings of budgets and of the experiment as a whole. `places` (g,) of the minima used, on their axes; `runs`
    numbers the runs of the points of the budgets used, None where they are independent."""
    used = [each for each, rule in zip(found, rules, strict=True) if rule is None]
    made = [
        _off_centre(used, places),
        _edge(found, rules),
        _weak(found, rules, noise),
        _skewed(used, settings, sensitivity, noise, runs),
    ]
    if uneven := [f"{each.name} by {each.spread - 1:.0%}" for each in used if each.spread > UNEVEN]:
        text = "FLOPs differ within a budget: losses of its sizes are not compared at equal compute"
        made.append(warning("uneven_budgets", text, uneven))
    if len(used) < FEW_BUDGETS:
        text = "a power law through fewer than four budgets cannot be seen to bend"
        made.append(warning("few_budgets", text, [f"{len(used)} budgets"]))
    made += range_warnings(np.array([each.flops / PFLOP_S_DAY for each in used]))
    return [each for each in made if each] + assumed_warning(settings, noise)


def assumed_warning(settings: PointFit, noise: Noise) -> list[dict[str, str]]:
    """Of intervals that rest on an assumed noise."""
    if noise.measured or not settings.bootstrap or settings.by == "budget":
        return []
    text = "the points do not measure their noise, and intervals assume it: train several seeds, or more sizes"
    return [warning("assumed_noise", text, [f"{100 * noise.total:.2g}% of the loss"])]


def shared_runs_warning(group: Group, parts: Sequence[Array], settings: PointFit) -> list[dict[str, str]]:
    """Of runs with points in several of `parts`, positions in the group, where intervals take these as independent."""
    if not settings.bootstrap or settings.by == "run" or "run" not in group.labels:
        return []
    seen = [run for members in parts for run in np.unique(group.labels["run"][members])]
    shared = len(seen) - len(set(seen))
    text = "runs have points in several budgets, which then err together: intervals are too narrow; take --by run"
    return [warning("shared_runs", text, [f"{shared} of {len(seen)} times"])] if shared else []


def scatter_warning(seen: Array, expected: Array) -> list[dict[str, str]]:
    """Of minima farther from the laws than noise takes them: root mean squares (3,) and of replicates (r, 3)."""
    if not len(expected):
        return []
    limit = np.percentile(expected, SCATTER_QUANTILE, axis=0)
    far = [name for name, a, b in zip(("L", "N_opt", "D_opt"), seen, limit, strict=True) if a > b + 1e-9]
    text = "minima scatter about the law more than the noise of the points explains: take --by budget, or another law"
    return [warning("scatter", text, far)] if far else []


def bend_errors(budget: Budget, noise: float) -> tuple[float, float]:
    """The second-order coefficient of a parabola along a budget's points, and its standard error."""
    inverse = np.linalg.pinv(design(budget.axis.z, 2))
    return float(inverse[0] @ budget.log_loss), noise * float(np.linalg.norm(inverse[0]))


def _off_centre(used: Sequence[Budget], places: Array) -> dict[str, str] | None:
    far = [(each, z) for each, z in zip(used, places, strict=True) if abs(z) > OFF_CENTRE]
    text = (
        "the minimum is far from the middle of its grid, where a curve is least sure and a skewed valley misleads most"
    )
    shown = (f"{each.name} towards the {'largest' if z > 0 else 'smallest'} size" for each, z in far)
    return warning("off_centre", text, shown) if far else None


def _edge(found: Sequence[Budget], rules: Sequence[str | None]) -> dict[str, str] | None:
    names = [each.name for each, rule in zip(found, rules, strict=True) if rule == "budget: minimum at an edge"]
    text = "the lowest loss of a budget is at its smallest or largest size: not used"
    return warning("edge_minimum", text, names) if names else None


def _weak(found: Sequence[Budget], rules: Sequence[str | None], noise: Noise) -> dict[str, str] | None:
    names: list[str] = []
    for each, rule in zip(found, rules, strict=True):
        if rule == "budget: no minimum":
            names.append(f"{each.name} has none")
        elif rule is None:
            bend, error = bend_errors(each, noise.total)
            if bend < CERTAIN * error:
                names.append(each.name)
    text = "the valley of a budget bends by less than three standard errors: its minimum may lie anywhere"
    return warning("weak_curvature", text, names) if names else None


def _skewed(
    used: Sequence[Budget],
    settings: PointFit,
    sensitivity: Iterable[Mapping[str, Any]],
    noise: Noise,
    runs: Array | None,
) -> dict[str, str] | None:
    """A cubic term in log N, one for all budgets, tested at 5%; and what it does to N_opt amid the budgets."""
    from scipy.special import stdtrit

    by_method = {each["minimum"]: each for each in sensitivity}
    cubic, chosen = by_method["cubic-log"], by_method["parabola"]
    if settings.options.minimum != "parabola" or cubic["n_opt_exponent"] is None:
        return None
    column, left, freedom = [], [], -1.0
    for each in used:
        basis = design(each.axis.z, 2)
        projection = np.eye(len(basis)) - basis @ np.linalg.pinv(basis)
        column.append(projection @ (each.log_n - each.axis.centre) ** 3)
        left.append(projection @ each.log_loss)
        freedom += float(round(np.trace(projection)))
    x, y = np.concatenate(column), np.concatenate(left)
    if freedom < 1 or x @ x < 1e-12:
        return None
    slope = float(x @ y / (x @ x))
    error = float(np.sqrt(((y - slope * x) ** 2).sum() / freedom / (x @ x)))
    if runs is not None and noise.run:  # a run errs alike in all of its budgets
        error = float(
            np.sqrt(noise.point**2 / (x @ x) + noise.run**2 * (np.bincount(runs, x) ** 2).sum() / (x @ x) ** 2)
        )
    middle = float(np.exp(np.mean([np.log(each.flops / PFLOP_S_DAY) for each in used])))
    ratio = _n_opt(cubic, middle) / _n_opt(chosen, middle) - 1
    if abs(slope) < stdtrit(freedom, 1 - SKEWED_P / 2) * error or abs(ratio) < SKEWED_N:
        return None
    text = "the valley is steeper on one side, and a parabola's minimum is off: see --minimum cubic-log"
    return warning("skewed_valley", text, [f"N_opt by {ratio:+.0%}"])


def _n_opt(law: Mapping[str, Any], compute: float) -> float:
    return float(law["n_opt_coefficient"] * compute ** law["n_opt_exponent"])
