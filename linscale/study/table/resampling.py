"""Resamples of units drawn with replacement, as weights of points."""

from __future__ import annotations

import numpy as np

from linscale.config import UserError

Array = np.ndarray


def drawn_weights(labels: Array, count: int, seed: int) -> Array:
    """(count, m) how often each point is in each resample of the units that labels (m,) tell apart.

    Raises UserError for one unit.
    """
    units, unit_of = np.unique(labels, return_inverse=True)
    if len(units) < 2:
        raise UserError("all points are of one unit: there is nothing to resample; use --by point or --bootstrap 0")
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(units), np.full(len(units), 1 / len(units)), size=count)
    return drawn[:, unit_of].astype(float)


def stretch(units: int, points: int, parameters: int) -> float:
    """What the distance of a resample's fit from the best is multiplied by: sqrt(u / (u - 1) * (m - 1) / (m - p)).

    A fit eats p of the freedom of m points, and resamples vary too little: the usual correction of clustered standard
    errors for u units.
    """
    return float(np.sqrt(units / (units - 1) * (points - 1) / (points - parameters)))
