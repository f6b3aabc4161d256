"""L, N_opt and D_opt as power laws of compute through minima, for many replicates at once, and as the JSON has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from linscale.study.laws import FORMULA, PARAMETERS, fit_power_laws
from linscale.study.table.group import summary, warning

Array = np.ndarray
EXPONENTS = np.geomspace(0.005, 4, 48)  # of 1 / C in the law with E, the grid
GOLDEN = (np.sqrt(5) - 1) / 2
NARROWINGS = 40
WITH_E = FORMULA.replace("L = ", "L = E + ", 1)
QUANTITIES = ("L", "N_opt", "D_opt")


def names(irreducible: bool) -> tuple[str, ...]:
    """Names of the parameters, in the order of every array here."""
    return ("E", *PARAMETERS) if irreducible else PARAMETERS


def fit_laws(log_compute: Array, log_values: Array, kept: Array, irreducible: bool) -> Array:
    """The parameters (r, p) of r replicates, in the numbers of the formula; nan where fewer than two minima are kept.

    log_compute (r or 1, g) in PFLOP/s-days; log_values (r, 3, g) of L, N_opt and D_opt; kept (r, g).
    """
    masks = np.broadcast_to(kept[:, None], log_values.shape)
    coefficients, exponents = fit_power_laws(log_compute[:, None], log_values, masks)
    with np.errstate(over="ignore"):
        laws = np.stack([np.exp(coefficients), exponents], axis=-1).reshape(len(log_values), len(PARAMETERS))
    if not irreducible:
        return laws
    curved = _with_constant(np.broadcast_to(log_compute, kept.shape), log_values[:, 0], kept)
    return np.concatenate([curved, laws[:, 2:]], axis=1)


def residuals(log_compute: Array, log_values: Array, laws: Array) -> Array:
    """(r, 3, g) prediction minus minimum, of logarithms, for laws (r, p) at minima as in `fit_laws`."""
    constant, powers = (laws[:, :1], laws[:, 1:]) if laws.shape[1] == 7 else (0.0, laws)
    lines = np.log(powers[:, 0::2, None]) + powers[:, 1::2, None] * log_compute[:, None]
    lines[:, 0] = np.log(constant + np.exp(lines[:, 0]))
    return np.asarray(lines - log_values)


def parameter_table(law: Array, replicates: Array, irreducible: bool) -> dict[str, dict[str, Any]]:
    """Value, interval and verdict of each parameter. Identified: the interval of an exponent or of E excludes 0, and
    that of a coefficient spans less than a factor of ten."""
    table = {}
    for at, name in enumerate(names(irreducible)):
        row = middling(law[at], replicates[:, at])
        low, high = row["low"], row["high"]
        known = low is not None and (high < 10 * low if name.endswith("coefficient") else low * high > 0)
        at_bound = name == "E" and bool(law[at] == 0)
        table[name] = row | {"at_bound": at_bound, "identified": bool(known and not at_bound), "profile": None}
    return table


def middling(value: float, replicates: Array) -> dict[str, Any]:
    """As `summary`, with half the width of the middle 68% as standard error: from few degrees of freedom replicates
    are spread like Student's t, whose standard deviation a few of the farthest decide."""
    row = summary(value, replicates)
    if row["se"] is not None:
        low, high = np.percentile(replicates, [15.87, 84.13])
        row["se"] = float(high - low) / 2
    return row


def objective(left: Array) -> dict[str, Any]:
    """What the law leaves of the minima: root mean squares (3,)."""
    name = f"root mean square residual of {', '.join(f'log {each}' for each in QUANTITIES)}"
    return {"name": name, "value": left.tolist()}


def range_warnings(compute: Array) -> list[dict[str, str]]:
    """Of a short range of compute (g,) in PFLOP/s-days, and of coefficients far outside of it."""
    found, span = [], float(compute.max() / compute.min())
    if span < 10:
        text = "fitted over less than a factor of ten in compute"
        found.append(warning("short_range", text, [f"a factor of {span:.2g}"]))
    decades = float(np.abs(np.log10([compute.min(), compute.max()])).min())
    if decades > 1 and not compute.min() < 1 < compute.max():
        text = "coefficients are values at 1 PFLOP/s-day, far outside of the compute fitted"
        found.append(warning("extrapolated_coefficient", text, [f"{decades:.0f} decades"]))
    return found


def bound_warnings(parameters: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """Of an E that the minima do not show."""
    if not any(each["at_bound"] for each in parameters.values()):
        return []
    return [warning("at_bound", "a parameter is on its bound: the law has a term that the points do not show", ["E"])]


def _with_constant(log_compute: Array, log_loss: Array, kept: Array) -> Array:
    """E, coefficient and exponent (r, 3) that minimise the sum of (E / L + A C^b / L - 1)^2, E >= 0.

    E and A follow from b (variable projection), so that a grid over b and golden sections around its best do.
    """
    weight = kept / np.exp(log_loss)  # (r, g)
    centre = (log_compute * kept).sum(1, keepdims=True) / np.maximum(kept.sum(1, keepdims=True), 1)
    x = np.where(kept, log_compute - centre, 0.0)

    def solve(b: Array) -> tuple[Array, Array, Array]:
        """Sum of squares, E and A for exponents b (r,)."""
        term = weight * np.exp(-b[:, None] * x)
        ee, et, tt = (weight**2).sum(1), (weight * term).sum(1), (term**2).sum(1)
        e1, t1 = weight.sum(1), term.sum(1)
        with np.errstate(all="ignore"):
            constant = np.maximum((e1 * tt - t1 * et) / (ee * tt - et**2), 0.0)
            constant = np.where(np.isfinite(constant), constant, 0.0)
            factor = (t1 - constant * et) / tt
        squares = ((constant[:, None] * weight + factor[:, None] * term - kept) ** 2).sum(1)
        return np.where(factor > 0, squares, np.inf), constant, factor

    rows = np.arange(len(weight))
    heights = np.array([solve(np.full(len(rows), b))[0] for b in EXPONENTS])
    best = heights.argmin(0)
    low, high = (np.log(EXPONENTS[np.clip(best + side, 0, len(EXPONENTS) - 1)]) for side in (-1, 1))
    for _ in range(NARROWINGS):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        lower = solve(np.exp(left))[0] < solve(np.exp(right))[0]
        low, high = np.where(lower, low, left), np.where(lower, right, high)
    b = np.exp((low + high) / 2)
    _, constant, factor = solve(b)
    found = np.array([constant, factor * np.exp(b * centre[:, 0]), -b]).T
    return np.where(kept.sum(1)[:, None] >= 3, found, np.nan)
