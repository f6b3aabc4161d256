"""Laws of loss in model size, data and compute, as pure functions of arrays, and their logarithm with derivatives.

    chinchilla  L = E + A / N^alpha + B / D^beta                Hoffmann et al. 2022, arXiv 2203.15556, approach 3
    gamma       L = E + (A / N^alpha + B / D^beta)^gamma        the form with an interaction of both terms
    power       L = l_coefficient * C^l_exponent                with `irreducible`: + E

N parameters, D tokens, L nats per token, C in PFLOP/s-days as in `laws`.

All are one family, log L = lse(log E, gamma * lse_k(log A_k - alpha_k log x_k)) with lse the logarithm of the sum of
exponentials: no term overflows, and E, A and B stay positive without being told to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


def chinchilla(n: Array, d: Array, E: float, A: float, B: float, alpha: float, beta: float) -> Array:
    """E + A / n^alpha + B / d^beta, in nats per token for n parameters and d tokens."""
    return E + A / n**alpha + B / d**beta


def gamma_form(n: Array, d: Array, E: float, A: float, B: float, alpha: float, beta: float, gamma: float) -> Array:
    """E + (A / n^alpha + B / d^beta)^gamma, in nats per token for n parameters and d tokens."""
    return E + (A / n**alpha + B / d**beta) ** gamma


def power(c: Array, l_coefficient: float, l_exponent: float, E: float = 0.0) -> Array:
    """E + l_coefficient * c^l_exponent, in nats per token at c PFLOP/s-days; the exponent carries its sign."""
    return E + l_coefficient * c**l_exponent


@dataclass(frozen=True)
class Law:
    """A member of the family by what it reads and which of the family's parameters it frees.

    Its vector is (log E, log A_1 .. log A_K, alpha_1 .. alpha_K, gamma), K the number of `inputs`.
    """

    name: str
    formula: str
    inputs: tuple[str, ...]
    """Columns that the K terms read: "n", "d" or "c"."""
    names: tuple[str, ...]
    """Names of the entries of the vector."""
    free: tuple[bool, ...]
    """Entries that are fitted; log E is otherwise -inf and gamma 1."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of what is fitted, in the order of the vector."""
        return tuple(name for name, free in zip(self.names, self.free, strict=True) if free)

    def natural(self, vectors: Array) -> Array:
        """Vectors (..., p) as the numbers of the formula: E and coefficients themselves, an exponent of C signed."""
        count = len(self.inputs)
        values = vectors.copy()
        values[..., : count + 1] = np.exp(np.minimum(vectors[..., : count + 1], 700.0))
        if self.inputs == ("c",):
            values[..., 2] = -vectors[..., 2]
        return values


_SURFACE = ("E", "A", "B", "alpha", "beta", "gamma")
_POWER = ("E", "l_coefficient", "l_exponent", "gamma")
LAWS: Mapping[str, Law] = {
    "chinchilla": Law("chinchilla", "L = E + A / N^alpha + B / D^beta", ("n", "d"), _SURFACE, (True,) * 5 + (False,)),
    "gamma": Law("gamma", "L = E + (A / N^alpha + B / D^beta)^gamma", ("n", "d"), _SURFACE, (True,) * 6),
    "power": Law("power", "L = l_coefficient * C^l_exponent", ("c",), _POWER, (False, True, True, False)),
    "power_irreducible": Law(
        "power", "L = E + l_coefficient * C^l_exponent", ("c",), _POWER, (True, True, True, False)
    ),
}


@dataclass(frozen=True)
class Evaluation:
    """log L of P vectors at m points, with derivatives. Points are the last axis inside: rows of memory."""

    value: Array
    """(P, m)"""
    rows: Array
    """(P, p, m), the gradient."""
    _inner: Array  # (P, p, m), gradient of the inner lse
    _outer: Array  # (P, p, m), gradient of gamma * inner minus that of log E
    _share: Array  # (P, m), share of L that is not E
    _spread: Array  # (P, m), gamma * s_1 * s_2 of the two inner terms; zeros for one term
    _contrast: Array  # (2K, m), gradient of the first inner term minus that of the second

    @property
    def gradient(self) -> Array:
        """(P, m, p)"""
        return self.rows.transpose(0, 2, 1)

    def curvature(self, weights: Array) -> Array:
        """Sum over points of weights (P, m) times the second derivatives of log L: (P, p, p)."""
        size, terms = self.rows.shape[1], len(self._contrast)
        total = weighted_squares(self._outer, weights * self._share * (1 - self._share))
        shared = weights * self._share
        pairs = (self._contrast[:, None] * self._contrast).reshape(terms * terms, -1)
        total[:, 1 : 1 + terms, 1 : 1 + terms] += ((shared * self._spread) @ pairs.T).reshape(-1, terms, terms)
        cross = (self._inner @ shared[..., None])[..., 0]
        total[:, size - 1, :] += cross
        total[:, :, size - 1] += cross
        return total


def weighted_squares(rows: Array, weights: Array) -> Array:
    """Sum over m of weights (P, m) times the outer products of rows (P, p, m): (P, p, p)."""
    squares: Array = (rows * weights[:, None]) @ rows.transpose(0, 2, 1)
    return squares


def log_sum(a: Array, b: Array) -> Array:
    """log(exp a + exp b), as np.logaddexp and several times as fast: its parts run on vector units."""
    total: Array = np.maximum(a, b) + np.log(1.0 + np.exp(-np.abs(a - b)))
    return total


def log_loss(vectors: Array, x: Array) -> Array:
    """log L (P, m) of vectors (P, p) at points whose K inputs have logarithms x (K, m)."""
    count = len(x)
    inner = vectors[:, 1, None] - vectors[:, 1 + count, None] * x[0]
    if count == 2:
        inner = log_sum(inner, vectors[:, 2, None] - vectors[:, 2 + count, None] * x[1])
    return log_sum(vectors[:, :1], vectors[:, -1:] * inner)


def evaluate(vectors: Array, x: Array) -> Evaluation:
    """log L and its derivatives for vectors (P, p) at points whose K inputs have logarithms x (K, m)."""
    count, points = x.shape
    log_e, log_a = vectors[:, :1], vectors[:, 1 : 1 + count, None]
    alpha, gamma = vectors[:, 1 + count : 1 + 2 * count, None], vectors[:, -1:]
    terms = log_a - alpha * x  # (P, K, m)
    inner = log_sum(terms[:, 0], terms[:, 1]) if count == 2 else terms[:, 0]
    parts = np.exp(terms - inner[:, None])
    scaled = gamma * inner
    value = log_sum(log_e, scaled)
    share = np.exp(scaled - value)
    inner_rows = np.zeros((len(vectors), vectors.shape[1], points))
    inner_rows[:, 1 : 1 + count] = parts
    np.multiply(parts, -x, out=inner_rows[:, 1 + count : 1 + 2 * count])
    outer = gamma[..., None] * inner_rows
    outer[:, -1] = inner
    rows = share[:, None] * outer
    rows[:, 0] = 1 - share
    outer[:, 0] = -1.0
    if count == 2:
        contrast = np.stack([np.ones(points), -np.ones(points), -x[0], x[1]])
        spread = gamma * parts[:, 0] * parts[:, 1]
    else:
        contrast, spread = np.zeros((2 * count, points)), np.zeros_like(value)
    return Evaluation(value, rows, inner_rows, outer, share, spread, contrast)
