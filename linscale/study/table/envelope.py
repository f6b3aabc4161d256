"""Envelope laws from a table whose rows are checkpoints of runs: the estimator of a study, at another door."""

from __future__ import annotations

from typing import Any

import numpy as np

from linscale.config import UserError
from linscale.study.envelope import MIN_POINTS
from linscale.study.envelope_fit import Estimate, FitConfig, estimate
from linscale.study.fit import band, envelope_warnings, parameter_rows, thinned
from linscale.study.laws import FORMULA, PARAMETERS, PFLOP_S_DAY
from linscale.study.results import Curve
from linscale.study.table.compute_laws import objective, residuals
from linscale.study.table.group import Group, PointFit, draws, listed_points, part, rounded
from linscale.study.table.warnings import point_warnings

Array = np.ndarray


def fit_envelope(group: Group, settings: PointFit) -> dict[str, Any]:
    """The entry of one group. Raises UserError where rows are no curves, and as `envelope_fit.estimate` does."""
    labels = run_labels(group)
    if settings.bootstrap and settings.by != "run":
        raise UserError(f"by = {settings.by}: an envelope resamples runs within their size; use --by run")
    config = FitConfig(
        loss="validation", bootstrap=settings.bootstrap, seed=settings.seed, seed_noise=settings.options.seed_noise
    )
    found = estimate(curves(group, labels), config)
    dropped = _dropped(group, labels, config.discard)
    gone = {item["row"] for item in dropped}
    kept = np.array([at for at, row in enumerate(group.rows) if int(row) not in gone])
    natural = found.replicates.copy()
    natural[:, 0::2] = np.exp(natural[:, 0::2])
    return {
        "law": "envelope",
        "formula": FORMULA,
        "parameters": {name: row | {"profile": None} for name, row in parameter_rows(found).items()},
        "derived": {},
        "objective": objective(np.sqrt((found.residuals**2).mean(1))),
        "starts": None,
        "classical": None,
        "points_used": len(kept),
        "bootstrap": {
            "replicates": settings.bootstrap,
            "settled": len(found.replicates),
            "units": len(found.ladder.runs),
            "by": settings.by,
            "seed_noise": found.seed_noise,
            "seed_noise_source": "measured" if found.noise_measured else "assumed",
        },
        "dropped": dropped,
        "left_out": [{"rule": rule, "count": count} for rule, count in found.points.dropped.items()],
        "draws": draws(PARAMETERS, natural),
        "minima": {name: rounded(values) for name, values in thinned(found.points).items()},
        "band": band(found.log_compute, found.replicates),
        "points": listed_points(part(group, kept), ("n", "d", "c", "loss"), _above(group, kept, found)),
        "warnings": point_warnings(group) + envelope_warnings(found, config),
    }


def run_labels(group: Group) -> Array:
    """(m,) what tells runs apart: the run, and the seed where there is a column of it. UserError without a run."""
    if "run" not in group.labels:
        raise UserError("run: an envelope needs to know which rows are checkpoints of one run; --columns run=NAME")
    runs = group.labels["run"]
    if "seed" in group.labels:
        return np.char.add(np.char.add(runs, " seed "), group.labels["seed"])
    return runs


def curves(group: Group, labels: Array) -> list[Curve]:
    """The curve of every run. Raises UserError for a run whose rows are of several sizes, or of equal tokens."""
    found = []
    for run in np.unique(labels):
        members = np.flatnonzero(labels == run)
        members = members[np.argsort(group.numbers["d"][members], kind="stable")]
        n, d, c, loss = (group.numbers[role][members] for role in ("n", "d", "c", "loss"))
        if np.ptp(n) > 1e-6 * n[0]:
            raise UserError(f"run {run}: n goes from {n.min():g} to {n.max():g}; rows of a run are of one size")
        if (again := members[1:][np.diff(d) <= 0]).size:
            raise UserError(
                f"run {run}: row {group.rows[again[0]]} has the tokens of another row; leave it out with --where, or "
                "tell seeds apart with --columns seed=NAME"
            )
        found.append(Curve(str(run), group.name, f"{n[0]:g}", float(n[0]), float(np.median(c / d)), d, c, loss))
    return found


def _dropped(group: Group, labels: Array, discard: float) -> list[dict[str, Any]]:
    """Rows that are in no curve, each with the rule, in the order of rows."""
    pairs = []
    for run in np.unique(labels):
        members = np.flatnonzero(labels == run)
        d = group.numbers["d"][members]
        warm = d < discard * d.max()
        pairs += [(int(row), f"warm_up: first {discard:.0%} of a run") for row in group.rows[members[warm]]]
        if (~warm).sum() < MIN_POINTS:
            rule = f"too_few_values: a run with fewer than {MIN_POINTS} rows after it"
            pairs += [(int(row), rule) for row in group.rows[members[~warm]]]
    return [{"row": row, "rule": rule} for row, rule in sorted(pairs)]


def _above(group: Group, kept: Array, found: Estimate) -> Array:
    """(k,) log of the law's loss at the compute of each kept point, minus that of the point: how far it is above."""
    law = found.laws.copy()[None]
    law[:, 0::2] = np.exp(law[:, 0::2])
    log_compute = np.log(group.numbers["c"][kept] / PFLOP_S_DAY)
    log_values = np.tile(np.log(group.numbers["loss"][kept]), (1, 3, 1))
    return np.asarray(residuals(log_compute[None], log_values, law)[0, 0])
