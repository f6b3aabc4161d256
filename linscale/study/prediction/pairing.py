"""Resamples of several fits joined, so that a function of all of them has resamples too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from linscale.study.prediction.fitted import Fitted

SEED = 0


def paired(fits: Sequence[Fitted]) -> list[Fitted]:
    """The fits with equally many resamples, as many as the most has.

    Fits of the same rows of one table that were resampled alike keep their order: their resamples share noise. All
    others are independent and are joined at random, for the same seed and number of units draws the same units by
    number in every group, which says nothing. A fit without resamples repeats its value, as if it were exact.
    """
    count = max(fitted.resamples for fitted in fits)
    generator = np.random.default_rng(SEED)
    orders: list[np.ndarray] = []
    for place, fitted in enumerate(fits):
        alike = [order for order, before in zip(orders, fits, strict=False) if before.resampled_as(fitted)]
        if alike:
            orders.append(alike[0])
        elif fitted.resamples == 0:
            orders.append(np.full(count, -1))  # the one before the first resample: the fit itself
        elif fitted.resamples < count:
            orders.append(generator.integers(fitted.resamples, size=count))
        else:
            orders.append(generator.permutation(count) if place else np.arange(count))
    return [fitted.take(order) for fitted, order in zip(fits, orders, strict=True)]
