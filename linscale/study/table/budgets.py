"""The points of a group as compute budgets: what is fixed in an isoFLOP experiment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from linscale.config import UserError
from linscale.study.table.group import Group, budgets
from linscale.study.table.options import Abscissa
from linscale.study.table.valley import Axis

Array = np.ndarray
ALIKE = 1e-3  # relative difference of FLOPs up to which nominal and achieved are the same
NEAR = 3.0  # ratio up to which a label of a budget is taken as its FLOPs


@dataclass(frozen=True)
class Budget:
    """The m points of one budget, in the order of N; logarithms (m,) of FLOPs, parameters, tokens and loss."""

    flops: float
    """Nominal: the budget's label where that is FLOPs, else the geometric mean of its points."""
    members: Array
    """(m,) positions in the group."""
    log_n: Array
    log_d: Array
    log_c: Array
    log_loss: Array

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.flops:.3g}"

    @property
    def axis(self) -> Axis:
        return Axis(self.log_n)

    @property
    def sizes(self) -> int:
        return len(np.unique(self.log_n))

    @property
    def lowest_at_end(self) -> bool:
        """Whether the smallest or the largest size has the lowest mean loss, even if a curve has a minimum."""
        _, which = np.unique(self.log_n, return_inverse=True)
        means = np.bincount(which, self.log_loss) / np.bincount(which)
        return int(means.argmin()) in (0, len(means) - 1)

    @property
    def spread(self) -> float:
        """Largest over least FLOPs of its points."""
        return float(np.exp(np.ptp(self.log_c)))

    def at(self, z: Array, values: Array) -> Array:
        """`values` (m,) of the points at places z (r,) of the axis: linear in log N, and on beyond the ends."""
        knots, which = np.unique(self.axis.z, return_inverse=True)
        means = np.bincount(which, values) / np.bincount(which)
        left = np.clip(np.searchsorted(knots, z) - 1, 0, len(knots) - 2)
        slope = (means[left + 1] - means[left]) / (knots[left + 1] - knots[left])
        return np.asarray(means[left] + slope * (z - knots[left]))


def split(group: Group) -> list[Budget]:
    """The budgets of a group in the order of FLOPs: by the column `budget`, else where FLOPs leave gaps of 5%."""
    numbers = group.numbers
    named = group.labels.get("budget")
    labels = budgets(numbers["c"]) if named is None else named
    found = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        members = members[np.argsort(numbers["n"][members], kind="stable")]
        n, d, c, loss = (np.log(numbers[role][members]) for role in ("n", "d", "c", "loss"))
        found.append(Budget(_nominal(label, c, named is not None), members, n, d, c, loss))
    return sorted(found, key=lambda each: each.flops)


def choose_abscissa(found: list[Budget], asked: Abscissa | None) -> Abscissa:
    """What was asked for. Raises UserError where nothing was and it matters."""
    if asked is not None:
        return asked
    for each in found:
        off = float(np.abs(np.expm1(each.log_c - np.log(each.flops))).max())
        if off > ALIKE:
            raise UserError(
                f"abscissa: FLOPs of the points of budget {each.name} are up to {off:.1%} off it; "
                "choose --abscissa nominal (the budget's) or achieved (its points', at the minimum)"
            )
    return "nominal"


def _nominal(label: object, log_c: Array, named: bool) -> float:
    mean = float(np.exp(log_c.mean()))
    if not named:
        return mean
    try:
        value = float(str(label))
    except ValueError:
        return mean
    return value if mean / NEAR < value < mean * NEAR else mean
