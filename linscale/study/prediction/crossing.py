"""The compute at which two laws of compute cross, with intervals.

L_x - L_y = E_x - E_y + K_x C^-x - K_y C^-y has one turning point in log C, where x K_x C^-x = y K_y C^-y, and is
monotone on either side of it: the laws cross at most once in each direction. Each side is bisected, for the fit and
all of its resamples at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from linscale.study.laws import PFLOP_S_DAY
from linscale.study.prediction.compute_law import ComputeLaw
from linscale.study.prediction.estimate import estimate, share
from linscale.study.table.resampling import widened

Array = np.ndarray
REACH = 1e9  # a crossing farther than this factor from the compute that was fitted is none
STEPS = 80  # bisections: 2^-80 of the reach


def crossings(
    x: ComputeLaw, y: ComputeLaw, names: tuple[str, str], common: tuple[float, float]
) -> tuple[list[dict[str, Any]], float | None]:
    """Crossings of two laws with as many resamples, named by who is lower above them, and the share with none.

    `common` is the compute in FLOPs, least and most, that both were fitted to or that lies between them. A crossing is
    listed when the fit has it, or more than 5% of its resamples.
    """
    found, any_root = [], np.zeros(len(x.floor), dtype=bool)
    for name, roots in zip(names, _roots(x, y, common), strict=True):
        has = ~np.isnan(roots)
        any_root |= has
        if not has[0] and (share(has) or 0.0) <= 0.05:
            continue
        flops = estimate(roots)
        value = flops["value"]
        found.append(
            {
                "overtakes": name,
                "flops": flops,
                "share": share(has),
                "within": value is not None and common[0] <= value <= common[1],
            }
        )
    none = share(~any_root)
    return found, (float(not any_root[0]) if none is None else none)


def _roots(x: ComputeLaw, y: ComputeLaw, common: tuple[float, float]) -> tuple[Array, Array]:
    """Two arrays (1 + r,) of FLOPs, NaN for none: where x becomes the lower one, and where y does."""
    low, high = (np.log(each / PFLOP_S_DAY) for each in (common[0] / REACH, common[1] * REACH))
    (log_kx, ex), (log_ky, ey) = x.above, y.above
    with np.errstate(all="ignore"):
        turn = (np.log(-ex) + log_kx - np.log(-ey) - log_ky) / (ey - ex)
    turn = np.clip(np.where(np.isfinite(turn), turn, high), low, high)
    sides = [_bisect(x, y, np.full_like(turn, low), turn), _bisect(x, y, turn, np.full_like(turn, high))]
    stretch = float(np.sqrt(x.stretch * y.stretch))
    down, up = np.full_like(turn, np.nan), np.full_like(turn, np.nan)
    for root, falls in sides:
        down = np.where(falls & ~np.isnan(root), root, down)
        up = np.where(~falls & ~np.isnan(root), root, up)
    return widened(np.exp(down) * PFLOP_S_DAY, stretch), widened(np.exp(up) * PFLOP_S_DAY, stretch)


def _bisect(x: ComputeLaw, y: ComputeLaw, left: Array, right: Array) -> tuple[Array, Array]:
    """The root of L_x - L_y between two ends of log C, NaN for none, and whether the difference falls through it."""

    def difference(log_c: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(
                x.floor - y.floor + np.exp(x.above[0] + x.above[1] * log_c) - np.exp(y.above[0] + y.above[1] * log_c)
            )

    start, end = difference(left), difference(right)
    falls = start > end
    crosses = (start * end < 0) | ((end == 0) & (start != 0))
    for _ in range(STEPS):
        middle = (left + right) / 2
        before = difference(middle) * np.sign(start) > 0
        left, right = np.where(before, middle, left), np.where(before, right, middle)
    return np.where(crosses, (left + right) / 2, np.nan), falls
