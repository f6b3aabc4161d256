"""A law for the engine of `nonlinear`: what it predicts, its bounds, and how its vector reads as parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from linscale.config import UserError
from linscale.study.table.nonlinear import Predict, Regression, regress, regress_absolute
from linscale.study.table.surface_fit import Loss
from linscale.study.table.surfaces import Array

NEAR = 1e-6  # of a bound


@dataclass(frozen=True)
class Form:
    """A law of m given points, over vectors of p entries, one a parameter."""

    name: str
    formula: str
    parameters: tuple[str, ...]
    predict: Predict
    bounds: Array
    """(2, p) of the vector's entries."""
    readings: Array
    """(p, p): parameter k is readings[k] @ vector, or its exponential. Row k has an entry at k and at most one more."""
    logs: Array
    """(p,) whether it is the exponential."""

    def numbers(self, vectors: Array) -> Array:
        """Vectors (..., p) as parameters (..., p)."""
        read = vectors @ self.readings.T
        return np.where(self.logs, np.exp(np.minimum(read, 700.0)), read)

    def at_bound(self, vector: Array) -> Array:
        """(p,) whether each entry is on one of its bounds."""
        return (np.abs(vector - self.bounds) < NEAR * np.maximum(self.bounds[1] - self.bounds[0], 1.0)).any(0)


@dataclass(frozen=True)
class FormProblem:
    """One group's points as a fit of a form sees them."""

    form: Form
    loss: Loss
    target: Array
    """(m,) losses, errors or accuracies."""
    weights: Array | None = None
    """(m,) what each point counts, such as the inverse of its variance; all alike without."""

    @property
    def weight(self) -> Array:
        """(m,) weights with a mean of one."""
        return np.ones(self.target.size) if self.weights is None else self.weights / self.weights.mean()

    def solve(self, starts: Array, *, counts: Array | None = None) -> tuple[Array, Array, Array]:
        """Minimise from starts (P, p): vectors, objectives, settled. counts (P, m) is how often each point counts."""
        free = np.ones(starts.shape, dtype=bool)
        return self._solve(self.form.predict, starts, counts, free, self.form.bounds)

    def solve_held(self, best: Array, parameters: Array, values: Array) -> Array:
        """(q,) objectives with one of the parameters (q,) held at values (q,) of its reading, from the vector `best`.

        The vector's entry of this parameter gives way to the reading itself; where the reading has another entry too,
        the bounds of the first become bounds of the other. All are minimised together.
        """
        form, size = self.form, best.size
        undone = np.tile(
            np.eye(size), (size, 1, 1)
        )  # (p, p, p): from the vector with reading k in place k to the vector
        for entry, row in enumerate(form.readings):
            undone[entry, entry] = np.where(np.arange(size) == entry, 1.0, -row) / row[entry]

        def predict(held: Array) -> tuple[Array, Array]:
            back = undone[held[:, size].astype(int)]
            value, gradient = form.predict((back @ held[:, :size, None])[..., 0])
            return value, np.pad(gradient @ back, ((0, 0), (0, 0), (0, 1)))

        number = np.arange(len(values))
        starts = np.tile(np.append(best, 0.0), (len(values), 1))
        starts[number, parameters], starts[:, size] = values, parameters + 0.5  # the last says which, for `predict`
        bounds = np.full((2, *starts.shape), np.array([-np.inf, np.inf])[:, None, None])
        bounds[..., :size] = form.bounds[:, None]
        for entry, row in enumerate(form.readings):
            for other in np.flatnonzero(row):
                if other != entry:
                    mine = parameters == entry
                    edges = (values[mine] - row[entry] * form.bounds[:, [entry]]) / row[other]  # (2, q)
                    low = np.maximum(bounds[0, mine, other], edges.min(0))
                    bounds[:, mine, other] = low, np.maximum(np.minimum(bounds[1, mine, other], edges.max(0)), low)
        free = np.ones(starts.shape, dtype=bool)
        free[number, parameters] = free[:, size] = False
        return self._solve(predict, starts, None, free, bounds)[1]

    def range_of(self, parameter: int) -> tuple[float, float]:
        """The lowest and highest reading of a parameter within the bounds."""
        edges = self.form.readings[parameter] * self.form.bounds
        return float(edges.min(0).sum()), float(edges.max(0).sum())

    def _solve(
        self, predict: Predict, starts: Array, counts: Array | None, free: Array, bounds: Array
    ) -> tuple[Array, Array, Array]:
        problem = self.regression(predict)
        method = regress_absolute if self.loss.kind == "lad" else regress
        weights = self.weight[None] if counts is None else self.weight * counts
        return method(problem, starts, weights=weights, free=free, bounds=bounds)

    def regression(self, predict: Predict) -> Regression:
        """What is minimised; absolute values as their limit is left to `regress_absolute`."""
        delta = {"huber": self.loss.delta, "l2": np.inf, "lad": 1.0}[self.loss.kind]
        return Regression(predict, self.target, delta, self.loss.space)

    def residuals(self, vector: Array) -> Array:
        """(m,) of one vector, in the space of the loss."""
        return self.regression(self.form.predict).residuals(self.form.predict(vector[None])[0])[0]

    def enough(self) -> None:
        """Raises UserError when there are not more points than parameters."""
        needed = len(self.form.parameters) + 1
        if self.target.size < needed:
            raise UserError(
                f"{self.target.size} points: the {self.form.name} law has {needed - 1} parameters and needs "
                f"at least {needed}"
            )
