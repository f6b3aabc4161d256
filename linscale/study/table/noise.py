"""Noise between runs that differ in their seed alone, where a table repeats a configuration: its size, whether a law's
misfit exceeds it, and resamples drawn with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from linscale.config import UserError
from linscale.study.table.group import Group
from linscale.study.table.surface_fit import Problem
from linscale.study.table.surfaces import Array

LEAST = 3  # degrees of freedom that a standard deviation is measured from
SAME = 1e-6  # relative difference of inputs that are equal


@dataclass(frozen=True)
class Repeats:
    """What repeated configurations say about noise."""

    sd: float
    """Standard deviation of log loss between repeats."""
    freedom: int
    """Runs beyond the first of each configuration; points, where no column tells runs apart."""
    configuration: Array
    """(m,) number of the configuration of each point: runs that share a point are of one."""
    runs: Array
    """(m,) number of the run of each point."""


def find_repeats(group: Group, roles: tuple[str, ...]) -> Repeats | None:
    """Points of equal inputs `roles` and other losses; None where nothing repeats. Rows equal in all are one point."""
    inputs = np.round(np.log([group.numbers[role] for role in roles]) / SAME).T
    everything = np.column_stack([inputs, np.log(group.numbers["loss"])])
    _, first = np.unique(everything, axis=0, return_index=True)
    _, cells = np.unique(inputs, axis=0, return_inverse=True)
    cells = cells.ravel()
    label = group.labels.get("run", group.rows)
    if "seed" in group.labels:
        label = np.array([f"{run}\0{seed}" for run, seed in zip(label, group.labels["seed"], strict=True)])
    runs = np.unique(label, return_inverse=True)[1]
    if "run" not in group.labels:
        runs = np.arange(cells.size)
    log_loss, squares, degrees = np.log(group.numbers["loss"]), 0.0, 0
    for cell in np.unique(cells[first]):
        members = first[cells[first] == cell]
        squares += float(((log_loss[members] - log_loss[members].mean()) ** 2).sum())
        degrees += members.size - 1
    if not degrees:
        return None
    configuration = _connected(cells, runs)
    distinct = {(configuration[at], runs[at]) for at in first}
    freedom = len(distinct) - len({each for each, _ in distinct})
    return Repeats(float(np.sqrt(squares / degrees)), freedom, configuration, runs)


def lack_of_fit(problem: Problem, vector: Array, repeats: Repeats) -> float | None:
    """Probability of a misfit as large as this by seed noise alone: an F test of the configurations' mean residuals.

    None where the configurations are no more than the law's parameters.
    """
    from scipy.special import fdtrc

    residuals = np.log(problem.values) - np.log(_predicted(problem, vector))
    of_run = np.bincount(repeats.runs, residuals) / np.maximum(np.bincount(repeats.runs), 1)
    configuration = np.zeros(len(of_run), dtype=int)
    configuration[repeats.runs] = repeats.configuration
    count = np.bincount(configuration)
    means = np.bincount(configuration, of_run) / count
    left = len(count) - len(problem.law.parameters)
    if left < 1 or repeats.freedom < 1 or repeats.sd == 0:
        return None
    return float(fdtrc(left, repeats.freedom, (count * means**2).sum() / left / repeats.sd**2))


def redraw(problem: Problem, best: Array, repeats: Repeats | None, count: int, seed: int) -> tuple[Array, Array]:
    """Fit `count` tables of the law itself with every run shifted by seed noise: as `surface_fit.resample`.

    The noise is the measured one, its variance drawn anew for each table as few repeats know it (scaled inverse
    chi-squared). Raises UserError where repeats do not measure it.
    """
    if repeats is None or repeats.freedom < LEAST:
        found = 0 if repeats is None else repeats.freedom
        raise UserError(
            f"by = seed: {found} repeats of a configuration; its noise needs {LEAST} or more runs beyond the first of "
            "each: equal n and d, other seeds"
        )
    generator = np.random.default_rng(seed)
    sd = repeats.sd * np.sqrt(repeats.freedom / generator.chisquare(repeats.freedom, size=(count, 1)))
    shifts = sd * generator.normal(size=(count, repeats.runs.max() + 1))
    values = _predicted(problem, best) * np.exp(shifts[:, repeats.runs])
    vectors, _, settled = problem.solve(np.tile(best, (count, 1)), values=values)
    return vectors, settled


def _predicted(problem: Problem, vector: Array) -> Array:
    residuals = problem.residuals(vector)
    return problem.values * np.exp(residuals) if problem.loss.space == "log" else problem.values + residuals


def _connected(cells: Array, runs: Array) -> Array:
    """(m,) numbers of the sets of points that are linked by equal cells or runs."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = cells.max() + 1 + runs
    size = int(ends.max()) + 1
    _, found = connected_components(coo_array((np.ones(cells.size), (cells, ends)), shape=(size, size)), directed=False)
    return np.unique(found[cells], return_inverse=True)[1]
