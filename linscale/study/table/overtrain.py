"""Laws of models trained on more tokens than is cheapest, and of their error downstream (Gadre et al. 2024).

    L     = E + a N^b + a_prime 6^(b/2) (M N)^b        M = D / N, b < 0        arXiv 2403.08540, equation 4
    error = E_error - k exp(-g L)                                              the same, equation 5

The first is the chinchilla form with one exponent for both terms: B = a_prime 6^(b/2). The second is fitted to the
losses that were measured, not to those that the first predicts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from linscale.config import UserError
from linscale.study.flops import Flops
from linscale.study.table.compute import compute_of, described, optima
from linscale.study.table.form import Form, FormProblem
from linscale.study.table.form_fit import (
    Fitted,
    fit_form,
    group_entry,
    minimum_of,
    parameters_of,
    projected,
    resampled,
)
from linscale.study.table.group import Group, PointFit, draws, rounded, summary, warning
from linscale.study.table.resampling import widened
from linscale.study.table.surface_fit import EXPONENT_BOUNDS, GRID_E, NOTHING, Loss
from linscale.study.table.surfaces import Array
from linscale.study.table.unfit import check_distinct, check_fractions
from linscale.study.table.warnings import resampling_warnings, verdict_warnings

GRID_EXPONENT = (0.03, 0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.55, 0.8)
GRID_RATE = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # g, over the range of losses
RATE_BOUNDS = (0.01, 50.0)  # the same
ERROR_PARAMETERS = ("E_error", "k", "g")


def overtrain(n: Array, d: Array, E: float, a: float, a_prime: float, b: float) -> Array:
    """E + a n^b + a_prime 6^(b/2) d^b, in nats per token for n parameters and d = M n tokens."""
    return E + a * n**b + a_prime * 6 ** (b / 2) * d**b


def downstream(loss: Array, E_error: float, k: float, g: float) -> Array:
    """E_error - k exp(-g loss), an error between 0 and 1 at a loss in nats per token."""
    return E_error - k * np.exp(-g * loss)


def fit_overtrain(group: Group, settings: PointFit) -> dict[str, Any]:
    """The entry of one group. Raises UserError when the points are too few or an error is not within 0 and 1."""
    n, d, loss = (group.numbers[role] for role in ("n", "d", "loss"))
    check_distinct("overtrain", group.numbers, {"n": 2, "d": 3})
    counts, labels = resampled(group, settings)
    problem = FormProblem(overtrain_form(n, d, loss), settings.loss, loss, group.numbers.get("weight"))
    fitted = fit_form(problem, overtrain_starts(problem, n, d), counts, labels)
    result = group_entry(group, settings, fitted, len(np.unique(labels)), ("n", "d", "loss"))
    flops = compute_of(group)
    result["derived"], result["compute"] = _derived(fitted, flops), described(group, flops)
    if "error" in group.numbers:
        _add_error(result, group, counts, labels)
    return result


def overtrain_form(n: Array, d: Array, loss: Array) -> Form:
    """The law of loss over vectors (log E, log a and log B at the inputs' geometric means, -b)."""
    x_n, x_d = np.log(n), np.log(d)
    mean_n, mean_d = float(x_n.mean()), float(x_d.mean())
    x_n, x_d = x_n - mean_n, x_d - mean_d

    def predict(vectors: Array) -> tuple[Array, Array]:
        beta = vectors[:, 3:]
        size, tokens = np.exp(vectors[:, 1:2] - beta * x_n), np.exp(vectors[:, 2:3] - beta * x_d)
        constant = np.broadcast_to(np.exp(vectors[:, :1]), size.shape)
        return constant + size + tokens, np.stack([constant, size, tokens, -size * x_n - tokens * x_d], axis=-1)

    low, high = np.log(NOTHING * loss.min()), np.log(loss.max())
    term = (low, high - np.log(NOTHING))
    return Form(
        "overtrain",
        "L = E + a N^b + a_prime 6^(b/2) (M N)^b, M = D/N",
        ("E", "a", "a_prime", "b"),
        predict,
        np.array([(low, high), term, term, EXPONENT_BOUNDS]).T,
        np.array([[1, 0, 0, 0], [0, 1, 0, mean_n], [0, 0, 1, mean_d + np.log(6) / 2], [0, 0, 0, -1.0]]),
        np.array([True, True, True, False]),
    )


def overtrain_starts(problem: FormProblem, n: Array, d: Array) -> Array:
    """(P, 4): at every exponent of a grid, the coefficients that fit best, E free or a share of the lowest loss."""
    x_n, x_d = (np.log(each) - np.log(each).mean() for each in (n, d))
    loss, space, rows = problem.target, problem.loss.space, []
    for beta in GRID_EXPONENT:
        terms = np.exp(-beta * np.array([x_n, x_d]))
        rows.append([*np.log(projected(np.vstack([np.ones_like(loss), terms]), loss, space)), beta])
        for share in GRID_E:
            constant = share * loss.min()
            solved = projected(terms, loss - constant, space)
            rows.append([np.log(max(constant, 1e-2 * loss.min())), *np.log(solved), beta])
    return np.array(rows)


def _derived(fitted: Fitted, flops: Flops) -> dict[str, Any]:
    """Where FLOPs are spent best, as for the chinchilla law; and tokens a parameter under 6 N D, the same for all."""
    _, a, a_prime, b = fitted.problem.form.numbers(np.vstack([fitted.solution.vector, fitted.replicates])).T
    if b[0] >= 0:
        return {}
    with np.errstate(all="ignore"):
        ratio = (a_prime / a) ** (-1 / b) / np.sqrt(6)
    found = optima({"A": a, "B": a_prime * 6 ** (b / 2), "alpha": -b, "beta": -b}, flops, fitted.factor)
    found.pop("a", None)  # one half, and the name of a parameter here
    return found | {"tokens_per_parameter": summary(ratio[0], widened(ratio, fitted.factor)[1:])}


def _add_error(result: dict[str, Any], group: Group, counts: Array, labels: Array) -> None:
    """The law of errors in the same group, of the rows that have one and the same resamples."""
    error = group.numbers["error"]
    rows = np.isfinite(error)
    check_fractions("error", error, group.rows)
    result["points"]["error"] = [float(each) if there else None for each, there in zip(error, rows, strict=True)]
    if rows.sum() <= len(ERROR_PARAMETERS):
        text = "too few rows have an error: the law of errors, of 3 parameters, is not fitted"
        result["warnings"].append(warning("few_errors", text, [str(rows.sum())]))
        return
    loss, units = group.numbers["loss"][rows], len(np.unique(labels[rows])) if labels.size else 0
    if counts.size and units < 2:
        raise UserError("all rows with an error are of one unit: use --by point or --bootstrap 0")
    problem = FormProblem(error_form(loss), Loss("l2", space="linear"), error[rows])
    fitted = fit_form(problem, error_starts(problem, loss), counts[:, rows], labels[rows] if labels.size else labels)
    parameters = parameters_of(fitted)
    result["parameters"] |= parameters
    result["draws"] |= draws(ERROR_PARAMETERS, problem.form.numbers(fitted.replicates))
    result["formula"] += f"; {problem.form.formula}"
    result["downstream"] = minimum_of(fitted, "error") | {"points_used": int(rows.sum())}
    residual = iter(rounded(problem.residuals(fitted.solution.vector)))
    result["points"]["error_residual"] = [next(residual) if there else None for there in rows]
    known = {each["name"]: each for each in result["warnings"]}
    for found in verdict_warnings(parameters) + resampling_warnings(fitted.settled, units):
        if found["name"] in ("at_bound", "not_identified") and found["name"] in known:
            known[found["name"]]["detail"] += f", {found['detail']}"
        elif found["name"] not in known:
            result["warnings"].append(found)


def error_form(loss: Array) -> Form:
    """The law of errors over vectors (E_error, log k at the mean loss, g)."""
    mean, reach = float(loss.mean()), float(np.ptp(loss)) or 1.0
    x = loss - mean

    def predict(vectors: Array) -> tuple[Array, Array]:
        fall = np.exp(vectors[:, 1:2] - vectors[:, 2:3] * x)
        return vectors[:, :1] - fall, np.stack([np.ones_like(fall), -fall, fall * x], axis=-1)

    return Form(
        "downstream",
        "error = E_error - k exp(-g L)",
        ERROR_PARAMETERS,
        predict,
        np.array([(0.0, 1.0), (np.log(NOTHING), np.log(1 / NOTHING)), tuple(np.array(RATE_BOUNDS) / reach)]).T,
        np.array([[1, 0, 0], [0, 1, mean], [0, 0, 1.0]]),
        np.array([False, True, False]),
    )


def error_starts(problem: FormProblem, loss: Array) -> Array:
    """(P, 3): at every rate of a grid, E_error and k by linear least squares within their bounds."""
    from scipy.optimize import lsq_linear

    rows = []
    for rate in np.array(GRID_RATE) / (float(np.ptp(loss)) or 1.0):
        terms = np.array([np.ones_like(loss), -np.exp(-rate * (loss - loss.mean()))]).T
        constant, fall = lsq_linear(terms, problem.target, bounds=([0.0, NOTHING], [1.0, 1 / NOTHING])).x
        rows.append([constant, np.log(max(fall, 1e-2)), rate])
    return np.array(rows)
