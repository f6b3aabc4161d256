"""The FLOPs of a table's points as a law, and the best N and D under them where C is not 6 N D."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from linscale.study.flops import Flops, fit_flops
from linscale.study.laws import PFLOP_S_DAY
from linscale.study.table.definitions import DEFINITIONS
from linscale.study.table.group import Group, summary
from linscale.study.table.resampling import widened

Array = np.ndarray


def compute_of(group: Group) -> Flops:
    """The law of a group's FLOPs where its column or definition was named; else 6 N D."""
    if group.columns.get("c", "6nd") == "6nd":
        return Flops()
    return fit_flops(*(group.numbers[role] for role in ("n", "d", "c")))


def described(group: Group, law: Flops) -> dict[str, Any]:
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


def optima(table: Mapping[str, Array], law: Flops, factor: float = 1.0) -> dict[str, dict[str, Any]]:
    """Where FLOPs are spent best: exponents, and coefficients at 1 PFLOP/s-day, with intervals.

    `table` has A, B, alpha and beta, each (1 + r,): the fit, then r resamples, stretched by `factor`.
    Nothing where an exponent is 0 or less.
    """
    A, B, alpha, beta = (table[name] for name in ("A", "B", "alpha", "beta"))
    if min(alpha[0], beta[0]) <= 0:
        return {}
    with np.errstate(all="ignore"):
        a, log_n, log_d = law.optimum(np.log(A), np.log(B), alpha, beta)
        b = 1 - law.power * a
        day = np.log(PFLOP_S_DAY)
        values = {
            "a": a,
            "n_opt_coefficient": np.exp(log_n + a * day),
            "n_opt_exponent": a,
            "d_opt_coefficient": np.exp(log_d + b * day),
            "d_opt_exponent": b,
        }
    return {name: summary(each[0], widened(each, factor)[1:]) for name, each in values.items()}
