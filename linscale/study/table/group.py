"""One group of a table's points, the settings it is fitted with, and the parts that every law's result is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from linscale.config import UserError
from linscale.study.laws import PFLOP_S_DAY
from linscale.study.table.options import LawOptions
from linscale.study.table.points import Points
from linscale.study.table.surface_fit import Loss

Array = np.ndarray
Unit = Literal["run", "point", "budget", "seed"]
BUDGET_GAP = 0.05  # in log C: points closer than this to a neighbour are of one budget
INTERVAL = (2.5, 97.5)
DIGITS = 8  # significant, of the draws in the JSON


@dataclass(frozen=True)
class PointFit:
    """How the points are fitted; what a law does not need it does not read."""

    law: str
    loss: Loss
    drop: tuple[str, int] = ("highest", 0)
    """"highest" or "lowest" losses of each group, and how many of them are left out."""
    bootstrap: int = 1000
    by: Unit = "point"
    seed: int = 0
    options: LawOptions = field(default_factory=LawOptions)


@dataclass(frozen=True)
class Group:
    """The m points of one group that are fitted."""

    name: str
    numbers: Mapping[str, Array]
    """By role, each (m,), as the table has them: FLOPs, not PFLOP/s-days."""
    labels: Mapping[str, Array]
    """By role, each (m,) texts."""
    rows: Array
    """(m,) numbers of the rows in the file."""
    columns: Mapping[str, str]
    """By role, the column or the definition that was used."""

    @property
    def compute(self) -> Array:
        """(m,) C in PFLOP/s-days, the unit of every law of compute."""
        return self.numbers["c"] / PFLOP_S_DAY

    def units(self, by: Unit) -> Array:
        """(m,) what tells the units of a bootstrap apart. Raises UserError when the table does not say."""
        if by == "point":
            return self.rows
        if by == "seed":
            raise UserError("by = seed: this law is resampled by run, point or budget")
        if by in self.labels:
            return self.labels[by]
        if by == "run":
            raise UserError("by = run: no column tells runs apart; name it with --columns run=NAME, or use --by point")
        if "c" not in self.numbers:
            raise UserError("by = budget: needs FLOPs; name them with --columns c=NAME or c=6nd, or budget=NAME")
        return budgets(self.numbers["c"])


def part(group: Group, members: Array) -> Group:
    """The points at some positions."""
    numbers = {role: values[members] for role, values in group.numbers.items()}
    labels = {role: values[members] for role, values in group.labels.items()}
    return Group(group.name, numbers, labels, group.rows[members], group.columns)


def budgets(flops: Array) -> Array:
    """(m,) numbers of the budgets that FLOPs (m,) fall into, ascending: a gap of 5% parts two budgets."""
    order = np.argsort(flops, kind="stable")
    steps = np.diff(np.log(flops[order]), prepend=np.nan)
    labels = np.empty(order.size, dtype=int)
    labels[order] = np.cumsum(steps > BUDGET_GAP)
    return labels


def select(points: Points, name: str, rule: tuple[str, int]) -> tuple[Group, list[dict[str, Any]]]:
    """The points of group `name` without those that the rule drops, and the rows dropped, each with the rule.

    Of equal losses the later row goes.
    """
    members = np.flatnonzero(points.groups == name)
    kept, gone = members, members[:0]
    end, count = rule
    if count:
        if "loss" not in points.numbers:
            raise UserError(f"drop = {end}:{count}: the law reads no loss to rank by; leave rows out with --where")
        loss = points.numbers["loss"][members]
        order = np.argsort(-loss if end == "lowest" else loss, kind="stable")
        cut = max(len(members) - count, 0)
        kept, gone = np.sort(members[order[:cut]]), np.sort(members[order[cut:]])
    group = Group(
        name,
        {role: values[kept] for role, values in points.numbers.items()},
        {role: values[kept] for role, values in points.labels.items()},
        points.rows[kept],
        points.columns,
    )
    return group, [{"row": int(points.rows[at]), "rule": f"drop: {end}:{count}"} for at in gone]


def summary(value: float, replicates: Array) -> dict[str, Any]:
    """`value` with standard error and 95% interval from replicates (r,): null for none of them."""
    finite = replicates[np.isfinite(replicates)]
    low, high = np.percentile(finite, INTERVAL) if finite.size else (None, None)
    return {
        "value": float(value),
        "se": float(np.std(finite, ddof=1)) if finite.size > 1 else None,
        "low": None if low is None else float(low),
        "high": None if high is None else float(high),
    }


def draws(names: Iterable[str], replicates: Array) -> dict[str, list[float]]:
    """Replicates (r, p) of parameters as the JSON keeps them, by name: what intervals of predictions come from."""
    return {name: rounded(replicates[:, at]) for at, name in enumerate(names)}


def rounded(values: Iterable[float]) -> list[float]:
    """Numbers to eight significant digits, short in JSON."""
    return [float(f"{value:.{DIGITS}g}") for value in values]


def listed_points(group: Group, roles: Iterable[str], residual: Array) -> dict[str, list[Any]]:
    """The points in the JSON: rows, what the law reads of them, labels, and residuals (m,)."""
    table: dict[str, list[Any]] = {"row": group.rows.tolist()}
    table |= {role: group.numbers[role].tolist() for role in roles}
    table |= {role: values.tolist() for role, values in group.labels.items()}
    return table | {"residual": rounded(residual)}


def warning(name: str, text: str, detail: Iterable[str] = ()) -> dict[str, str]:
    """A named warning: `detail` is the numbers or rows that the text is about."""
    return {"name": name, "text": text, "detail": ", ".join(detail)}
