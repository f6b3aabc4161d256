"""Loss, N and D as laws of compute: what every fitted law of loss becomes when its compute is spent best.

    L = E + K C^-x,  N = N_1 C^a,  D = D_1 C^b

with C in PFLOP/s-days. The power, envelope and isoflop laws are of this form. So is the cheapest way down a surface
E + (A / N^alpha + B / D^beta)^gamma under C = k N^p D FLOPs. Where the derivative along that constraint vanishes,
alpha A / N^alpha = p beta B / D^beta, hence with s = alpha + p beta

    log N = (log(alpha A) - log(p beta B) + beta log(C / k)) / s
    L - E = (A / N^alpha * (1 + alpha / (p beta)))^gamma,  and so x = gamma alpha beta / s
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from linscale.study.laws import PAPER_LAWS, PFLOP_S_DAY
from linscale.study.prediction.fitted import Fitted, Flops
from linscale.study.prediction.surface import SURFACES, Surface, surface
from linscale.study.table.resampling import widened

Array = np.ndarray
COMPUTE_LAWS = ("power", "envelope", "isoflop")
Line = tuple[Array, Array]
"""Logarithm of a coefficient at 1 PFLOP/s-day, and an exponent: each (1 + r,)."""


@dataclass(frozen=True)
class ComputeLaw:
    """Every array (1 + r,): the fit, then its resamples. NaN where a resample has no best use of compute."""

    floor: Array
    above: Line
    """L - E; its exponent is -x."""
    n: Line | None
    d: Line | None
    stretch: float = 1.0
    """See `Fitted.stretch`."""

    def loss(self, flops: Array | float) -> Array:
        """(1 + r,) lowest loss that FLOPs reach, nats per token."""
        return widened(self.floor + _at(self.above, flops), self.stretch)

    def compute(self, loss: Array | float) -> Array:
        """(1 + r,) FLOPs that reach a loss: infinite where no compute does, 0 where any does."""
        log_k, exponent = self.above
        with np.errstate(all="ignore"):
            gap = np.maximum(loss - self.floor, 0.0)
            found = np.exp((np.log(gap) - log_k) / exponent) * PFLOP_S_DAY
        never = (gap <= 0) | ((exponent >= 0) & (loss < self.floor + np.exp(log_k)))
        flat = (exponent >= 0) & ~never
        found = np.where(never, np.inf, np.where(flat, 0.0, found))
        return widened(np.where(np.isnan(log_k + exponent), np.nan, found), self.stretch)

    def params(self, flops: Array | float) -> Array | None:
        """(1 + r,) parameters of the model that reaches the lowest loss; None where the law does not say."""
        return None if self.n is None else widened(_at(self.n, flops), self.stretch)

    def tokens(self, flops: Array | float) -> Array | None:
        """(1 + r,) tokens that it is trained on; None where the law does not say."""
        return None if self.d is None else widened(_at(self.d, flops), self.stretch)


def compute_law(fitted: Fitted) -> ComputeLaw | None:
    """The law of compute of a group; None where its law is not of loss."""
    values = fitted.values
    if fitted.law in SURFACES:
        return replace(best_spent(surface(fitted.law, values), fitted.flops), stretch=fitted.stretch)
    if fitted.law not in COMPUTE_LAWS:
        return None
    with np.errstate(all="ignore"):
        lines = {
            name: (np.log(values[f"{name}_coefficient"]), values[f"{name}_exponent"])
            for name in ("l", "n_opt", "d_opt")
            if f"{name}_coefficient" in values
        }
    floor = values.get("E", np.zeros_like(lines["l"][0]))
    return ComputeLaw(floor, lines["l"], lines.get("n_opt"), lines.get("d_opt"), fitted.stretch)


def best_spent(law: Surface, flops: Flops) -> ComputeLaw:
    """The surface where its compute is spent best. NaN for exponents that are 0: there is no best then."""
    p, unit = flops.exponent, np.log(PFLOP_S_DAY / flops.coefficient)  # log(C / k) is log C + unit
    with np.errstate(all="ignore"):
        total = law.alpha + p * law.beta
        ratio = np.log(law.alpha) + law.log_a - np.log(p * law.beta) - law.log_b
        a = law.beta / total
        log_n = (ratio + law.beta * unit) / total
        log_k = law.log_a - law.alpha * log_n + np.log1p(law.alpha / (p * law.beta))
        lines = (law.gamma * log_k, -law.gamma * law.alpha * a), (log_n, a), (unit - p * log_n, 1 - p * a)
        sound = np.isfinite(log_n + log_k)
    above, n, d = ((np.where(sound, first, np.nan), np.where(sound, second, np.nan)) for first, second in lines)
    return ComputeLaw(law.floor, above, n, d)


def paper_groups() -> list[Fitted]:
    """The four published laws of arXiv 2406.16690 as groups paper:NAME. They have no resamples."""
    groups = []
    for name, law in PAPER_LAWS.items():
        values = {key: np.array([value]) for key, value in vars(law).items()}
        entry = {"group": name, "law": "envelope", "compute_range": PAPER_RANGE, "warnings": []}
        groups.append(Fitted(f"paper:{name}", "arXiv 2406.16690", "envelope", values, entry, {"columns": {}}))
    return groups


PAPER_RANGE = (0.4, 180.0)  # PFLOP/s-days: 70M to 7B, up to 300B tokens


def loss_range(law: ComputeLaw, fitted: Fitted) -> tuple[float, float] | None:
    """Lowest and highest loss of the law over the compute that it was fitted to; None where that is not known."""
    if "c" not in fitted.ranges:
        return None
    worst, best = (float(law.loss(c)[0]) for c in fitted.ranges["c"])
    return (best, worst) if np.isfinite(best + worst) and best < worst else None


def _at(line: Line, flops: Array | float) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(np.exp(line[0] + line[1] * np.log(np.asarray(flops) / PFLOP_S_DAY)))
