"""Values of fitted laws, for a fit and its resamples at once: what figures of a fit draw lines and bands from.

Values (1 + r, g): the fit first, then its r resamples, at g abscissas. Laws as in `study.table`; C in PFLOP/s-days.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from linscale.study.laws import PFLOP_S_DAY

Array = np.ndarray
SURFACES = ("chinchilla", "gamma", "overtrain", "repeat")
INTERVAL = (2.5, 97.5)
SIX_ND = (6.0, 0.0)  # k and kappa of C = 6 N D


@dataclass(frozen=True)
class Line:
    """A line with its 95% band; low and high are empty without resamples. All (g,)."""

    value: Array
    low: Array
    high: Array


def parameters_of(group: Mapping[str, Any]) -> dict[str, Array]:
    """By name (1 + r, 1): a parameter's value, then its resamples, the value again where it has none.

    `group` is one of the JSON of a fit.
    """
    draws = group.get("draws") or {}
    count = min((len(values) for values in draws.values()), default=0)
    return {
        name: np.array([row["value"], *draws.get(name, [row["value"]] * count)[:count]], dtype=float)[:, None]
        for name, row in group["parameters"].items()
    }


def line_of(values: Array) -> Line:
    """The fit, and percentiles over the resamples of values (1 + r, g). Resamples without a number are left out."""
    drawn = values[1:]
    finite = np.where(np.isfinite(drawn), drawn, np.nan)
    if not drawn.size or np.isnan(finite).all(0).any():
        return Line(values[0], np.empty(0), np.empty(0))
    low, high = np.nanpercentile(finite, INTERVAL, axis=0)
    return Line(values[0], low, high)


def surface(law: str, p: Mapping[str, Array], n: Array, d: Array) -> Array:
    """Loss (1 + r, g) at n parameters and d tokens (g,) or (1 + r, g), for a law of SURFACES.

    `repeat` is taken at tokens that are all new, where it is the chinchilla law.
    """
    with np.errstate(all="ignore"):
        A, B, alpha, beta, gamma = _terms(law, p)
        return np.asarray(p["E"] + (A / n**alpha + B / d**beta) ** gamma)


def frontier(
    law: str, p: Mapping[str, Array], compute: Array, flops: tuple[float, float] = SIX_ND
) -> dict[str, Array] | None:
    """Loss, params and tokens (1 + r, g) where `compute` (g,) is spent best; None for a law that does not say.

    For surfaces FLOPs are k N^(1 + kappa) D, `flops` = (k, kappa). Laws of compute alone have only what they are of:
    `power` the loss.
    """
    if law in SURFACES:
        A, B, alpha, beta, _ = _terms(law, p)
        with np.errstate(all="ignore"):
            power = 1 + flops[1]  # A / N^alpha + B (N^power / (C / k))^beta is least where its derivative vanishes
            log_c = np.log(compute * PFLOP_S_DAY / flops[0])
            log_n = (np.log(alpha * A) - np.log(beta * power * B) + beta * log_c) / (alpha + power * beta)
            n, d = np.exp(log_n), np.exp(log_c - power * log_n)
        return {"loss": surface(law, p, n, d), "params": n, "tokens": d}
    found = {}
    for name, key in (("l", "loss"), ("n_opt", "params"), ("d_opt", "tokens")):
        if f"{name}_exponent" in p:
            floor = p.get("E", np.zeros(1)) if name == "l" else np.zeros(1)
            found[key] = floor + p[f"{name}_coefficient"] * compute ** p[f"{name}_exponent"]
    return found or None


def accuracy(p: Mapping[str, Array], bits_per_byte: Array) -> Array:
    """low + span / (1 + exp(slope (B - midpoint))): accuracy at bits per byte B (g,)."""
    with np.errstate(over="ignore"):
        return np.asarray(p["low"] + p["span"] / (1 + np.exp(p["slope"] * (bits_per_byte - p["midpoint"]))))


def downstream_error(p: Mapping[str, Array], loss: Array) -> Array:
    """E_error - k exp(-g L): error at a loss L (g,)."""
    with np.errstate(over="ignore"):
        return np.asarray(p["E_error"] - p["k"] * np.exp(-p["g"] * loss))


def data_worth(p: Mapping[str, Array], epochs: Array) -> Array:
    """What `epochs` (g,) of the same tokens are worth in epochs of new ones: 1 + r_d (1 - exp(-(epochs - 1) / r_d))."""
    with np.errstate(all="ignore"):
        return np.asarray(1 + p["r_d"] * (1 - np.exp(-(epochs - 1) / p["r_d"])))


def pac_params(p: Mapping[str, Array], tokens: Array) -> Array:
    """coefficient D^exponent: parameters that D tokens (g,) ask for."""
    with np.errstate(all="ignore"):
        return np.asarray(p["coefficient"] * tokens ** p["exponent"])


def _terms(law: str, p: Mapping[str, Array]) -> tuple[Array, Array, Array, Array, Array]:
    """A, B, alpha, beta and gamma."""
    one = np.ones((1, 1))
    if law == "overtrain":  # one exponent for both terms, equation 4 of arXiv 2403.08540
        return p["a"], p["a_prime"] * 6 ** (p["b"] / 2), -p["b"], -p["b"], one
    return p["A"], p["B"], p["alpha"], p["beta"], p.get("gamma", one)
