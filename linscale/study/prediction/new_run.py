"""The scatter of single runs about a fitted law: resampled residuals of the points that were fitted."""

from __future__ import annotations

import numpy as np

from linscale.study.prediction.estimate import interval
from linscale.study.prediction.fitted import Fitted

Array = np.ndarray
REPEATS = 20  # residuals a resample, so that percentiles are steady
SEED = 0


def scattered(fitted: Fitted, values: Array) -> Array:
    """(r * REPEATS,) what single runs may show of `values` (1 + r,); empty where the file keeps no residuals
    or the fit itself has no value.

    Residuals are prediction minus observation, drawn with replacement. They hold what the law does not explain of the
    points fitted: noise of seeds, and misfit.
    """
    if not fitted.residuals.size or len(values) < 2 or np.isnan(values[0]):
        return np.empty(0)
    drawn = np.random.default_rng(SEED).choice(fitted.residuals, size=(len(values) - 1, REPEATS))
    spread = values[1:, None] * np.exp(-drawn) if fitted.space == "log" else values[1:, None] - drawn
    return np.asarray(spread.ravel())


def ends(spread: Array) -> dict[str, float | None]:
    """The 95% interval of a new run: `new_low` and `new_high`, None where there is no spread."""
    low, high = interval(spread)
    return {"new_low": low, "new_high": high}
