"""Fit L = E + A/N^alpha + B/D^beta, its gamma form and L(C) to a table of points.

a grid over E and the exponents, A and B of each by non-negative least squares (variable projection)
  -> every grid point minimised (minimise.py), the best kept, and how many of the others agree counted
  -> resamples drawn by run, point or budget, each minimised from the best: intervals
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from linscale.config import UserError
from linscale.study.table.minimise import Residual, Space, least_absolute, minimise
from linscale.study.table.resampling import drawn_weights, stretch
from linscale.study.table.surfaces import Array, Law, evaluate

Kind = Literal["huber", "l2", "lad"]
GRID_E = (0.0, 0.3, 0.6, 0.9)  # of the lowest loss
GRID_EXPONENT = (0.05, 0.2, 0.4, 0.8)
GRID_GAMMA = (0.5, 1.0, 2.0)
NOTHING = 1e-6  # of the lowest loss: what E, or a term at the mean of its input, is held above
EXPONENT_BOUNDS = (0.0, 4.0)
GAMMA_BOUNDS = (0.05, 10.0)
AGREE = 1e-4  # relative difference in the objective


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

    def __str__(self) -> str:
        """In words, for tables and the JSON."""
        words = {"huber": f"Huber (delta {self.delta:g})", "l2": "half the square", "lad": "absolute value"}
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
        self, starts: Array, *, weights: Array | None = None, free: Array | None = None, centre: Array | None = None
    ) -> tuple[Array, Array, Array]:
        """Minimise from starts (P, p), by default over the law's parameters: vectors, objectives, settled.

        `centre` (K, 1) is the origin of the inputs' logarithms in the vectors; coefficients are unbounded with another.
        """
        origin = self.centre if centre is None else centre
        delta = {"huber": self.loss.delta, "l2": np.inf, "lad": 1.0}[self.loss.kind]
        problem = Residual(np.log(self.inputs) - origin, np.log(self.values), delta, self.loss.space)
        bounds = self.bounds
        moved = np.flatnonzero((origin != self.centre)[:, 0])
        bounds[:, 1 + moved] = [[-np.inf], [np.inf]]
        method = least_absolute if self.loss.kind == "lad" else minimise
        weights = np.ones((1, self.values.size)) if weights is None else weights
        return method(
            problem, starts, weights=weights, free=np.array(self.law.free) if free is None else free, bounds=bounds
        )

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


def fit(problem: Problem) -> Solution:
    """Minimise from every point of the grid. Raises UserError when the points are too few for the law."""
    _enough(problem)
    grid = starts(problem)
    vectors, objectives, settled = problem.solve(grid)
    best = int(np.argmin(objectives))
    polished, lowest, _ = problem.solve(_to_bound(problem, vectors[best : best + 1]))
    agree = int((objectives <= lowest[0] * (1 + AGREE) + 1e-15).sum())
    return Solution(polished[0], float(lowest[0]), len(grid), max(agree, 1), int(settled.sum()))


def resample(problem: Problem, best: Array, labels: Array, count: int, seed: int) -> tuple[Array, Array]:
    """Fit `count` resamples of the units that labels (m,) tell apart, drawn with replacement, from the vector `best`.

    Returns centred vectors (count, p), their distance from `best` stretched where bounds allow, and whether each
    settled (count,). Raises UserError for one unit.
    """
    weights = drawn_weights(labels, count, seed)
    vectors, _, settled = problem.solve(np.tile(best, (count, 1)), weights=weights)
    free = list(problem.law.free)
    far = stretch(len(np.unique(labels)), labels.size, len(problem.law.parameters))
    inside = vectors.copy()
    inside[:, free] = np.clip(best[free] + (vectors[:, free] - best[free]) * far, *problem.bounds[:, free])
    return inside, settled


def _to_bound(problem: Problem, vectors: Array) -> Array:
    """With an E that went to nothing put on its bound: in logarithms the way there has no end."""
    floor = problem.bounds[0, 0]
    gone = problem.law.free[0] & (vectors[:, 0] < floor + np.log(1e3))
    return np.where(gone[:, None] & (np.arange(vectors.shape[1]) == 0), floor, vectors)


def starts(problem: Problem) -> Array:
    """(P, p) centred vectors on a grid, with the coefficients that fit best there."""
    law, count = problem.law, len(problem.inputs)
    x = np.log(problem.inputs) - problem.centre
    lowest = problem.values.min()
    shares = GRID_E if law.free[0] else (0.0,)
    gammas = GRID_GAMMA if law.free[-1] else (1.0,)
    floor = problem.bounds[0, 0]
    rows = []
    for share, gamma, *exponents in itertools.product(shares, gammas, *[GRID_EXPONENT] * count):
        target = (problem.values - share * lowest) ** (1 / gamma)
        terms = np.exp(-np.array(exponents)[:, None] * x)  # (K, m)
        weights = 1 / target
        solved, *_ = np.linalg.lstsq((terms * weights).T, target * weights, rcond=None)
        solved = np.maximum(solved, 1e-2 * target.mean())
        log_e = -np.inf if not law.free[0] else max(np.log(max(share, 1e-2) * lowest), floor)
        rows.append([log_e, *np.log(solved), *exponents, gamma])
    return np.array(rows)


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
