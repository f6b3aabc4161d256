"""Whether data determine a parameter: the objective minimised over all others, with that one held at a value.

The interval is closed on a side when the objective rises by the 95% quantile of chi-squared before the bound. With
residuals r, slope psi and curvature rho'' of the loss, twice the rise is measured in units of
mean(psi^2) / mean(rho''), so that squares give the usual F-like statistic and robust losses theirs (Ronchetti's tau
test). Points count as independent here, also those of one run: the verdict is about the shape of the law, the
intervals are the bootstrap's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from linscale.study.table.surface_fit import Loss, Problem, Solution
from linscale.study.table.surfaces import Array

CHI_SQUARED = 3.841  # 95% quantile with one degree of freedom
STEPS = 14  # values tried on either side, denser near the estimate
EXACT = 1e-10  # residuals below this are those of points that lie on the law
REACH = 60.0  # in log of a coefficient, whose bounds are those of its term


@dataclass(frozen=True)
class Profile:
    """The profile interval of one parameter in the numbers of the formula; None where a side is open."""

    low: float | None
    high: float | None

    @property
    def identified(self) -> bool:
        """Closed on both sides within the bounds."""
        return self.low is not None and self.high is not None


def profiles(problem: Problem, solution: Solution) -> dict[str, Profile]:
    """The profile of each parameter of the law, by name."""
    law = problem.law
    unit = unit_of_rise(problem.residuals(solution.vector), problem.weight, problem.loss, len(law.parameters))
    found = {}
    for entry in np.flatnonzero(law.free):
        coefficient = 1 <= entry <= len(problem.inputs)
        centre = problem.centre.copy()
        start = solution.vector.copy()
        if coefficient:
            centre[entry - 1] = 0.0
            start[entry] += start[entry + len(problem.inputs)] * problem.centre[entry - 1, 0]
            bounds = (start[entry] - REACH, start[entry] + REACH)
        else:
            bounds = tuple(problem.bounds[:, entry])
        share = np.geomspace(1e-4, 1, STEPS)
        down, up = (start[entry] + (bound - start[entry]) * share for bound in bounds)
        starts = np.tile(start, (2 * STEPS, 1))
        starts[:, entry] = np.concatenate([down, up])
        free = np.array(law.free)
        free[entry] = False
        _, objectives, _ = problem.solve(starts, free=free, centre=centre)
        rise = 2 * (objectives - solution.objective) / unit
        sides = (crossing(start[entry], down, rise[:STEPS]), crossing(start[entry], up, rise[STEPS:]))
        found[law.names[entry]] = _natural(law.names[entry], sides, entry <= len(problem.inputs))
    return found


def _natural(name: str, sides: tuple[float | None, float | None], is_log: bool) -> Profile:
    low, high = (None if side is None else float(np.exp(side)) if is_log else float(side) for side in sides)
    if name == "l_exponent":
        return Profile(None if high is None else -high, None if low is None else -low)
    return Profile(low, high)


def crossing(start: float, values: Array, rise: Array) -> float | None:
    """Where the rise first passes the quantile, between the values tried; None when it never does."""
    above = np.flatnonzero(rise > CHI_SQUARED)
    if not above.size:
        return None
    at = int(above[0])
    inner, height = (start, 0.0) if at == 0 else (values[at - 1], max(rise[at - 1], 0.0))
    reach = (np.sqrt(CHI_SQUARED) - np.sqrt(height)) / (np.sqrt(rise[at]) - np.sqrt(height))
    return float(inner + reach * (values[at] - inner))


def unit_of_rise(residuals: Array, weights: Array, loss: Loss, parameters: int) -> float:
    """mean(psi^2) / mean(rho''), the mean over the degrees of freedom that are left; not nothing for exact points.

    weights (m,) have a mean of one.
    """
    residuals = np.abs(residuals)
    count, freedom = residuals.size, max(residuals.size - parameters, 1)
    if loss.kind == "l2":
        return max(float((weights * residuals**2).sum() / freedom), EXACT**2)
    delta = loss.delta if loss.kind == "huber" else 0.0
    width = max(delta, 0.5 * float(np.median(residuals)), EXACT)  # wide enough to hold points
    near = max(float(weights[residuals < width].sum()), 1.0)
    density = near / count / width  # of residuals near 0, both sides together
    if loss.kind == "lad":
        return float((weights**2).sum()) / freedom / density
    slopes = weights * np.minimum(residuals, delta)
    return max(float(slopes @ slopes) / freedom / (density * delta), EXACT**2)
