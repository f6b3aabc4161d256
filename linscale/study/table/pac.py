"""The law of efficient models (Kausik, arXiv 2402.14746): the smallest N that is good enough for D tokens of data.

    N(D) = the smallest size whose loss is within a tolerance of the lowest at D,  N = coefficient D^exponent

The paper derives an exponent in [0.44, 0.72] where compute-optimal training has about 1. Points fall into sets of equal
D, which a gap of 5% parts. Between two sizes, loss is taken as linear in log N, so that N is not a staircase.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from linscale.config import UserError
from linscale.study.table.compute_laws import middling
from linscale.study.table.efficient import (
    MIN_SETS,
    MIN_SIZES,
    DataSet,
    Smallest,
    data_sets,
    measured_noise,
    power_laws,
    replicate,
    smallest,
)
from linscale.study.table.group import Group, PointFit, draws, listed_points, part, rounded, summary
from linscale.study.table.isoflop_warnings import shared_runs_warning
from linscale.study.table.options import Tolerance
from linscale.study.table.pac_warnings import BAND, compared, pac_warnings, verdict
from linscale.study.table.warnings import point_warnings, resampling_warnings

Array = np.ndarray
FORMULA = "N = coefficient * D^exponent"
FACTORS = (0.5, 1.0, 2.0)  # of the tolerance


def fit_pac(group: Group, settings: PointFit) -> dict[str, Any]:
    """The entry of one group. Raises UserError for fewer than two amounts of data at which a size can be chosen."""
    sets, rules = data_sets(group)
    tolerance, log_loss = settings.options.tolerance, np.log(group.numbers["loss"])
    chosen = [smallest(each, log_loss[None, each.members], tolerance) for each in sets]
    used = [at for at, each in enumerate(chosen) if not each.first[0]]
    _enough(sets, used)
    kept, picked = [sets[at] for at in used], [chosen[at] for at in used]
    log_d, log_n = np.array([each.log_d for each in kept]), np.array([each.log_n[0] for each in picked])
    (law,) = power_laws(log_d, log_n[None])
    noise = measured_noise(group, kept, settings)
    replicates = replicate(group, kept, settings, noise, log_n)
    settled = np.isfinite(replicates).all(1)
    fitted = replicates[settled]
    exponent = middling(law[1], fitted[:, 1])
    parameters = {name: _row(name, law[at], fitted[:, at]) for at, name in enumerate(("coefficient", "exponent"))}
    members = np.concatenate([each.members for each in kept])
    units = len(kept) if settings.by == "budget" else len(np.unique(group.units(settings.by)[members]))
    sensitivity = [_under(sets, log_loss, tolerance.times(factor)) for factor in FACTORS]
    return {
        "law": "pac",
        "formula": FORMULA,
        "parameters": parameters,
        "derived": _derived(law, fitted),
        "verdict": verdict(exponent),
        "compared": compared(exponent),
        "objective": {
            "name": "root mean square residual of log N",
            "value": float(np.sqrt(np.mean((log_n - law[1] * log_d - np.log(law[0])) ** 2))),
        },
        "starts": None,
        "classical": None,
        "points_used": len(members),
        "bootstrap": noise.entry(settled, units, settings.by),
        "dropped": rules + _too_small(group, sets, chosen),
        "draws": draws(parameters, fitted),
        "minima": {
            "tokens": rounded(np.exp(log_d)),
            "params": rounded(np.exp(log_n)),
            "loss": rounded(np.exp([each.log_loss[0] for each in picked])),
            "best_loss": rounded(np.exp([each.best[0] for each in picked])),
        },
        "curves": [_curve(group, each, one) for each, one in zip(sets, chosen, strict=True)],
        "band": _band(log_d, law),
        "sensitivity": sensitivity,
        "points": listed_points(part(group, members), ("n", "d", "loss"), _excess(log_loss, kept, picked)),
        "warnings": point_warnings(group)
        + pac_warnings([each.log_d for each in sets], chosen, settings, noise, exponent, sensitivity)
        + shared_runs_warning(group, [each.members for each in kept], settings)
        + resampling_warnings(settled, 0),
    }


def _enough(sets: list[DataSet], used: list[int]) -> None:
    if len(used) < MIN_SETS:
        small = f"; at {len(sets) - len(used)} the smallest size is good enough: add smaller ones, or lower --tolerance"
        raise UserError(
            f"{len(used)} amount(s) of data with {MIN_SIZES} sizes or more of which one can be chosen: "
            f"a law of D needs {MIN_SETS}"
            + (
                small
                if len(used) < len(sets)
                else "; values of d less than 5% apart are one amount: choose rows with --where"
            )
        )


def _row(name: str, value: float, replicates: Array) -> dict[str, Any]:
    """Value, interval and verdict of a parameter, as `compute_laws.parameter_table` gives them."""
    row = middling(value, replicates)
    low, high = row["low"], row["high"]
    known = low is not None and (high < 10 * low if name == "coefficient" else low * high > 0)
    return row | {"at_bound": False, "identified": bool(known), "profile": None}


def _derived(law: Array, replicates: Array) -> dict[str, dict[str, Any]]:
    """What twice the data do to N, and the shares of replicates whose exponent is below, within or above the band."""
    found = {"n_for_twice_data": middling(2 ** law[1], 2 ** replicates[:, 1])}
    if len(replicates):
        low, high = BAND
        below, above = float((replicates[:, 1] < low).mean()), float((replicates[:, 1] > high).mean())
        shares = {"share_below": below, "share_within": 1 - below - above, "share_above": above}
        found |= {name: summary(each, np.empty(0)) for name, each in shares.items()}
    return found


def _under(sets: Sequence[DataSet], log_loss: Array, tolerance: Tolerance) -> dict[str, Any]:
    """The law with another tolerance; null where it cannot be fitted."""
    chosen = [smallest(each, log_loss[None, each.members], tolerance) for each in sets]
    pairs = [(each.log_d, one.log_n[0]) for each, one in zip(sets, chosen, strict=True) if not one.first[0]]
    row: dict[str, Any] = {"tolerance": str(tolerance), "amounts": len(pairs), "coefficient": None, "exponent": None}
    if len(pairs) >= MIN_SETS:
        log_d, log_n = np.array(pairs).T
        row["coefficient"], row["exponent"] = power_laws(log_d, log_n[None])[0].tolist()
    return row


def _too_small(group: Group, sets: Sequence[DataSet], chosen: Sequence[Smallest]) -> list[dict[str, Any]]:
    rule = "data: the smallest size is good enough"
    pairs = zip(sets, chosen, strict=True)
    return [{"row": int(row), "rule": rule} for data, one in pairs if one.first[0] for row in group.rows[data.members]]


def _curve(group: Group, data: DataSet, chosen: Smallest) -> dict[str, Any]:
    """Loss over sizes at one D, and the size chosen; `edge` where the smallest is good enough and it is not used."""
    loss, params = group.numbers["loss"][data.members], group.numbers["n"][data.members]
    return {
        "tokens": float(np.exp(data.log_d)),
        "params": rounded(params),
        "loss": rounded(loss),
        "minimum": {"params": float(np.exp(chosen.log_n[0])), "loss": float(np.exp(chosen.log_loss[0]))},
        "edge": bool(chosen.first[0]),
    }


def _band(log_d: Array, law: Array) -> dict[str, list[float]]:
    """N ~ D^0.44 and N ~ D^0.72 through the law at the middle of D, over the range of D."""
    middle = log_d.mean()
    centre = np.log(law[0]) + law[1] * middle
    ends = np.array([log_d.min(), log_d.max()])
    low, high = (rounded(np.exp(centre + each * (ends - middle))) for each in BAND)
    return {"tokens": rounded(np.exp(ends)), "low": low, "high": high}


def _excess(log_loss: Array, sets: Sequence[DataSet], chosen: Sequence[Smallest]) -> Array:
    """(m,) log of the loss that is good enough over that of each point, set after set: negative for too small sizes."""
    pairs = zip(sets, chosen, strict=True)
    return np.concatenate([one.log_loss[0] - log_loss[data.members] for data, one in pairs])
