"""Fit L = E + A/N^alpha + B/D^beta, its gamma form and L(C) to a table of points.

a grid over E and the exponents, A and B of each by non-negative least squares (variable projection)
  -> every grid point minimised (minimise.py), the best kept, and how many of the others agree counted
  -> resamples drawn by run, point or budget, each minimised from the best: intervals
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from linscale.config import UserError
from linscale.study.table.minimise import Residual, Space, least_absolute, minimise
from linscale.study.table.resampling import drawn_counts, steadied, stretch
from linscale.study.table.surfaces import Array, Law, evaluate

Kind = Literal["huber", "l2", "lad"]
GRID_EXPONENT = tuple(np.geomspace(0.05, 1.2, 8))
GRID_COARSE = (0.05, 0.2, 0.4, 0.8)  # of the gamma form, whose E is no linear parameter
GRID_E = (0.0, 0.3, 0.6, 0.9)  # of the lowest loss
GRID_GAMMA = (0.5, 1.0, 2.0)
NOTHING = 1e-6  # of the lowest loss: what E, or a term at the mean of its input, is held above
EXPONENT_BOUNDS = (0.0, 4.0)
GAMMA_BOUNDS = (0.05, 10.0)
AGREE = 1e-4  # relative difference in the objective
ROUNDING = 1e-13  # of the objective, a point: below it points lie on the law


@dataclass(frozen=True)
class Loss:
    """How residuals count."""

    kind: Kind = "huber"
    delta: float = 1e-3
    """Of Huber's loss, in the units of `space`."""
    space: Space = "log"

    @classmethod
    def parse(cls, text: str, space: Space) -> Loss:
        """ "huber:1e-3", "huber", "l2" or "lad". Raises UserError for anything else."""
        kind, _, number = text.partition(":")
        try:
            delta = float(number) if number else 1e-3
        except ValueError:
            delta = 0.0
        if kind not in ("huber", "l2", "lad") or (number and kind != "huber") or not 0 < delta < np.inf:
            raise UserError(
                f"loss = {text!r}: expected huber:DELTA with a positive number, as in huber:1e-3, l2 or lad"
            )
        return cls(kind, delta, space)  # type: ignore[arg-type]

    @property
    def corner(self) -> float:
        """Where rho turns from a parabola to a line: delta, infinite for squares, 0 for absolute values."""
        return {"huber": self.delta, "l2": np.inf, "lad": 0.0}[self.kind]

    def __str__(self) -> str:
        """In words, for tables and the JSON."""
        words = {"huber": f"Huber losses (delta {self.delta:g})", "l2": "halves of squares", "lad": "absolute values"}
        return f"sum of the {words[self.kind]} of residuals of {'log L' if self.space == 'log' else 'L'}"


@dataclass(frozen=True)
class Problem:
    """One group's points as a fit sees them. Vectors inside have inputs centred: A is the term at their mean."""

    law: Law
    loss: Loss
    inputs: Array
    """(K, m): N and D, or C in PFLOP/s-days."""
    values: Array
    """(m,) loss, nats per token."""
    weights: Array | None = None
    """(m,) what each point counts, such as the inverse of its variance; all alike without."""

    @property
    def weight(self) -> Array:
        """(m,) weights with a mean of one."""
        return np.ones(self.values.size) if self.weights is None else self.weights / self.weights.mean()

    @property
    def centre(self) -> Array:
        """(K, 1) means of the inputs' logarithms."""
        return np.log(self.inputs).mean(1, keepdims=True)

    @property
    def bounds(self) -> Array:
        """(2, p) for centred vectors."""
        count, low = len(self.inputs), np.log(NOTHING * self.values.min())
        wide = max(-low, 1.0) / (GAMMA_BOUNDS[0] if self.law.free[-1] else 1.0)
        term = (-wide, wide) if self.law.free[-1] else (low, np.log(self.values.max()) + wide)
        rows = [(low, np.log(self.values.max())), *[term] * count, *[EXPONENT_BOUNDS] * count, GAMMA_BOUNDS]
        return np.array(rows).T

    def solve(
        self,
        starts: Array,
        *,
        counts: Array | None = None,
        values: Array | None = None,
        free: Array | None = None,
        centre: Array | None = None,
    ) -> tuple[Array, Array, Array]:
        """Minimise from starts (P, p), by default over the law's parameters: vectors, objectives, settled.

        counts (P, m) is how often each point counts in each problem, once without; values (P, m) are other losses.
        `centre` (K, 1) is the origin of the inputs' logarithms in the vectors; coefficients are unbounded with another.
        """
        origin = self.centre if centre is None else centre
        delta = {"huber": self.loss.delta, "l2": np.inf, "lad": 1.0}[self.loss.kind]
        losses = np.log(self.values if values is None else values)
        problem = Residual(np.log(self.inputs) - origin, losses, delta, self.loss.space)
        bounds = self.bounds
        moved = np.flatnonzero((origin != self.centre)[:, 0])
        bounds[:, 1 + moved] = [[-np.inf], [np.inf]]
        method = least_absolute if self.loss.kind == "lad" else minimise
        weights = self.weight[None] if counts is None else self.weight * counts
        return method(
            problem, starts, weights=weights, free=np.array(self.law.free) if free is None else free, bounds=bounds
        )

    def inside(self, vector: Array) -> Array:
        """(p,) whether an entry of a centred vector is fitted and not on a bound."""
        low, high = self.bounds
        entries: Array = np.array(self.law.free) & (vector - low > 1e-6) & (high - vector > 1e-6)
        return entries

    def centred(self, vectors: Array, sign: int = 1) -> Array:
        """Vectors of the formula's own coefficients as centred ones; with sign -1 the other way."""
        count, values = len(self.inputs), vectors.copy()
        values[..., 1 : 1 + count] -= sign * vectors[..., 1 + count : 1 + 2 * count] * self.centre[:, 0]
        return values

    def numbers(self, vectors: Array) -> Array:
        """Centred vectors (..., p) as the numbers of the formula: (..., free parameters)."""
        return self.law.natural(self.centred(vectors, -1))[..., list(self.law.free)]

    def residuals(self, vector: Array) -> Array:
        """(m,) of one centred vector, in the space of the loss."""
        value = evaluate(vector[None], np.log(self.inputs) - self.centre).value[0]
        return value - np.log(self.values) if self.loss.space == "log" else np.exp(value) - self.values


@dataclass(frozen=True)
class Solution:
    """The best of many starts."""

    vector: Array
    objective: float
    starts: int
    agree: int
    """Starts whose objective is within 0.01% of the best, the best included."""
    settled: int
    """Starts that came to rest within the allowed number of steps."""


@dataclass(frozen=True)
class Valley:
    """How flat the objective is in its flattest direction."""

    condition: float
    """Of the derivatives of log L in the parameters, each of length one: 30 to 100 is usual for such laws."""
    along: tuple[str, ...]
    """Parameters that trade against each other there."""

    @classmethod
    def of(cls, columns: Array, names: Sequence[str]) -> Valley:
        """From the derivatives (m, k) in k parameters, weighted."""
        if not len(names):
            return cls(1.0, ())
        lengths = np.linalg.norm(columns, axis=0)
        _, singular, directions = np.linalg.svd(columns / np.where(lengths > 0, lengths, 1.0), full_matrices=False)
        along = tuple(name for name, part in zip(names, directions[-1], strict=True) if abs(part) > 0.3)
        return cls(float(singular[0] / max(singular[-1], 1e-16)), along)


def find_valley(problem: Problem, vector: Array) -> Valley:
    """The condition number at a centred vector, over the free parameters that are not on a bound."""
    free = problem.inside(vector)
    columns = evaluate(vector[None], np.log(problem.inputs) - problem.centre).gradient[0][:, free]
    names = [name for name, each in zip(problem.law.names, free, strict=True) if each]
    return Valley.of(columns * np.sqrt(problem.weight)[:, None], names)


def fit(problem: Problem) -> Solution:
    """Minimise from every point of the grid. Raises UserError when the points are too few for the law."""
    _enough(problem)
    grid = starts(problem)
    vectors, objectives, settled = problem.solve(grid)
    best = int(np.argmin(objectives))
    polished, lowest, _ = problem.solve(_to_bound(problem, vectors[best : best + 1]))
    agree = int((objectives <= lowest[0] * (1 + AGREE) + ROUNDING * problem.values.size).sum())
    return Solution(polished[0], float(lowest[0]), len(grid), max(agree, 1), int(settled.sum()))


def resample(problem: Problem, best: Array, labels: Array, count: int, seed: int) -> tuple[Array, Array]:
    """As `refit`, with vectors stretched (see `stretching`): for intervals of parameters."""
    vectors, settled = refit(problem, best, labels, count, seed)
    return spread(problem, best, vectors, stretching(problem, best, labels, vectors)), settled


def stretching(problem: Problem, best: Array, labels: Array, vectors: Array) -> float:
    """How far the fits of resamples, centred vectors (r, p), are stretched: see `resampling`'s stretch and steadied."""
    residuals = problem.residuals(best)
    factor = stretch(residuals, labels, len(problem.law.parameters))
    if problem.loss.kind == "l2":
        return factor
    free = problem.inside(best)
    columns = _derivatives(problem, best)[:, free]
    return factor * steadied(columns, residuals, labels, problem.loss.corner, vectors[:, free] - best[free])


def _derivatives(problem: Problem, vector: Array) -> Array:
    """(m, p) of what residuals are of in a centred vector, times the weights' roots."""
    at = evaluate(vector[None], np.log(problem.inputs) - problem.centre)
    level = 1.0 if problem.loss.space == "log" else np.exp(at.value[0])[:, None]
    columns: Array = at.gradient[0] * level * np.sqrt(problem.weight)[:, None]
    return columns


def refit(problem: Problem, best: Array, labels: Array, count: int, seed: int) -> tuple[Array, Array]:
    """Fit `count` resamples of the units that labels (m,) tell apart, drawn with replacement, from the vector `best`.

    Returns centred vectors (count, p) and whether each settled (count,). Raises UserError for one unit.
    """
    counts = drawn_counts(labels, count, seed)
    vectors, _, settled = problem.solve(np.tile(best, (count, 1)), counts=counts)
    return vectors, settled


def spread(problem: Problem, best: Array, vectors: Array, factor: float) -> Array:
    """Centred vectors (r, p) with their distance from `best` times `factor`, as far as bounds allow."""
    free = list(problem.law.free)
    inside = vectors.copy()
    inside[:, free] = np.clip(best[free] + (vectors[:, free] - best[free]) * factor, *problem.bounds[:, free])
    return inside


def _to_bound(problem: Problem, vectors: Array) -> Array:
    """With an E that went to nothing put on its bound: in logarithms the way there has no end."""
    floor = problem.bounds[0, 0]
    gone = problem.law.free[0] & (vectors[:, 0] < floor + np.log(1e3))
    return np.where(gone[:, None] & (np.arange(vectors.shape[1]) == 0), floor, vectors)


def starts(problem: Problem) -> Array:
    """(P, p) centred vectors on a grid of exponents, with what is linear solved for (variable projection).

    E, A and B come from non-negative least squares of relative residuals. In the gamma form E is on the grid too, and
    A and B are those of (L - E)^(1/gamma).
    """
    law, count = problem.law, len(problem.inputs)
    x = np.log(problem.inputs) - problem.centre
    lowest, floor = problem.values.min(), problem.bounds[0, 0]
    gridded = law.free[-1]
    shares, gammas, steps = (GRID_E, GRID_GAMMA, GRID_COARSE) if gridded else ((0.0,), (1.0,), GRID_EXPONENT)
    rows = []
    for share, gamma in itertools.product(shares, gammas):
        target = (problem.values - share * lowest) ** (1 / gamma)
        exponents = np.array(list(itertools.product(steps, repeat=count)))
        columns = np.exp(-exponents[:, None] * x.T)  # (G, m, K)
        if law.free[0] and not gridded:
            columns = np.concatenate([np.ones_like(columns[..., :1]), columns], axis=-1)
        weights = np.sqrt(problem.weight) / target
        solved = nonnegative(columns * weights[:, None], target * weights)
        terms = np.log(np.maximum(solved[:, -count:], 1e-2 * target.mean()))
        if not law.free[0]:
            log_e = np.full(len(terms), -np.inf)
        else:
            log_e = np.full(len(terms), share * lowest) if gridded else solved[:, 0]
            log_e = np.maximum(np.log(np.clip(log_e, 1e-2 * lowest, lowest)), floor)
        rows.append(np.column_stack([log_e, terms, exponents, np.full(len(terms), gamma)]))
    return np.concatenate(rows)


def nonnegative(columns: Array, target: Array) -> Array:
    """Non-negative least squares of target (m,) on columns (G, m, k), k at most three: (G, k), by all active sets."""
    count = columns.shape[-1]
    gram, right = columns.transpose(0, 2, 1) @ columns, columns.transpose(0, 2, 1) @ target
    best, height = np.zeros(columns.shape[::2]), np.zeros(len(columns))
    for size in range(1, count + 1):
        for chosen in map(list, itertools.combinations(range(count), size)):
            part, side = gram[:, chosen][:, :, chosen], right[:, chosen]
            ridge = 1e-13 * np.trace(part, axis1=1, axis2=2)[:, None, None] * np.eye(size)
            solved = np.linalg.solve(part + ridge, side[..., None])[..., 0]
            fall = -(solved * side).sum(-1)  # of the squares, less |target|^2
            better = (solved >= 0).all(-1) & (fall < height)
            best[better] = 0.0
            best[np.ix_(better, chosen)] = solved[better]
            height = np.where(better, fall, height)
    return best


def _enough(problem: Problem) -> None:
    needed = len(problem.law.parameters) + 1
    if problem.values.size < needed:
        raise UserError(
            f"{problem.values.size} points: the {problem.law.name} law has {needed - 1} parameters and needs "
            f"at least {needed}"
        )
    for name, values in zip(problem.law.inputs, problem.inputs, strict=True):
        distinct = len(np.unique(values))
        floor = 2 + problem.law.free[0]
        if distinct < floor:
            raise UserError(f"{name} has {distinct} distinct values: the {problem.law.name} law needs at least {floor}")
