"""Fit a law to a table of points, group by group: the content of the JSON that `linscale fit` writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from linscale.config import UserError
from linscale.study.table.group import Group, PointFit, Unit, select
from linscale.study.table.minimise import Space
from linscale.study.table.points import Points


@dataclass(frozen=True)
class TableLaw:
    """A law that a table can be fitted with."""

    roles: tuple[str, ...]
    """What a row must hold."""
    where: str
    """ "module.function" beside this file, imported when it is called: a law does not wait for the others."""
    optional: tuple[str, ...] = ()
    """What it reads too where there is a column for it."""
    loss: str = "huber:1e-3"
    """Of residuals, where nothing else is said."""
    space: Space = "log"
    """The same."""
    reads_loss: bool = True
    """Whether residuals count as --loss and --space say; else by least squares of logarithms."""

    def fit(self, group: Group, settings: PointFit) -> dict[str, Any]:
        """The entry of one group in the JSON. Raises UserError when its points are too few or unfit for the law."""
        module, function = self.where.split(".")
        entry: dict[str, Any] = getattr(import_module(f"linscale.study.table.{module}"), function)(group, settings)
        return entry


TABLE_LAWS: Mapping[str, TableLaw] = {
    "chinchilla": TableLaw(("n", "d", "loss"), "surface.fit_surface"),
    "gamma": TableLaw(("n", "d", "loss"), "surface.fit_surface"),
    "power": TableLaw(("c", "loss"), "surface.fit_surface"),
    "power_irreducible": TableLaw(("c", "loss"), "surface.fit_surface"),
    "overtrain": TableLaw(("n", "d", "loss"), "overtrain.fit_overtrain", ("error",)),
    "repeat": TableLaw(("n", "d", "unique", "loss"), "repeat.fit_repeat"),
    "repeat_no_excess": TableLaw(("n", "d", "unique", "loss"), "repeat.fit_repeat"),
    "sigmoid": TableLaw(("bpb", "accuracy"), "sigmoid.fit_sigmoid", loss="l2", space="linear"),
    "isoflop": TableLaw(("n", "d", "c", "loss"), "isoflop.fit_isoflop", reads_loss=False),
    "envelope": TableLaw(("n", "d", "c", "loss"), "envelope.fit_envelope", reads_loss=False),
    "pac": TableLaw(("n", "d", "loss"), "pac.fit_pac", reads_loss=False),
    "isoflop_irreducible": TableLaw(("n", "d", "c", "loss"), "isoflop.fit_isoflop", reads_loss=False),
}
"""By the name of --law; --irreducible makes power power_irreducible, --no-excess makes repeat repeat_no_excess."""


UNITS: Mapping[str, str] = {
    "C": "PFLOP/s-day = 8.64e19 training FLOPs, as the table or its definition counts them",
    "L": "nats per token",
    "N_opt": "parameters, as the table or its definition counts them",
    "D_opt": "tokens",
}
"""Of the laws' quantities; what a table's own numbers leave out is its affair, and `columns` says which they are."""


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
    import scipy.optimize  # noqa: F401  it brings a BLAS of its own, which must be there to be limited
    from threadpoolctl import threadpool_limits

    law, groups, refused = TABLE_LAWS[settings.law], [], []
    if "weight" in points.numbers and not law.reads_loss:
        raise UserError(f"columns: weight: the {settings.law} law does not weight its points; leave it out")
    for name in sorted(set(points.groups.tolist())):
        group, dropped = select(points, name, settings.drop)
        try:
            with threadpool_limits(1, "blas"):  # products are small here: more threads wait for each other, busily
                fitted = law.fit(group, settings)
        except UserError as error:
            refused.append({"group": name, "reason": str(error)})
        else:
            groups.append({"group": name, **fitted, "dropped": dropped + fitted.get("dropped", [])})
    loss = str(settings.loss).removesuffix("L") + ("L" if "loss" in law.roles else "accuracy")
    if not groups:
        raise UserError("; ".join(f"{item['group']}: {item['reason']}" for item in refused))
    return {
        "version": 1,
        "units": dict(UNITS),
        "columns": dict(points.columns),
        "definitions": points.definitions,
        "notes": list(points.notes),
        "settings": {
            "loss": loss if law.reads_loss else None,
            "drop": ":".join(map(str, settings.drop)) if settings.drop[1] else None,
            "bootstrap": settings.bootstrap,
            "by": settings.by,
            "seed": settings.seed,
            **settings.options.listed(settings.law),
        },
        "dropped": [{"row": row, "rule": rule} for row, rule in points.dropped],
        "groups": groups,
        "refused": refused,
    }
