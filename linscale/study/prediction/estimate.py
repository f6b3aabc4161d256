"""Numbers with their 95% intervals: of the law, over its resamples, and of single runs, which scatter about it."""

from __future__ import annotations

from typing import Any

import numpy as np

from linscale.study.prediction.fitted import Fitted

Array = np.ndarray
LOW, HIGH = 0.025, 0.975
REPEATS = 20  # residuals a resample, so that percentiles are steady
SEED = 0


def estimate(values: Array) -> dict[str, Any]:
    """`values` (1 + r,), of the fit and of its r resamples: `value`, and the 2.5 and 97.5 percentiles `low`, `high`.

    NaN stands for resamples in which the number does not exist, and they are left out. Infinity counts as the largest
    number: an interval may end there. `low` and `high` are None without resamples, and all three where the
    fit itself has no such number.
    """
    if np.isnan(values[0]):
        return {"value": None, "low": None, "high": None}
    low, high = interval(values[1:])
    return {"value": float(values[0]), "low": low, "high": high}


def interval(replicates: Array) -> tuple[float | None, float | None]:
    """2.5 and 97.5 percentiles of replicates (r,), infinite ones included and NaN left out; None for none."""
    found = np.sort(replicates[~np.isnan(replicates)])
    if not found.size:
        return None, None
    return _quantile(found, LOW), _quantile(found, HIGH)


def band(values: Array) -> tuple[Array, Array]:
    """2.5 and 97.5 percentiles, each (g,), over the resamples of values (1 + r, g), as `estimate` has them.

    Empty without resamples, or where there is none that has a number at every one of g.
    """
    ends = [interval(column) for column in values[1:].T]
    if not ends or any(low is None for low, _ in ends):
        return np.empty(0), np.empty(0)
    low, high = np.array(ends, dtype=float).T
    return low, high


def _quantile(ordered: Array, share: float) -> float:
    """Linear between neighbours; between a number and infinity the one that is farther out."""
    place = share * (len(ordered) - 1)
    below, rest = int(place), place - int(place)
    first, second = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
    if np.isfinite(first) and np.isfinite(second):
        return float(first + rest * (second - first))
    if rest == 0 or first == second:
        return float(first)
    return float(first if share < 0.5 else second)


def share(true: Array) -> float | None:
    """The share of resamples for which something holds, of (1 + r,) values with the fit first; None for none."""
    return float(true[1:].mean()) if len(true) > 1 else None


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
