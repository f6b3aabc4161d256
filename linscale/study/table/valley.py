"""The minimum of log loss over log N at one compute budget, for many replicates of the losses at once.

parabola   least squares in log N, as Hoffmann et al. (2022) do in their approach 2. Exact where the valley is symmetric
cubic-log  a cubic instead: it follows a valley that is steeper on one side, and costs more noise
akima      Akima's interpolation through the mean loss of each size: no shape is assumed, and the noise stays in it

Log loss and not loss: seeds move loss by a share of it, so that residuals of all budgets are alike and can be pooled.
The minimum is the same to second order, because loss varies by a few percent within a valley.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from linscale.study.table.options import Method

Array = np.ndarray
NEEDED = {"parabola": 3, "akima": 3, "cubic-log": 4}
"""Distinct sizes that each way needs."""
ROUNDING = 1e-12  # a bend below this is arithmetic, not a valley


@dataclass(frozen=True)
class Axis:
    """log N of the m points of a budget, mapped so that the smallest is -1 and the largest 1."""

    log_n: Array
    """(m,) ascending, at least two of them distinct."""

    @property
    def centre(self) -> float:
        return float(self.log_n[0] + self.log_n[-1]) / 2

    @property
    def reach(self) -> float:
        return float(self.log_n[-1] - self.log_n[0]) / 2

    @property
    def z(self) -> Array:
        return (self.log_n - self.centre) / self.reach


@dataclass(frozen=True)
class Minimum:
    """Of r replicates; all arrays (r,)."""

    z: Array
    """Where, on the axis: |z| > 1 is outside of the sizes. nan where there is none."""
    log_loss: Array
    inside: Array
    """True where it lies between the smallest and the largest size, and nothing measured there is lower."""


def degree_of(method: Method, sizes: int) -> int:
    """Degree of the polynomial that stands for the valley itself: noise is what the points leave of it."""
    return 3 if method == "cubic-log" or (method == "akima" and sizes > 4) else 2


def design(z: Array, degree: int) -> Array:
    """(m, degree + 1) powers of z, the highest first, as numpy's polyval has them."""
    return np.vander(z, degree + 1)


def find_minimum(method: Method, axis: Axis, log_loss: Array) -> Minimum:
    """The minimum of r replicates log_loss (r, m). At least `NEEDED[method]` sizes must be distinct."""
    if method == "akima":
        return _akima(axis, log_loss)
    degree = degree_of(method, 0)
    coefficients = log_loss @ np.linalg.pinv(design(axis.z, degree)).T  # (r, degree + 1)
    with np.errstate(all="ignore"):
        if degree == 2:
            bend, slope, _ = coefficients.T
            z = np.where(bend > ROUNDING, -slope / (2 * bend), np.nan)
        else:
            z = _cubic_root(*coefficients[:, :3].T)
    value = _values(coefficients, z[:, None])[:, 0]
    ends = _values(coefficients, np.array([[-1.0, 1.0]]))
    return Minimum(z, value, (np.abs(z) < 1) & (value <= ends.min(1)))


def drawn_curve(method: Method, axis: Axis, log_loss: Array, z: Array) -> Array:
    """The curve through or along the points log_loss (m,), at z (k,): what a figure shows."""
    if method == "akima":
        knots, values = _means(axis, log_loss[None])
        return np.asarray(_interpolant(knots, values)(z))[:, 0]
    coefficients = np.linalg.pinv(design(axis.z, degree_of(method, 0))) @ log_loss
    return np.asarray(np.polyval(coefficients, z))


def _cubic_root(a: Array, b: Array, c: Array) -> Array:
    """Where a z^3 + b z^2 + c z has its minimum; the form that stays finite as a goes to 0."""
    root = np.sqrt(np.where(b * b - 3 * a * c > 0, b * b - 3 * a * c, np.nan))
    return np.where(b > 0, -c / (b + root), (root - b) / (3 * a))


def _values(coefficients: Array, z: Array) -> Array:
    """Polynomials (r, p) at z (r or 1, k): (r, k)."""
    total = np.zeros(np.broadcast_shapes((len(coefficients), 1), z.shape))
    for column in coefficients.T:
        total = total * z + column[:, None]
    return total


def _means(axis: Axis, log_loss: Array) -> tuple[Array, Array]:
    """Distinct z (k,), and the mean of r replicates at each: (k, r)."""
    knots, which = np.unique(axis.z, return_inverse=True)
    share = (which == np.arange(len(knots))[:, None]) / np.bincount(which)[:, None]
    return knots, share @ log_loss.T


def _interpolant(knots: Array, values: Array):  # type: ignore[no-untyped-def]  # scipy has no types
    from scipy.interpolate import Akima1DInterpolator

    return Akima1DInterpolator(knots, values)


def _akima(axis: Axis, log_loss: Array) -> Minimum:
    """The lowest of the knots and of the stationary points of the pieces."""
    knots, values = _means(axis, log_loss)
    a, b, c, d = _interpolant(knots, values).c  # each (k - 1, r), of the distance from the left knot
    with np.errstate(all="ignore"):
        step = _cubic_root(a, b, c)
        within = (step > 0) & (step < np.diff(knots)[:, None])
        lows = np.where(within, d + step * (c + step * (b + step * a)), np.inf)
    where = np.concatenate([np.broadcast_to(knots[:, None], values.shape), knots[:-1, None] + step])
    heights = np.concatenate([values, lows])
    best = heights.argmin(0)
    z = np.take_along_axis(where, best[None], 0)[0]
    return Minimum(z, np.take_along_axis(heights, best[None], 0)[0], np.abs(z) < 1)
