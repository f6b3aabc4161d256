"""Resamples in the place of those that a study's fits.json does not keep: drawn from the band that it does.

Each of its laws is a line, log y = intercept + exponent log C. The variance of a fitted line is a quadratic of log C,
and its three coefficients are the covariance of intercept and exponent: a quadratic through the squared half-widths of
the band gives it, and normal deviates of that covariance give the band back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray
COUNT = 1000
SEED = 0
NORMAL = 1.959964  # 97.5% quantile
LINES = {"l": "loss", "n_opt": "params", "d_opt": "tokens"}


def drawn_from_band(band: Mapping[str, Any]) -> dict[str, Array]:
    """(COUNT,) by parameter of the three power laws of an envelope, from `band` as in docs/reference/fits.md."""
    generator = np.random.default_rng(SEED)
    x = np.log(np.array(band["compute"], dtype=float))
    middle = float(x.mean())
    drawn = {}
    for law, name in LINES.items():
        low, high = (np.log(np.array(band[f"{name}_{end}"], dtype=float)) for end in ("low", "high"))
        tilt, level = np.polyfit(x - middle, (low + high) / 2, 1)  # where resamples lie, which may be beside the fit
        slopes, levels = _deviates(generator, x - middle, (high - low) / (2 * NORMAL))
        exponents = tilt + slopes
        drawn[f"{law}_coefficient"] = np.exp(level + levels - exponents * middle)
        drawn[f"{law}_exponent"] = exponents
    return drawn


def _deviates(generator: np.random.Generator, x: Array, sigma: Array) -> tuple[Array, Array]:
    """(COUNT,) deviates of the slope and of the level at x = 0 of a line that is known to sigma (g,) at x (g,)."""
    curve, tilt, height = np.polyfit(x, sigma**2, 2)
    curve, height = max(curve, 0.0), max(height, 0.0)
    most = np.sqrt(curve * height)
    shared = float(np.clip(tilt / 2, -most, most))
    covariance = np.array([[curve, shared], [shared, height]])
    slopes, levels = generator.multivariate_normal(np.zeros(2), covariance, size=COUNT, method="eigh").T
    return slopes, levels
