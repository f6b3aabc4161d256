"""Loss, N and D as laws of compute: what every fitted law of loss becomes when its compute is spent best.

    L = E + K C^-x,  N = N_1 C^a,  D = D_1 C^b

with C in PFLOP/s-days. The power, envelope and isoflop laws are of this form. So is the cheapest way down a surface
E + (A / N^alpha + B / D^beta)^gamma under C = k N^p D FLOPs: N and D are those of `Flops.optimum`, where
alpha A / N^alpha = p beta B / D^beta, and with s = alpha + p beta

    L - E = (A / N^alpha * (1 + alpha / (p beta)))^gamma,  and so x = gamma alpha beta / s
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from linscale.study.flops import Flops
from linscale.study.laws import PAPER, PAPER_LAWS, PAPER_RANGE, PFLOP_S_DAY
from linscale.study.prediction.fitted import Fitted
from linscale.study.prediction.surface import SURFACES, Surface, effective, surface
from linscale.study.table.resampling import widened

Array = np.ndarray
COMPUTE_LAWS = ("power", "envelope", "isoflop")
REACH = 6.0  # in log N, on either side of the best size for new tokens: searched where tokens repeat
STEPS = 601
Line = tuple[Array, Array]
"""Logarithm of a coefficient at 1 PFLOP/s-day, and an exponent: each (1 + r,)."""


@dataclass(frozen=True)
class ComputeLaw:
    """Every array (1 + r,): the fit, then its resamples. NaN where a resample has no best use of compute.

    FLOPs and losses asked about are numbers, (1 + r,), or (1, g) or (1 + r, g) for answers (1 + r, g).
    """

    floor: Array
    above: Line
    """L - E; its exponent is -x."""
    n: Line | None
    d: Line | None
    stretch: float = 1.0
    """See `Fitted.stretch`."""

    def loss(self, flops: Array | float) -> Array:
        """(1 + r,) lowest loss that FLOPs reach, nats per token."""
        return widened(_beside(self.floor, flops) + _at(self.above, flops), self.stretch)

    def compute(self, loss: Array | float) -> Array:
        """(1 + r,) FLOPs that reach a loss: infinite where no compute does, 0 where any does."""
        floor, log_k, exponent = (_beside(each, loss) for each in (self.floor, *self.above))
        with np.errstate(all="ignore"):
            gap = np.maximum(loss - floor, 0.0)
            found = np.exp((np.log(gap) - log_k) / exponent) * PFLOP_S_DAY
        never = (gap <= 0) | ((exponent >= 0) & (loss < floor + np.exp(log_k)))
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
    p, day = flops.power, np.log(PFLOP_S_DAY)
    with np.errstate(all="ignore"):
        a, log_n, log_d = flops.optimum(law.log_a, law.log_b, law.alpha, law.beta)
        b = 1 - p * a
        log_n, log_d = log_n + a * day, log_d + b * day
        log_k = law.log_a - law.alpha * log_n + np.log1p(law.alpha / (p * law.beta))
        lines = (law.gamma * log_k, -law.gamma * law.alpha * a), (log_n, a), (log_d, b)
        sound = np.isfinite(log_n + log_k)
    above, n, d = ((np.where(sound, first, np.nan), np.where(sound, second, np.nan)) for first, second in lines)
    return ComputeLaw(law.floor, above, n, d)


def paper_groups() -> list[Fitted]:
    """The four published laws of arXiv 2406.16690 as groups paper:NAME. They have no resamples."""
    groups = []
    for name, law in PAPER_LAWS.items():
        values = {key: np.array([value]) for key, value in vars(law).items()}
        entry = {"group": name, "law": "envelope", "compute_range": PAPER_RANGE, "warnings": []}
        groups.append(Fitted(f"paper:{name}", PAPER, "envelope", values, entry, {"columns": {}}))
    return groups


def loss_range(law: ComputeLaw, fitted: Fitted) -> tuple[float, float] | None:
    """Lowest and highest loss of the law over the compute that it was fitted to; None where that is not known."""
    if "c" not in fitted.ranges:
        return None
    worst, best = (float(law.loss(c)[0]) for c in fitted.ranges["c"])
    return (best, worst) if np.isfinite(best + worst) and best < worst else None


def _beside(values: Array, asked: Array | float) -> Array:
    """values (1 + r,) with the axes that what is asked about has beside them."""
    return values[(...,) + (None,) * (np.ndim(asked) - 1)]


def _at(line: Line, flops: Array | float) -> Array:
    with np.errstate(all="ignore"):
        log_k, exponent = (_beside(each, flops) for each in line)
        return np.asarray(np.exp(log_k + exponent * np.log(np.asarray(flops) / PFLOP_S_DAY)))


def surface_loss(fitted: Fitted, n: float, d: float, unique: float | None = None) -> Array:
    """(1 + r,) loss of n parameters and d tokens by a law of SURFACES; `unique` tokens are for the repeat law."""
    shape = np.ones(1 + fitted.resamples)
    if fitted.law == "repeat":
        losses = repeated_loss(fitted, n * shape, d * shape, d if unique is None else unique)
    else:
        losses = surface(fitted.law, fitted.values).loss(n * shape, d * shape)
    return widened(losses, fitted.stretch)


def repeated_loss(fitted: Fitted, n: Array, d: Array, unique: Array | float) -> Array:
    """(1 + r, ...) loss of n parameters and d tokens (1 + r, ...), passes over `unique` tokens."""
    return surface("repeat", fitted.values).loss(*effective(fitted.values, n, d, unique))


def best_repeated(fitted: Fitted, flops: float, unique: float) -> tuple[Array, Array, Array]:
    """Loss, N and D, each (1 + r,), where FLOPs are spent best: a grid over log N, and a parabola through its best."""
    start = best_spent(surface("repeat", fitted.values), fitted.flops).params(flops)
    assert start is not None
    grid = np.linspace(-REACH, REACH, STEPS)
    log_n = np.log(start)[:, None] + grid
    loss = _on_budget(fitted, np.exp(log_n), flops, unique)
    best = np.clip(np.argmin(np.where(np.isnan(loss), np.inf, loss), axis=1), 1, STEPS - 2)
    rows = np.arange(len(best))
    left, middle, right = (loss[rows, best + shift] for shift in (-1, 0, 1))
    with np.errstate(all="ignore"):
        vertex = 0.5 * (left - right) / (left - 2 * middle + right)
    step = np.where(np.abs(vertex) <= 1, vertex, 0.0) * (grid[1] - grid[0])
    n = np.exp(log_n[rows, best] + step)
    found = _on_budget(fitted, n, flops, unique), n, fitted.flops.tokens(flops, n)
    loss, n, d = (widened(each, fitted.stretch) for each in found)
    return loss, n, d


def _on_budget(fitted: Fitted, n: Array, flops: float, unique: float) -> Array:
    return repeated_loss(fitted, n, fitted.flops.tokens(flops, n), unique)
