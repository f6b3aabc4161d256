"""How FLOPs grow with N and D in a table, and the best N and D under that, where C is not 6 N D.

Every definition is proportional to D at a given shape, and over sizes near a power of N: C = k N^(1 + kappa) D. The
head, attention and the state of linear attention make kappa differ from 0, and with it the exponents of N_opt and D_opt
(Porian et al. 2024, arXiv 2406.19146).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from linscale.study.laws import PFLOP_S_DAY
from linscale.study.table.definitions import DEFINITIONS
from linscale.study.table.group import Group, summary
from linscale.study.table.resampling import widened
from linscale.study.table.surfaces import optimum

Array = np.ndarray
SIX = 6.0


@dataclass(frozen=True)
class ComputeLaw:
    """C = k N^(1 + kappa) D in FLOPs."""

    k: float = SIX
    kappa: float = 0.0
    deviation: float = 0.0
    """The largest distance of a point's C from it, relative to it."""

    def optimum(self, A: Array, B: Array, alpha: Array, beta: Array) -> tuple[Array, Array, Array]:
        """The cheapest (N, D) of L = E + A / N^alpha + B / D^beta at C FLOPs, and of its gamma form.

        Returns a and the logarithms of two factors: N = exp(first) C^a and D = exp(second) C^(1 - p a), p = 1 + kappa:

            N = [alpha A / (beta p B)]^(1 / (alpha + p beta)) (C/k)^(beta / (alpha + p beta)),  D = (C/k) N^-p
        """
        p = 1 + self.kappa
        share, balance, _ = optimum(A, B, alpha, p * beta)
        a = share / p
        log_n = balance - a * np.log(self.k)
        return a, log_n, -np.log(self.k) - p * log_n


def fit_compute(n: Array, d: Array, c: Array) -> ComputeLaw:
    """k and kappa by least squares of log C - log D on log N, for points (m,) of parameters, tokens and FLOPs.

    With one N only, kappa is 0.
    """
    x, y = np.log(n), np.log(c) - np.log(d)
    spread = x - x.mean()
    slope = float(spread @ y / (spread @ spread)) if np.ptp(x) > 1e-9 else 1.0
    constant = float(y.mean() - slope * x.mean())
    deviation = float(np.abs(np.expm1(y - constant - slope * x)).max())
    return ComputeLaw(float(np.exp(constant)), slope - 1, deviation)


def compute_of(group: Group) -> ComputeLaw:
    """The law of a group's FLOPs where its column or definition was named; else 6 N D."""
    if group.columns.get("c", "6nd") == "6nd":
        return ComputeLaw()
    return fit_compute(*(group.numbers[role] for role in ("n", "d", "c")))


def described(group: Group, law: ComputeLaw) -> dict[str, Any]:
    """The definition of C behind a group's N_opt and D_opt, for the JSON."""
    name = group.columns.get("c", "6nd")
    known = DEFINITIONS["c"].get(name)
    return {
        "definition": name,
        "formula": known.formula if known else f"C = the column {name}",
        "k": law.k,
        "kappa": law.kappa,
        "largest_deviation": law.deviation,
    }


def optima(table: Mapping[str, Array], law: ComputeLaw, factor: float = 1.0) -> dict[str, dict[str, Any]]:
    """Where FLOPs are spent best: exponents, and coefficients at 1 PFLOP/s-day, with intervals.

    `table` has A, B, alpha and beta, each (1 + r,): the fit, then r resamples, stretched by `factor`.
    Nothing where an exponent is 0 or less.
    """
    A, B, alpha, beta = (table[name] for name in ("A", "B", "alpha", "beta"))
    if min(alpha[0], beta[0]) <= 0:
        return {}
    with np.errstate(all="ignore"):
        a, log_n, log_d = law.optimum(A, B, alpha, beta)
        b = 1 - (1 + law.kappa) * a
        day = np.log(PFLOP_S_DAY)
        values = {
            "a": a,
            "n_opt_coefficient": np.exp(log_n + a * day),
            "n_opt_exponent": a,
            "d_opt_coefficient": np.exp(log_d + b * day),
            "d_opt_exponent": b,
        }
    return {name: summary(each[0], widened(each, factor)[1:]) for name, each in values.items()}
