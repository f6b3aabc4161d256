"""Loss of N and D under a fitted law, for the fit and all of its resamples at once.

    chinchilla  L = E + A / N^alpha + B / D^beta                      Hoffmann et al. 2022, arXiv 2203.15556
    gamma       L = E + (A / N^alpha + B / D^beta)^gamma
    overtrain   L = E + a N^b + a_prime 6^(b/2) (M N)^b, M = D / N     Gadre et al. 2024, arXiv 2403.08540
    repeat      chinchilla of effective N and D                       Muennighoff et al. 2023, arXiv 2305.16264

overtrain is chinchilla with A = a, B = a_prime 6^(b/2) and alpha = beta = -b.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
SURFACES = ("chinchilla", "gamma", "overtrain", "repeat")


@dataclass(frozen=True)
class Surface:
    """E + (A / N^alpha + B / D^beta)^gamma; every field (1 + r,)."""

    floor: Array
    log_a: Array
    log_b: Array
    alpha: Array
    beta: Array
    gamma: Array

    def loss(self, n: Array, d: Array) -> Array:
        """(1 + r, ...) nats per token at n parameters and d tokens, which broadcast against (1 + r, ...)."""
        floor, log_a, log_b, alpha, beta, gamma = (
            each[(...,) + (None,) * (np.ndim(n) - 1)]
            for each in (self.floor, self.log_a, self.log_b, self.alpha, self.beta, self.gamma)
        )
        with np.errstate(all="ignore"):
            inner = np.logaddexp(log_a - alpha * np.log(n), log_b - beta * np.log(d))
            return np.asarray(floor + np.exp(gamma * inner))

    def tokens(self, loss: float, n: float) -> Array:
        """(1 + r,) tokens that bring n parameters to a loss; infinite where none do."""
        return self._other(loss, self.log_a - self.alpha * np.log(n), self.log_b, self.beta)

    def params(self, loss: float, d: float) -> Array:
        """(1 + r,) parameters that reach a loss on d tokens; infinite where none do."""
        return self._other(loss, self.log_b - self.beta * np.log(d), self.log_a, self.alpha)

    def _other(self, loss: float, log_known: Array, log_coefficient: Array, exponent: Array) -> Array:
        with np.errstate(all="ignore"):
            rest = np.maximum(loss - self.floor, 0.0) ** (1 / self.gamma) - np.exp(log_known)
            found = np.exp((log_coefficient - np.log(np.maximum(rest, 0.0))) / exponent)
        return np.where(rest > 0, found, np.inf)


def surface(law: str, values: Mapping[str, Array]) -> Surface:
    """The surface of a law of SURFACES.

    That of `repeat` is in effective N and D: they are N and D where compute is best spent on tokens that are all new.
    """
    with np.errstate(all="ignore"):
        if law == "overtrain":
            b = values["b"]
            log_b = np.log(values["a_prime"]) + b / 2 * np.log(6)
            return Surface(values["E"], np.log(values["a"]), log_b, -b, -b, np.ones_like(b))
        gamma = values["gamma"] if law == "gamma" else np.ones_like(values["E"])
        log_a, log_b = np.log(values["A"]), np.log(values["B"])
        return Surface(values["E"], log_a, log_b, values["alpha"], values["beta"], gamma)


def effective(values: Mapping[str, Array], n: Array, d: Array, unique: Array | float) -> tuple[Array, Array]:
    """Effective parameters and tokens of the repeat law, for `unique` tokens of which d are seen in passes.

    Data:        U + U r_d (1 - exp(-R_d / r_d)), R_d = D / U - 1, U the unique tokens that are seen
    Parameters:  V + V r_n (1 - exp(-R_n / r_n)), R_n = N / V - 1, V the parameters that U tokens are best spent on;
                 simply N where the fit has no r_n
    """
    law = surface("repeat", values)
    shape = (...,) + (None,) * (np.ndim(n) - 1)
    with np.errstate(all="ignore"):
        log_ratio = np.log(law.alpha) + law.log_a - np.log(law.beta) - law.log_b
        fresh = np.minimum(unique, d)
        best = np.exp((log_ratio[shape] + law.beta[shape] * np.log(fresh)) / law.alpha[shape])
        size = worth(n, best, values["r_n"][shape]) if "r_n" in values else n
        return size, worth(d, fresh, values["r_d"][shape])


def worth(amount: Array, fresh: Array | float, scale: Array) -> Array:
    """What an amount is worth of which only `fresh` counts in full, and the rest ever less: scale is r_d or r_n."""
    excess = np.maximum(amount / fresh - 1, 0.0)
    return np.asarray(np.minimum(amount, fresh) + fresh * scale * -np.expm1(-excess / scale))
