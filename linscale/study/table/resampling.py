"""Resamples of units drawn with replacement, and what their fits are too close to the best by."""

from __future__ import annotations

import numpy as np

from linscale.config import UserError

Array = np.ndarray


def drawn_counts(labels: Array, count: int, seed: int) -> Array:
    """(count, m) how often each point is in each resample of the units that labels (m,) tell apart.

    Raises UserError for one unit.
    """
    units, unit_of = np.unique(labels, return_inverse=True)
    if len(units) < 2:
        raise UserError("all points are of one unit: there is nothing to resample; use --by point or --bootstrap 0")
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(units), np.full(len(units), 1 / len(units)), size=count)
    return drawn[:, unit_of].astype(float)


def stretch(residuals: Array, labels: Array, parameters: int) -> float:
    """What resamples of u units vary too little by: sqrt(u / (u - 1) (e - 1) / (e - p)) t / z, labels (m,) of units.

    A fit eats p of the freedom of e points. Points of a unit that are wrong together are fewer than they seem: e is
    m / (1 + (m / u - 1) rho), with rho the correlation of residuals within units (the design effect, Kish 1965). t / z
    widens 95% intervals for a variance that is itself estimated from e - p degrees of freedom.
    """
    points, u = labels.size, len(np.unique(labels))
    rho = correlation_within(residuals, labels)
    effective = points / (1 + (points / u - 1) * rho)
    freedom = max(effective - parameters, 1.0)
    return float(np.sqrt(u / (u - 1) * max(effective - 1, 1.0) / freedom)) * student(freedom)


def student(freedom: float) -> float:
    """The 97.5% quantile of Student's t over that of the normal law."""
    from scipy.special import ndtri, stdtrit

    return float(stdtrit(freedom, 0.975) / ndtri(0.975))


def correlation_within(residuals: Array, labels: Array) -> float:
    """Intraclass correlation of residuals (m,) within the units of labels (m,), by analysis of variance; 0 to 1.

    Residuals beyond three robust standard deviations count as that.
    """
    _, unit_of, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    points, u = labels.size, len(sizes)
    if u == points or u < 2:
        return 0.0
    centred = residuals - np.median(residuals)
    reach = 3 * 1.4826 * np.median(np.abs(centred))
    centred = np.clip(centred, -reach, reach) if reach > 0 else centred
    means = np.bincount(unit_of, centred) / sizes
    between = float((sizes * (means - centred.mean()) ** 2).sum() / (u - 1))
    within = float(((centred - means[unit_of]) ** 2).sum() / (points - u))
    size = (points - (sizes**2).sum() / points) / (u - 1)
    total = between + (size - 1) * within
    return float(np.clip((between - within) / total, 0.0, 1.0)) if total > 0 else 0.0
