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


def steadied(columns: Array, residuals: Array, labels: Array, delta: float, deviations: Array) -> float:
    """What resamples of a robust loss vary too much by, at most 1: Huber's with delta, or absolute values with 0.

    Such a fit leans on the few residuals within delta, whose number differs from resample to resample far more than
    their density does. Here the density comes from all residuals, smoothed by a normal kernel (Silverman's width), and
    with it the variance of each parameter, H^-1 (sum over units of scores) H^-1. Returned is the geometric mean over
    parameters of its root over the spread of the resamples. columns (m, p) derivatives, deviations (r, p).
    """
    from scipy.special import ndtr

    sd = float(np.std(residuals))
    robust = 1.4826 * float(np.median(np.abs(residuals - np.median(residuals))))
    width = 1.06 * min(sd, robust or sd) * residuals.size**-0.2
    if width == 0 or len(deviations) < 2 or columns.shape[1] == 0:
        return 1.0
    if delta > 0:
        bend = float(np.mean(ndtr((delta - residuals) / width) - ndtr((-delta - residuals) / width)))
        slope = np.clip(residuals, -delta, delta)
    else:
        bend = float(np.mean(np.exp(-((residuals / width) ** 2) / 2))) * 2 / (width * np.sqrt(2 * np.pi))
        slope = np.sign(residuals)
    unit_of = np.unique(labels, return_inverse=True)[1]
    scores = np.zeros((unit_of.max() + 1, columns.shape[1]))
    np.add.at(scores, unit_of, columns * slope[:, None])
    inverse = np.linalg.pinv(bend * columns.T @ columns, hermitian=True)
    expected = np.sqrt(np.maximum(np.diag(inverse @ (scores.T @ scores) @ inverse), 0.0))
    low, high = np.percentile(deviations, [2.5, 97.5], axis=0)
    usable = (high > low) & (expected > 0)
    if not usable.any():
        return 1.0
    ratio = expected[usable] * 2 * 1.96 / (high - low)[usable]
    return float(min(np.exp(np.mean(np.log(ratio))), 1.0))


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


def widened(values: Array, factor: float) -> Array:
    """(1 + r, ...) positive numbers with the distance of their logarithms from that of the fit times a factor.

    Infinite ones and nothing stay.
    """
    if factor == 1.0:
        return values
    with np.errstate(all="ignore"):
        moved = values[:1] * np.exp(factor * np.log(values / values[:1]))
    return np.where(np.isfinite(moved) & (values > 0), moved, values)
