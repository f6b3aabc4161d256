"""Scaling laws as functions of compute, their units, and the published coefficients to draw beside one's own.

Units everywhere: compute C in PFLOP/s-days (training FLOPs without the embeddings, a multiply-accumulate is 2),
parameters N without the embeddings, data D in tokens, loss L in nats per token.
Source: Shen et al. 2024, Scaling Laws for Linear Complexity Language Models, arXiv 2406.16690.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

PFLOP_S_DAY = 1e15 * 24 * 3600  # FLOPs in one PFLOP/s-day: 8.64e19

Value = TypeVar("Value", float, np.ndarray)
Array = np.ndarray

PARAMETERS = (
    "l_coefficient",
    "l_exponent",
    "n_opt_coefficient",
    "n_opt_exponent",
    "d_opt_coefficient",
    "d_opt_exponent",
)
"""The parameters of an `EnvelopeLaw`, in the order of every table and array."""

FORMULA = (
    "L = l_coefficient * C^l_exponent; N_opt = n_opt_coefficient * C^n_opt_exponent; "
    "D_opt = d_opt_coefficient * C^d_opt_exponent"
)
UNITS = {
    "C": "PFLOP/s-day = 8.64e19 training FLOPs, embeddings excluded",
    "L": "nats per token",
    "N_opt": "parameters, embeddings excluded",
    "D_opt": "tokens",
}


def power_law(compute: Value, coefficient: float, exponent: float) -> Value:
    """coefficient * compute^exponent, with compute in PFLOP/s-days; the exponent carries its sign."""
    return coefficient * compute**exponent


@dataclass(frozen=True)
class EnvelopeLaw:
    """Three independent power laws of compute C in PFLOP/s-days: L(C), N_opt(C) and D_opt(C).

    The loss law has no irreducible term, and the exponents of N_opt and D_opt need not add up to one (the paper's
    choice), so that N_opt and D_opt are a statement about the fitted range and drift apart far outside of it.
    """

    l_coefficient: float
    l_exponent: float
    n_opt_coefficient: float
    n_opt_exponent: float
    d_opt_coefficient: float
    d_opt_exponent: float

    def loss(self, compute: Value) -> Value:
        """The lowest loss, in nats per token, that C PFLOP/s-days can reach."""
        return power_law(compute, self.l_coefficient, self.l_exponent)

    def params(self, compute: Value) -> Value:
        """Non-embedding parameters of the model that reaches it."""
        return power_law(compute, self.n_opt_coefficient, self.n_opt_exponent)

    def tokens(self, compute: Value) -> Value:
        """Tokens that this model is trained on."""
        return power_law(compute, self.d_opt_coefficient, self.d_opt_exponent)


def law_of(parameters: Mapping[str, Mapping[str, Any]]) -> EnvelopeLaw:
    """The law in a group of fits.json: its `parameters` table, each entry with a `value`."""
    return EnvelopeLaw(**{name: float(parameters[name]["value"]) for name in PARAMETERS})


PAPER_LAWS: Mapping[str, EnvelopeLaw] = {
    "llama": EnvelopeLaw(3.7087, -0.0798, 1.82e8, 0.7118, 2.56e10, 0.5102),
    "tnl": EnvelopeLaw(3.5391, -0.0768, 2.74e8, 0.6470, 4.43e10, 0.4684),
    "hgrn2": EnvelopeLaw(3.4788, -0.0753, 2.66e8, 0.6427, 4.80e10, 0.4500),
    "cosformer2": EnvelopeLaw(3.5877, -0.0756, 2.65e8, 0.6516, 4.23e10, 0.4529),
}
"""The paper's fits: 70M to 7B, up to 300B tokens, its own corpus and 100k vocabulary."""
PAPER_RANGE = (0.4, 180.0)
"""PFLOP/s-days that they were fitted to."""
PAPER = "arXiv 2406.16690"


def fit_power_laws(log_compute: Array, log_values: Array, kept: Array) -> tuple[Array, Array]:
    """Least squares of log y = log coefficient + exponent * log C, for a batch of masked data sets.

    log_compute (G,), log_values (..., G), kept (..., G) bool. Returns log coefficients and exponents, both (...);
    nan where fewer than two distinct compute values are kept.
    """
    weight = kept.astype(float)
    count = np.maximum(weight.sum(-1, keepdims=True), 1)
    values = np.where(kept, log_values, 0.0)
    mean_c = (weight * log_compute).sum(-1, keepdims=True) / count
    mean_y = values.sum(-1, keepdims=True) / count
    centred = weight * (log_compute - mean_c)
    variance = (centred * centred).sum(-1)
    slope = np.divide((centred * values).sum(-1), variance, out=np.full(variance.shape, np.nan), where=variance > 1e-12)
    return mean_y[..., 0] - slope * mean_c[..., 0], slope
