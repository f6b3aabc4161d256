"""Training FLOPs as they grow with N and D, C = k N^(1 + kappa) D, and the best N and D under them.

Every definition of C is proportional to D at a given shape, and over sizes near a power of N. The head, attention and
the state of linear attention make kappa differ from 0, and with it the exponents of N_opt and D_opt (Porian et al.
2024, arXiv 2406.19146).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray
SIX = 6.0
SAME = 0.01  # relative: FLOPs this near to k N D are k N D
SPAN = 1.5  # sizes within this factor do not show a power of N


@dataclass(frozen=True)
class Flops:
    """C = k N^(1 + kappa) D in FLOPs: 6 N D where nothing is said."""

    k: float = SIX
    kappa: float = 0.0
    deviation: float = 0.0
    """The largest distance of a point's C from it, relative to it."""

    @property
    def power(self) -> float:
        """1 + kappa, of N."""
        return 1 + self.kappa

    def __str__(self) -> str:
        return f"C = {self.k:.4g} N D" if self.kappa == 0 else f"C = {self.k:.4g} N^{self.power:.4g} D"

    def flops(self, n: Array | float, d: Array | float) -> Array:
        """FLOPs of training n parameters on d tokens, which broadcast."""
        return np.asarray(self.k * n**self.power * d)

    def tokens(self, flops: Array | float, n: Array | float) -> Array:
        """Tokens that FLOPs pay for at n parameters."""
        return np.asarray(flops / (self.k * n**self.power))

    def params(self, flops: Array | float, d: Array | float) -> Array:
        """Parameters that FLOPs pay for at d tokens."""
        return np.asarray((flops / (self.k * d)) ** (1 / self.power))

    def optimum(self, log_a: Array, log_b: Array, alpha: Array, beta: Array) -> tuple[Array, Array, Array]:
        """The cheapest (N, D) of L = E + A / N^alpha + B / D^beta at C FLOPs, and of its gamma form.

        Returns a and the logarithms of two factors: N = exp(first) C^a and D = exp(second) C^(1 - p a), p = 1 + kappa.
        The derivative along the budget vanishes where alpha A / N^alpha = p beta B / D^beta:

            N = [alpha A / (p beta B)]^(1 / (alpha + p beta)) (C/k)^(beta / (alpha + p beta)),  D = (C/k) N^-p
        """
        p, log_k = self.power, np.log(self.k)
        total = alpha + p * beta
        a = beta / total
        log_n = (np.log(alpha) + log_a - np.log(p * beta) - log_b) / total - a * log_k
        return a, log_n, -log_k - p * log_n


def fit_flops(n: Array, d: Array, c: Array) -> Flops:
    """k and kappa by least squares of log C - log D on log N, for points (m,) of parameters, tokens and FLOPs.

    kappa is 0 where sizes are within a factor of 1.5, or C is within 1% of k N D, and k is 6 where it is within 1% of
    6 N D.
    """
    x, y = np.log(n), np.log(c) - np.log(d)
    slope, constant = 1.0, float((y - x).mean())
    if np.abs(y - x - np.log(SIX)).max() < SAME:
        constant = float(np.log(SIX))
    elif np.ptp(x) > np.log(SPAN) and np.ptp(y - x) > SAME:
        spread = x - x.mean()
        slope = float(spread @ y / (spread @ spread))
        constant = float(y.mean() - slope * x.mean())
    deviation = float(np.abs(np.expm1(y - constant - slope * x)).max())
    return Flops(SIX if constant == np.log(SIX) else float(np.exp(constant)), slope - 1, deviation)
