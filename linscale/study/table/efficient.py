"""The smallest size that is good enough for each amount of data, and replicates of it as noise would move it.

*Intervals.* Noise is added to a smooth curve along each set (a polynomial in log N of degree two less than there are
sizes, 2 to 6), the estimate is made anew with and without it, and the difference is taken the other way: the lowest of
noisy losses is too low, and N too large by as much in replicates as in the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from linscale.study.laws import fit_power_laws
from linscale.study.table.curve_noise import Noise, line_draws, measure
from linscale.study.table.group import Group, PointFit, budgets
from linscale.study.table.options import Tolerance
from linscale.study.table.valley import Axis, design

Array = np.ndarray
MIN_SIZES = 3
MIN_SETS = 2
FOR_INTERVALS = 3
MIN_REPEATS = 3  # degrees of freedom from which repeats alone measure noise
DEGREES = (2, 6)  # of the smooth curve: two less than sizes, within these


@dataclass(frozen=True)
class DataSet:
    """The points of one D: s sizes in ascending order, and their m points."""

    log_d: float
    members: Array
    """(m,) positions in the group."""
    log_n: Array
    """(s,)"""
    size_of: Array
    """(m,) the size of each point."""

    def means(self, log_loss: Array) -> Array:
        """(r, s) mean log loss of each size, from replicates (r, m)."""
        return np.asarray(log_loss @ self.alike() / np.bincount(self.size_of))

    def alike(self) -> Array:
        """(m, s) one where a point is of a size, else zero."""
        return (self.size_of[:, None] == np.arange(len(self.log_n))).astype(float)

    def smooth(self) -> Array:
        """(m, p) powers of log N that stand for the curve itself."""
        return design(Axis(self.log_n[self.size_of]).z, int(np.clip(len(self.log_n) - 2, *DEGREES)))


@dataclass(frozen=True)
class Smallest:
    """The smallest size that is good enough, for r replicates; all arrays (r,)."""

    log_n: Array
    log_loss: Array
    """At the threshold."""
    best: Array
    """Lowest log loss."""
    first: Array
    """True where even the smallest size is good enough: N may be less."""
    last: Array
    """True where the largest size has the lowest loss: a larger one may be better still."""


def data_sets(group: Group) -> tuple[list[DataSet], list[dict[str, Any]]]:
    """Sets of equal D, ascending, with three sizes or more; and the rows of the others, with the rule."""
    found, dropped = [], []
    labels = budgets(group.numbers["d"])
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        members = members[np.argsort(group.numbers["n"][members], kind="stable")]
        log_n, size_of = np.unique(np.log(group.numbers["n"][members]), return_inverse=True)
        if len(log_n) < MIN_SIZES:
            rule = f"data: fewer than {MIN_SIZES} sizes"
            dropped += [{"row": int(row), "rule": rule} for row in group.rows[members]]
        else:
            found.append(DataSet(float(np.log(group.numbers["d"][members]).mean()), members, log_n, size_of))
    return found, sorted(dropped, key=lambda item: item["row"])


def smallest(data: DataSet, log_loss: Array, tolerance: Tolerance) -> Smallest:
    """The smallest size within the tolerance of the best, for replicates log_loss (r, m)."""
    means = data.means(log_loss)
    best = means.min(1)
    limit = best + np.log1p(tolerance.amount if tolerance.relative else tolerance.amount / np.exp(best))
    at = (means <= limit[:, None]).argmax(1)
    before = np.maximum(at - 1, 0)
    rows = np.arange(len(means))
    high, low = means[rows, before], means[rows, at]
    with np.errstate(all="ignore"):
        share = np.where(at > 0, (high - limit) / (high - low), 1.0)
    log_n = data.log_n[before] + share * (data.log_n[at] - data.log_n[before])
    return Smallest(log_n, np.where(at > 0, limit, low), best, at == 0, means.argmin(1) == len(data.log_n) - 1)


def power_laws(log_d: Array, log_n: Array) -> Array:
    """Coefficient and exponent (r, 2) of log N (r, g), nan where there is none."""
    known = np.isfinite(log_n)
    intercept, slope = fit_power_laws(log_d, log_n, known)
    with np.errstate(over="ignore"):
        found = np.stack([np.exp(intercept), slope], axis=1)
    return np.where(known.sum(1)[:, None] >= MIN_SETS, found, np.nan)


def measured_noise(group: Group, sets: list[DataSet], settings: PointFit) -> Noise:
    """From sizes that repeat at equal D where there are enough of them, else from what smooth curves leave."""
    log_loss = np.log(group.numbers["loss"])
    values = [log_loss[each.members] for each in sets]
    runs = _runs(group, sets) if settings.by == "run" else None
    repeats = sum(len(each.members) - len(each.log_n) for each in sets)
    designs = [each.alike() if repeats >= MIN_REPEATS else each.smooth() for each in sets]
    return measure(designs, values, runs, settings.options.seed_noise)


def _runs(group: Group, sets: list[DataSet]) -> Array:
    return np.unique(group.units("run")[np.concatenate([each.members for each in sets])], return_inverse=True)[1]


def replicate(group: Group, sets: list[DataSet], settings: PointFit, noise: Noise, log_n: Array) -> Array:
    """Coefficient and exponent (bootstrap, 2); none for fewer than three amounts of data."""
    count = settings.bootstrap if len(sets) >= FOR_INTERVALS else 0
    generator = np.random.default_rng(settings.seed)
    log_d = np.array([each.log_d for each in sets])
    if settings.by == "budget":
        basis = np.stack([np.ones_like(log_d), log_d], axis=1)
        return power_laws(log_d, line_draws(basis, log_n[None], count, generator)[:, 0])
    sizes = [len(each.members) for each in sets]
    run_of = _runs(group, sets) if settings.by == "run" else np.arange(sum(sizes))
    noises = np.split(noise.draw(run_of, count, generator), np.cumsum(sizes)[:-1], axis=1)
    log_loss, tolerance = np.log(group.numbers["loss"]), settings.options.tolerance
    columns = []
    for data, moved, value in zip(sets, noises, log_n, strict=True):
        basis = data.smooth()
        smooth = basis @ np.linalg.pinv(basis) @ log_loss[data.members]
        plain, noisy = smallest(data, smooth[None], tolerance), smallest(data, smooth + moved, tolerance)
        columns.append(value - (noisy.log_n - plain.log_n))
    return power_laws(log_d, np.stack(columns, axis=1))
