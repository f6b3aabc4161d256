"""The law of repeated data (Muennighoff et al. 2023, arXiv 2305.16264, equations 5 and 6, and appendix A).

    L   = E + A / N'^alpha + B / D'^beta
    D'  = U_D + U_D r_d (1 - exp(-R_D / r_d))      U_D = min(unique tokens, D), R_D = D / U_D - 1 repetitions
    N'  = U_N + U_N r_n (1 - exp(-R_N / r_n))      U_N = min(N cheapest for U_D, N), R_N = N / U_N - 1 excess

N cheapest for U_D is that of the same law without repetition: alpha A / N^alpha = beta B / U_D^beta.
All parameters are fitted together; the publication took E to beta from other runs and fitted r_d and r_n alone.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from linscale.config import UserError
from linscale.study.table.compute import compute_of, described, optima
from linscale.study.table.form import Form, FormProblem
from linscale.study.table.form_fit import fit_form, group_entry, projected, resampled
from linscale.study.table.group import Group, PointFit, warning
from linscale.study.table.points import ROWS_SHOWN
from linscale.study.table.surface_fit import NOTHING
from linscale.study.table.surfaces import Array
from linscale.study.table.unfit import check_distinct

EXPONENT_BOUNDS = (0.01, 4.0)  # of N and D; N cheapest for U_D has an exponent of 1 / alpha
DECAY_BOUNDS = (1e-2, 1e4)  # of r_d and r_n: nothing gained from the first repetition, and nothing lost in any table
GRID_SHARE = (0.0, 0.6)  # of the lowest loss, for E
GRID_EXPONENT = (0.15, 0.3, 0.5)
GRID_DECAY = (1.0, 5.0, 30.0)
FARTHEST = 20.0  # log of the mean N over N cheapest for U_D
ROUNDING = 1.001  # unique tokens over tokens, beyond which the table says that more were unique than were seen
NAMES = ("E", "A", "B", "alpha", "beta", "r_d", "r_n")


def repeat(n: Array, d: Array, unique: Array, E: float, A: float, B: float, alpha: float, beta: float, r_d: float,
           r_n: float = np.inf) -> Array:  # fmt: skip
    """Loss in nats per token of n parameters on d tokens, `unique` of them distinct; without r_n no decay of excess."""
    seen = np.minimum(unique, d)
    tokens = seen * (1 + r_d * -np.expm1(-(d / seen - 1) / r_d))
    if not np.isfinite(r_n):
        return E + A / n**alpha + B / tokens**beta
    cheapest = np.minimum((alpha * A / (beta * B)) ** (1 / alpha) * seen ** (beta / alpha), n)
    size = cheapest * (1 + r_n * -np.expm1(-(n / cheapest - 1) / r_n))
    return E + A / size**alpha + B / tokens**beta


def fit_repeat(group: Group, settings: PointFit) -> dict[str, Any]:
    """The entry of one group. Raises UserError when the points are too few or none repeats its tokens."""
    n, d, unique, loss = (group.numbers[role] for role in ("n", "d", "unique", "loss"))
    if not (d > unique * ROUNDING).any():
        raise UserError(
            "unique: no row has more tokens than unique tokens, so that nothing is repeated; use --law chinchilla"
        )
    check_distinct("repeat", group.numbers, {"n": 3, "d": 3})
    counts, labels = resampled(group, settings)
    excess = settings.law == "repeat"
    problem = FormProblem(repeat_form(n, d, unique, loss, excess), settings.loss, loss, group.numbers.get("weight"))
    units = len(np.unique(labels))
    fitted = fit_form(problem, repeat_starts(problem, n, d, unique, excess), counts, labels)
    result = group_entry(group, settings, fitted, units, ("n", "d", "unique", "loss"))
    numbers = problem.form.numbers(np.vstack([fitted.solution.vector, fitted.replicates]))
    table = dict(zip(("A", "B", "alpha", "beta"), numbers[:, 1:5].T, strict=True))
    flops = compute_of(group)
    result["derived"], result["compute"] = optima(table, flops, fitted.factor), described(group, flops)
    above = group.rows[unique > d * ROUNDING]
    if above.size:
        text = "more unique tokens than tokens: the unique tokens that were seen are taken to be all tokens"
        shown = [f"row {row}" for row in above[:ROWS_SHOWN]]
        more = [f"{above.size - ROWS_SHOWN} more"] if above.size > ROWS_SHOWN else []
        result["warnings"].append(warning("unique_above_tokens", text, shown + more))
    return result


def repeat_form(n: Array, d: Array, unique: Array, loss: Array, excess: bool) -> Form:
    """The law over vectors (log E, log A and log B at the means of log n and log U_D, alpha, beta, log r_d, log r_n).

    Without `excess` r_n is infinite, N' = N, and the vector ends before it.
    """
    log_n, log_u = np.log(n), np.log(np.minimum(unique, d))
    mean_n, mean_u = float(log_n.mean()), float(log_u.mean())
    x_n, x_u, repeats = log_n - mean_n, log_u - mean_u, np.exp(np.log(d) - log_u) - 1

    def predict(vectors: Array) -> tuple[Array, Array]:
        alpha, beta = vectors[:, 3:4], vectors[:, 4:5]
        gained, slope = _effective(repeats, np.exp(vectors[:, 5:6]))
        x_d = x_u + np.log1p(gained)
        x_size, moved = _size(vectors, x_n, x_u) if excess else (x_n, np.zeros((*x_d.shape, 0)))
        size, tokens = np.exp(vectors[:, 1:2] - alpha * x_size), np.exp(vectors[:, 2:3] - beta * x_d)
        constant = np.broadcast_to(np.exp(vectors[:, :1]), size.shape)
        gradient = np.zeros((*size.shape, vectors.shape[1]))
        for entry, part in enumerate((constant, size, tokens, -size * x_size, -tokens * x_d)):
            gradient[..., entry] = part
        gradient[..., 5] = -beta * tokens * slope / (1 + gained)
        if excess:
            gradient[..., [1, 2, 3, 4, 6]] -= (alpha * size)[..., None] * moved
        return constant + size + tokens, gradient

    low, high = np.log(NOTHING * loss.min()), np.log(loss.max())
    term, count = (low, high - np.log(NOTHING)), 7 if excess else 6
    decay = tuple(np.log(DECAY_BOUNDS))
    readings = np.eye(7)
    readings[1, 3], readings[2, 4] = mean_n, mean_u
    return Form(
        "repeat",
        "L = E + A / N'^alpha + B / D'^beta, D' = U_D + U_D r_d (1 - exp(-R_D / r_d)), "
        + ("N' = U_N + U_N r_n (1 - exp(-R_N / r_n))" if excess else "N' = N"),
        NAMES[:count],
        predict,
        np.array([(low, high), term, term, EXPONENT_BOUNDS, EXPONENT_BOUNDS, decay, decay])[:count].T,
        readings[:count, :count],
        np.array([True, True, True, False, False, True, True])[:count],
    )


def _effective(repeats: Array, decay: Array) -> tuple[Array, Array]:
    """decay * (1 - exp(-repeats / decay)) and its derivative in log decay."""
    ratio = repeats / decay
    gained = decay * -np.expm1(-ratio)
    return gained, gained - repeats * np.exp(-ratio)


def _size(vectors: Array, x_n: Array, x_u: Array) -> tuple[Array, Array]:
    """log N' (P, m), centred as x_n, and its derivatives (P, m, 5) in log A, log B, alpha, beta and log r_n."""
    log_a, log_b, alpha, beta = (vectors[:, entry : entry + 1] for entry in (1, 2, 3, 4))
    cheapest = (np.log(alpha) + log_a - np.log(beta) - log_b + beta * x_u) / alpha
    inside = (cheapest < x_n) & (cheapest > -FARTHEST)
    base = np.minimum(np.maximum(cheapest, -FARTHEST), x_n)
    excess = np.expm1(x_n - base)
    gained, slope = _effective(excess, np.exp(vectors[:, 6:7]))
    share = 1 - (1 + excess) * np.exp(-excess * np.exp(-vectors[:, 6:7])) / (1 + gained)  # of log U_N in log N'
    share = np.where(inside, share, 0.0) / alpha
    moved = [share, -share, share * (1 / alpha - cheapest), share * (x_u - 1 / beta), slope / (1 + gained)]
    return base + np.log1p(gained), np.stack(moved, axis=-1)


def repeat_starts(problem: FormProblem, n: Array, d: Array, unique: Array, excess: bool) -> Array:
    """(P, p) on a grid of exponents and decays, with the coefficients that fit best there while excess has no decay."""
    log_n, log_u = np.log(n), np.log(np.minimum(unique, d))
    x_n, x_u, repeats = log_n - log_n.mean(), log_u - log_u.mean(), np.exp(np.log(d) - log_u) - 1
    loss, rows = problem.target, []
    for alpha, beta, decay in itertools.product(GRID_EXPONENT, GRID_EXPONENT, GRID_DECAY):
        x_d = x_u + np.log1p(_effective(repeats, np.array(decay))[0])
        terms = np.exp(np.array([-alpha * x_n, -beta * x_d]))
        solved = [projected(np.vstack([np.ones_like(loss), terms]), loss, problem.loss.space)]
        for share in GRID_SHARE:
            constant = share * loss.min()
            rest = projected(terms, loss - constant, problem.loss.space)
            solved.append(np.array([max(constant, 1e-2 * loss.min()), *rest]))
        for coefficients in solved:
            row = [*np.log(coefficients), alpha, beta, np.log(decay)]
            rows += [[*row, np.log(other)] for other in GRID_DECAY] if excess else [row]
    return np.array(rows)
