"""A study that ends with the law of efficient models: [fit] law = "pac".

    curves -> the best checkpoint of every finished run: what early stopping keeps where text is read again and again
           -> N(D) = the smallest size that is good enough for D = unique_tokens (table/pac.py), one law an architecture

The best checkpoints are kept as points.csv, a table that `linscale fit` reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from linscale.config import UserError
from linscale.study.envelope_fit import FitConfig
from linscale.study.sources import runs
from linscale.study.sources.read import open_source
from linscale.study.sources.table import Row, Table, write
from linscale.study.table.efficient import MIN_SETS, MIN_SIZES
from linscale.study.table.fit import TABLE_LAWS, default_unit, fit_points
from linscale.study.table.group import PointFit, budgets
from linscale.study.table.options import parse_options
from linscale.study.table.points import read_points
from linscale.study.table.surface_fit import Loss

if TYPE_CHECKING:
    from linscale.study.plan import PlannedRun

POINTS = "points.csv"
COLUMNS = {"n": "params", "d": "unique_tokens", "loss": "loss"}
LEFT_OUT = ("final", "step", "tokens", "flops")


def best_rows(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """One row a finished run: its checkpoint with the lowest validation loss, with `best_step` and `last_loss`.

    rows  one a checkpoint, as `sources.runs` reads them
    """
    found: list[dict[str, Any]] = []
    checkpoints: dict[str, list[Row]] = {}
    for row in rows:
        checkpoints.setdefault(row["run"], []).append(row)
    for each in checkpoints.values():
        measured = [row for row in each if row["loss"] is not None and math.isfinite(row["loss"])]
        last = [row for row in each if row["final"] and row["loss"] is not None]
        if last and measured:
            best = min(measured, key=lambda row: float(row["loss"]))
            kept = {name: value for name, value in best.items() if name not in LEFT_OUT}
            found.append({**kept, "best_step": best["step"], "last_loss": last[0]["loss"]})
    return found


def fit_efficient(folder: Path, settings: FitConfig) -> dict[str, Any]:
    """Write points.csv into the study's folder and fit the law to it, by architecture: the content of fits.json.

    An architecture that cannot be fitted is in `refused` with its reason. Raises UserError when none can, and where no
    run is finished; the table is there all the same if it has a row.
    """
    table = runs.read(runs.find(folder))
    found, out = best_rows(table.rows), folder / POINTS
    if not found:
        raise UserError(f"{folder}: no finished run with a validation loss yet; run the study first")
    write(Table(tuple(found), "best checkpoints"), out)
    law = TABLE_LAWS["pac"]
    points = read_points(open_source(out), columns=COLUMNS, needed=law.roles, group=("arch",))
    options = parse_options("pac", seed_noise=settings.seed_noise, tolerance=settings.tolerance)
    loss = Loss.parse(law.loss, law.space)
    unit = default_unit(points)
    try:
        result = fit_points(
            points, PointFit("pac", loss, ("highest", 0), settings.bootstrap, unit, settings.seed, options)
        )
    except UserError as error:
        raise UserError(f"{error}; {out} has the points, for linscale fit") from None
    return {"source": str(out), "loss": settings.loss, **result, "notes": [*table.notes, *result["notes"]]}


def require_amounts(planned: Sequence[PlannedRun], source: str) -> None:
    """Raise UserError naming `source` for runs that the law cannot be fitted to, whatever their losses will be."""
    for run in planned:
        train, size = run.config.train, run.config.size
        if train.unique_tokens is None:
            raise UserError(
                f'{source}: fit.law = "pac" is a law of the text that there is, and size {size!r} has no '
                'unique_tokens; set it in every size, or fit.law = "envelope"'
            )
        if train.unique_tokens > train.steps * train.batch_tokens:
            raise UserError(
                f"{source}: size {size!r}: unique_tokens = {train.unique_tokens} is more than the "
                f"{train.steps * train.batch_tokens} tokens that it reads; raise tokens, or lower unique_tokens"
            )
    for arch in dict.fromkeys(run.arch for run in planned):
        own = [run for run in planned if run.arch == arch]
        labels = budgets(np.array([run.config.train.unique_tokens for run in own], dtype=float))
        sizes = [{run.params for run, at in zip(own, labels, strict=True) if at == label} for label in set(labels)]
        if (enough := sum(len(each) >= MIN_SIZES for each in sizes)) < MIN_SETS:
            raise UserError(
                f'{source}: fit.law = "pac": {arch} has {enough} amount(s) of unique_tokens with {MIN_SIZES} sizes or '
                f"more, and the law needs {MIN_SETS}, more than 5% apart; add [[sizes]]"
            )


def require_text(planned: Sequence[PlannedRun], tokens: int) -> None:
    """Raise UserError where a run asks for more text than the `tokens` of the training split, all that it would get."""
    for run in planned:
        if (asked := run.config.train.unique_tokens or 0) > tokens:
            raise UserError(
                f"size {run.config.size!r}: unique_tokens = {asked}, and the training split has only {tokens} tokens; "
                "lower it, or give the study more text"
            )
