"""The minima of compute budgets, and replicates of them as noise would move them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from linscale.study.laws import PFLOP_S_DAY
from linscale.study.table.budgets import Budget
from linscale.study.table.compute_laws import fit_laws, residuals
from linscale.study.table.curve_noise import Noise, line_draws, measure
from linscale.study.table.group import Group, PointFit
from linscale.study.table.options import Abscissa, Method
from linscale.study.table.valley import NEEDED, degree_of, design, find_minimum

Array = np.ndarray
BEYOND = 2.0  # half widths of a grid that a resample's minimum may lie out: cut off, resamples vary too little
FOR_INTERVALS = 3  # budgets: two lie on any line


@dataclass(frozen=True)
class Minima:
    """Of r replicates at g budgets."""

    log_compute: Array
    """(r, g) in PFLOP/s-days."""
    log_values: Array
    """(r, 3, g) L, N_opt, D_opt."""
    kept: Array
    """(r, g)"""
    z: Array
    """(r, g) place on the axis of the budget."""

    def laws(self, irreducible: bool) -> Array:
        """Parameters (r, p)."""
        return fit_laws(self.log_compute, self.log_values, self.kept, irreducible)


def root_mean_squares(minima: Minima, laws: Array) -> Array:
    """(r, 3) of what laws (r, p) leave of the minima that are kept."""
    left = residuals(minima.log_compute, minima.log_values, laws)
    kept = minima.kept[:, None]
    return np.asarray(np.sqrt((left**2).sum(-1, where=kept) / np.maximum(kept.sum(-1), 1)))


def rule_of(budget: Budget, method: Method) -> str | None:
    """Why a budget has no minimum to use; None where it has."""
    if budget.sizes < NEEDED[method]:
        return f"budget: fewer than {NEEDED[method]} sizes"
    minimum = find_minimum(method, budget.axis, budget.log_loss[None])
    if np.isnan(minimum.z[0]):
        return "budget: no minimum"
    return None if minimum.inside[0] and not budget.lowest_at_end else "budget: minimum at an edge"


def find_minima(
    used: Sequence[Budget], log_loss: Sequence[Array], method: Method, abscissa: Abscissa, beyond: float = 1.0
) -> Minima:
    """Minima of replicates: log_loss (r, m) of each budget. Kept are those within `beyond` half widths."""
    columns = []
    for budget, values in zip(used, log_loss, strict=True):
        minimum = find_minimum(method, budget.axis, values)
        inside = np.abs(minimum.z) <= beyond
        z = np.where(inside, minimum.z, 0.0)
        log_c = budget.at(z, budget.log_c) if abscissa == "achieved" else np.full(z.shape, np.log(budget.flops))
        log_n = budget.axis.centre + budget.axis.reach * z
        log_l = np.where(inside, minimum.log_loss, 0.0)
        columns.append((log_c - np.log(PFLOP_S_DAY), log_l, log_n, budget.at(z, budget.log_d), inside, minimum.z))
    c, loss, n, d, kept, z = (np.stack(each, axis=-1) for each in zip(*columns, strict=True))
    return Minima(c, np.stack([loss, n, d], axis=1), kept, z)


def measured_noise(group: Group, used: Sequence[Budget], settings: PointFit) -> Noise:
    """What the curves leave of the points; by run where a run has points in more than one budget."""
    designs = [design(each.axis.z, degree_of(settings.options.minimum, each.sizes)) for each in used]
    runs = runs_of(group, used) if settings.by == "run" else None
    return measure(designs, [each.log_loss for each in used], runs, settings.options.seed_noise)


def replicate(
    group: Group, used: Sequence[Budget], settings: PointFit, abscissa: Abscissa, minima: Minima, noise: Noise
) -> Minima:
    """Minima of replicates: as many as asked for, or none for fewer than three budgets."""
    count = settings.bootstrap if len(used) >= FOR_INTERVALS else 0
    if not count:
        nothing = np.empty((0, len(used)))
        return Minima(nothing, np.empty((0, 3, len(used))), nothing.astype(bool), nothing)
    generator = np.random.default_rng(settings.seed)
    if settings.by == "budget":
        return _by_budget(minima, count, settings.law.endswith("_irreducible"), generator)
    method, sizes = settings.options.minimum, [len(each.members) for each in used]
    run_of = runs_of(group, used) if settings.by == "run" else np.arange(sum(sizes))
    noises = np.split(noise.draw(run_of, count, generator), np.cumsum(sizes)[:-1], axis=1)
    smooth = []
    for each in used:
        basis = design(each.axis.z, degree_of(method, each.sizes))
        smooth.append((basis @ np.linalg.pinv(basis) @ each.log_loss)[None])
    plain = find_minima(used, smooth, method, abscissa, BEYOND)
    noisy = find_minima(used, [a + b for a, b in zip(smooth, noises, strict=True)], method, abscissa, BEYOND)
    step = noisy.log_values - plain.log_values
    step[:, 0] *= -1  # the lowest of noisy losses is too low: as much as in replicates, and the other way
    return Minima(
        minima.log_compute + noisy.log_compute - plain.log_compute,
        minima.log_values + step,
        noisy.kept & plain.kept,
        noisy.z,
    )


def runs_of(group: Group, used: Sequence[Budget]) -> Array:
    """(sum of m_b,) numbers of the runs of the budgets' points."""
    return np.unique(group.units("run")[np.concatenate([each.members for each in used])], return_inverse=True)[1]


def _by_budget(minima: Minima, count: int, irreducible: bool, generator: np.random.Generator) -> Minima:
    """The minima of replicates scatter about the laws as they are seen to."""
    (log_compute,), (values,) = minima.log_compute, minima.log_values
    basis = np.stack([np.ones_like(log_compute), log_compute], axis=1)
    drawn = line_draws(basis, values, count, generator)
    if irreducible:  # L about the curve with E, which has a parameter more than a line
        left = residuals(minima.log_compute, minima.log_values, minima.laws(True))[0, 0]
        freedom = len(left) - 3
        scale = np.sqrt((left @ left) / generator.chisquare(freedom, size=count))
        drawn[:, 0] = values[0] + left + scale[:, None] * generator.standard_normal((count, len(left)))
    kept = np.ones((count, len(log_compute)), dtype=bool)
    return Minima(minima.log_compute, drawn, kept, np.broadcast_to(minima.z, kept.shape))
