"""A number with its 95% interval, from the value of the fit and the values of its resamples."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray
LOW, HIGH = 0.025, 0.975


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
