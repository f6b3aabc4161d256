"""How much log loss varies between runs that differ by chance alone, and draws of it for a bootstrap.

Points are not drawn with replacement: five points of a parabola without two of them are another experiment. The curves
of all budgets stay, and noise is added to them: a parametric bootstrap. Its size comes from what the curves leave of
the points, r = M y with M the projection that a least-squares curve leaves:

    E[r r'] = M (point^2 I + run^2 G G') M      G tells which points are of one run

Two moments, r'r and |G'r|^2, give both variances. Each replicate first draws the noise itself, by the chi-squared
distribution of its estimate, so that intervals from few degrees of freedom are as wide as Student's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray
MIN_FREEDOM = 3  # with fewer, noise is measured right to a factor of two: as for the seeds of a study


@dataclass(frozen=True)
class Noise:
    """Standard deviations of log loss."""

    point: float
    """Of each point alone."""
    run: float
    """Of a run as a whole: common to its points."""
    freedom: float
    """Degrees of freedom of the estimate; infinite where it is assumed."""
    measured: bool

    @property
    def total(self) -> float:
        """Of one point of one run."""
        return float(np.hypot(self.point, self.run))

    def entry(self, settled: Array, units: int, by: str) -> dict[str, Any]:
        """`bootstrap` of the JSON, for replicates of which `settled` (r,) could be fitted."""
        return {
            "replicates": len(settled),
            "settled": int(settled.sum()),
            "units": units,
            "by": by,
            "seed_noise": self.total,
            "seed_noise_source": "measured" if self.measured else "assumed",
        }

    def draw(self, run_of: Array, count: int, generator: np.random.Generator) -> Array:
        """(count, m) draws for points whose runs are numbered run_of (m,)."""
        scale = np.ones(count)
        if np.isfinite(self.freedom):
            scale = np.sqrt(self.freedom / generator.chisquare(self.freedom, size=count))
        noise = self.point * generator.standard_normal((count, len(run_of)))
        if self.run:
            noise += self.run * generator.standard_normal((count, int(run_of.max()) + 1))[:, run_of]
        return scale[:, None] * noise


def measure(designs: Sequence[Array], values: Sequence[Array], runs: Array | None, assumed: float) -> Noise:
    """Noise from what least squares leaves of `values` (m_b,), each on its `designs` entry (m_b, p).

    `runs` (sum of m_b,) numbers the runs of all points in their order; None for points that are independent. With fewer
    than three degrees of freedom, `assumed` is the standard deviation of a point.
    """
    projections = [np.eye(len(each)) - each @ np.linalg.pinv(each) for each in designs]
    residuals = np.concatenate([m @ y for m, y in zip(projections, values, strict=True)])
    freedom = float(round(sum(np.trace(m) for m in projections)))
    if freedom < MIN_FREEDOM:
        return Noise(assumed, 0.0, np.inf, False)
    squares = float(residuals @ residuals)
    alone = Noise(float(np.sqrt(squares / freedom)), 0.0, freedom, True)
    if runs is None or len(np.unique(runs)) == len(runs):
        return alone
    return _two_parts(projections, residuals, runs, alone)


def _two_parts(projections: Sequence[Array], residuals: Array, runs: Array, alone: Noise) -> Noise:
    """Solve the two moments for both variances, neither negative."""
    belongs = (runs[:, None] == np.arange(runs.max() + 1)).astype(float)  # (m, runs), G
    projected, start = np.empty_like(belongs), 0
    for each in projections:
        stop = start + len(each)
        projected[start:stop] = each @ belongs[start:stop]
        start = stop
    shared = belongs.T @ projected  # G'MG
    squares, sums = float(residuals @ residuals), float(np.sum((belongs.T @ residuals) ** 2))
    cross, spread = float(np.trace(shared)), float(np.sum(shared**2))
    point, run = np.linalg.lstsq(np.array([[alone.freedom, cross], [cross, spread]]), [squares, sums], rcond=None)[0]
    if run <= 0:
        return alone
    if point <= 0:
        point, run = 0.0, sums / spread
    fourth = float(np.sum((shared @ shared) ** 2))
    return Noise(float(np.sqrt(point)), float(np.sqrt(run)), min(alone.freedom, spread**2 / fourth), True)


def line_draws(design: Array, values: Array, count: int, generator: np.random.Generator) -> Array:
    """`count` draws (count, k, m) of what k lines least-squares fitted to `values` (k, m) on design (m, p) would be
    given again: lines plus normal residuals with the covariance of those seen.

    The k residuals of one place keep their correlation. Widths are Student's.
    """
    fitted = values @ np.linalg.pinv(design).T @ design.T
    freedom = design.shape[0] - design.shape[1]
    root = np.linalg.svd((values - fitted) / np.sqrt(freedom), full_matrices=False)
    spread = root[0] * root[1]  # (k, rank), a square root of the covariance
    scale = np.sqrt(freedom / generator.chisquare(freedom, size=count))
    noise = generator.standard_normal((count, values.shape[1], spread.shape[1])) @ spread.T
    return fitted + scale[:, None, None] * noise.transpose(0, 2, 1)
