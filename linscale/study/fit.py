"""Fit the scaling laws of a study by the paper's method (arXiv 2406.16690; approach 1 of Hoffmann et al. 2022).

    curves -> lower envelope over sizes: at each compute the lowest loss, and the N and D that reach it (envelope.py)
           -> L, N_opt and D_opt = coefficient * C^exponent, each by least squares in log-log space
           -> 95% intervals by refitting resampled runs

*Why runs are not simply drawn with replacement.* With one run a size, that loses sizes instead of varying them.
Simulated with seeds that differ by 0.3%, such 95% intervals held the truth 18 to 82% of the time for 4 and 6 sizes,
and had no width for 3. So runs are drawn within their size, which keeps every replicate fittable, and each drawn run is
shifted as a whole by seed noise of variance s^2 / n, for n runs of that size: exactly the part of the variance s^2 / n
of their mean that drawing n runs misses.

*What the intervals hold.* Simulated with a known s of 0.1 to 2% and 3 to 8 sizes, they held each of the six parameters
80 to 100% of the time; with s measured from 2, 3 or 5 seeds at 4 sizes, 86 to 96%, also where noise wanders along a
run. With 3 sizes and noise that wanders along the runs, L was held 55 to 87% of the time: it rests on the slope of a
single run.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, prod
from typing import Annotated, Any

import numpy as np
import pydantic

from linscale.config import UserError, config, to_dict
from linscale.study.envelope import (
    MIN_RANGE,
    Envelope,
    Ladder,
    average_sizes,
    build_ladder,
    find_minima,
    log_values,
    lower_envelope,
)
from linscale.study.laws import FORMULA, PARAMETERS, PFLOP_S_DAY, UNITS, fit_power_laws
from linscale.study.results import Curve, Loss

Array = np.ndarray
CHUNK = 100  # replicates fitted at a time: bounds memory at some 30 MB
REPLICATE_GRID = 300  # compute values a replicate is fitted on: the envelope is smooth, and fewer are faster
RISE = 0.05  # in log loss: beyond the noise of seeds and of evaluation
MIN_REPEATS = 3  # degrees of freedom from which seed noise is measured: with fewer it is right to a factor of two


@config
class FitConfig:
    """How the laws are fitted."""

    loss: Loss = "validation"
    """Which loss: "validation" (the same text for every run, unbiased when data repeats) or "train" (the paper's)."""
    grid: Annotated[int, pydantic.Field(ge=50, le=100_000)] = 1500
    """Log-spaced compute values at which the sizes are compared, from the least compute measured to the most."""
    smooth: Annotated[float, pydantic.Field(ge=0, lt=0.5)] = 0.01
    """Training loss is averaged over this fraction of the run's tokens; validation loss is never smoothed."""
    discard: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.02
    """Fraction of a run's tokens dropped at its beginning. The default is a usual length of the learning-rate warm-up.
    More is costly, since three sizes must overlap at equal compute: with equal tokens for all sizes the paper's ladder
    keeps a factor of 50 in compute at 2%, and a factor of 6 at 5%."""
    bootstrap: Annotated[int, pydantic.Field(ge=0, le=100_000)] = 1000
    """Replicates behind the 95% intervals; 0 for no intervals."""
    seed_noise: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.003
    """Standard deviation of log loss between runs that differ in their seed alone, assumed where the study does not
    measure it; it does with three or more runs beyond the first of their size."""
    seed: Annotated[int, pydantic.Field(ge=0)] = 0
    """Seed of the bootstrap."""


def envelope(curves: Sequence[Curve], settings: FitConfig) -> Envelope:
    """The lower envelope over the sizes of one architecture.

    Raises UserError naming the architecture when fewer than three sizes overlap in compute, or when no size between
    two others wins over a factor of two in compute.
    """
    return lower_envelope(_ladder(curves, settings, settings.grid))


def fit_group(curves: Sequence[Curve], settings: FitConfig) -> dict[str, Any]:
    """Fit the curves of one architecture: one entry of `groups` in fits.json. Raises UserError as `envelope` does."""
    ladder = _ladder(curves, settings, settings.grid)
    points = lower_envelope(ladder)
    log_compute = np.log(points.compute / PFLOP_S_DAY)
    values = np.log([points.loss, points.params, points.tokens])
    intercepts, slopes = fit_power_laws(log_compute, values, np.ones_like(values, dtype=bool))
    residuals = values - intercepts[:, None] - slopes[:, None] * log_compute
    noise, measured = _seed_noise(ladder, settings)
    replicates = _replicates(curves, settings, noise, points)
    estimates = np.stack([intercepts, slopes], axis=1).ravel()
    return {
        "group": ladder.arch,
        "law": "envelope",
        "formula": FORMULA,
        "parameters": {name: _parameter(name, estimates[i], replicates[:, i]) for i, name in enumerate(PARAMETERS)},
        "objective": {
            "name": "root mean square residual of log L, log N_opt, log D_opt",
            "value": np.sqrt((residuals**2).mean(1)).tolist(),
        },
        "points_used": len(points.compute),
        "dropped": [{"rule": rule, "count": count} for rule, count in points.dropped.items()],
        "compute_range": [float(c / PFLOP_S_DAY) for c in (points.compute[0], points.compute[-1])],
        "envelope": _thinned(points),
        "band": _band(log_compute, replicates),
        "bootstrap": {
            "replicates": settings.bootstrap,
            "fitted": len(replicates),
            "distinct_resamples": _distinct_resamples(ladder),
            "seed_noise": noise,
            "seed_noise_source": "measured" if measured else "assumed",
        },
        "runs": list(ladder.runs),
        "warnings": _warnings(ladder, points, settings, len(replicates), noise if not measured else None),
    }


def fit_study(curves: Sequence[Curve], settings: FitConfig) -> dict[str, Any]:
    """Fit every architecture of a study: the content of fits.json.

    An architecture that cannot be fitted is listed in `refused` with its reason. Raises UserError when none can.
    """
    groups, refused = [], []
    for arch in sorted({curve.arch for curve in curves}):
        try:
            groups.append(fit_group([curve for curve in curves if curve.arch == arch], settings))
        except UserError as error:
            refused.append({"group": arch, "reason": str(error)})
    if not groups:
        raise UserError("; ".join(item["reason"] for item in refused) or "no loss curves; run the study first")
    return {
        "version": 1,
        "units": UNITS,
        "loss": settings.loss,
        "settings": to_dict(settings),
        "groups": groups,
        "refused": refused,
    }


def _ladder(curves: Sequence[Curve], settings: FitConfig, grid: int) -> Ladder:
    smooth = settings.smooth if settings.loss == "train" else 0.0
    return build_ladder(curves, grid=grid, smooth=smooth, discard=settings.discard)


def _replicates(curves: Sequence[Curve], settings: FitConfig, noise: float, points: Envelope) -> Array:
    """The laws of resampled runs: (fitted, 6), log coefficient and exponent of L, N_opt and D_opt in turn.

    A replicate whose envelope spans less than a factor of two in compute is left out.
    """
    ladder = _ladder(curves, settings, min(settings.grid, REPLICATE_GRID))
    log_compute = ladder.log_compute - np.log(PFLOP_S_DAY)
    generator = np.random.default_rng(settings.seed)
    drawn = np.zeros((settings.bootstrap, len(ladder.runs)))
    deviation = np.zeros(len(ladder.runs))
    for size in range(len(ladder.log_params)):
        runs = np.flatnonzero(ladder.size_of == size)
        drawn[:, runs] = generator.multinomial(len(runs), np.full(len(runs), 1 / len(runs)), size=settings.bootstrap)
        measured = ~np.isnan(ladder.log_loss[runs])
        alike = np.where(measured, measured.sum(0), len(runs)).min(1)  # a run longer than its repeats is alone at last
        deviation[runs] = noise / np.sqrt(alike)
    shifts = generator.standard_normal(drawn.shape) * deviation / np.sqrt(np.maximum(drawn, 1))
    fitted = []
    for start in range(0, settings.bootstrap, CHUNK):
        chunk = slice(start, start + CHUNK)
        sizes = average_sizes(ladder, drawn[chunk], shifts[chunk])
        minima = find_minima(sizes, ladder.log_params, skew=points.skew, bracketed=points.bracketed)
        values = log_values(ladder, minima)
        kept = np.broadcast_to(minima.kept[:, None], values.shape)
        laws = np.stack(fit_power_laws(log_compute, values, kept), axis=-1).reshape(len(values), -1)
        highest = np.where(minima.kept, log_compute, -np.inf).max(1)
        lowest = np.where(minima.kept, log_compute, np.inf).min(1)
        fitted.append(laws[highest - lowest >= MIN_RANGE])
    return np.concatenate(fitted) if fitted else np.empty((0, len(PARAMETERS)))


def _seed_noise(ladder: Ladder, settings: FitConfig) -> tuple[float, bool]:
    """Standard deviation of log loss between repeats of a size, and whether it was measured rather than assumed."""
    squares, freedom = 0.0, 0
    for size in range(len(ladder.log_params)):
        repeats = ladder.log_loss[ladder.size_of == size]
        common = repeats[:, ~np.isnan(repeats).any(0)]
        if len(repeats) > 1 and common.size:
            squares += float(((common - common.mean(0)) ** 2).mean(1).sum())  # noise may change sign along a run
            freedom += len(repeats) - 1
    if freedom < MIN_REPEATS:
        return settings.seed_noise, False
    return float(np.sqrt(squares / freedom)), True


def _rise(ladder: Ladder) -> Array:
    """(r,) how far the log loss of each run ends above its minimum."""
    last = ladder.log_loss.shape[1] - 1 - np.isnan(ladder.log_loss[:, ::-1]).argmin(1)
    return ladder.log_loss[np.arange(len(last)), last] - np.nanmin(ladder.log_loss, axis=1)


def _distinct_resamples(ladder: Ladder) -> int:
    """Ways to draw n runs of n with replacement, within each size: binom(2n - 1, n)."""
    counts = np.bincount(ladder.size_of)
    return prod(comb(2 * int(n) - 1, int(n)) for n in counts)


def _parameter(name: str, estimate: float, replicates: Array) -> dict[str, Any]:
    """One row of the parameter table. Identified: an exponent's interval excludes 0, a coefficient's spans < 10x."""
    coefficient = name.endswith("coefficient")
    value, samples = (np.exp(estimate), np.exp(replicates)) if coefficient else (estimate, replicates)
    row: dict[str, Any] = {"value": float(value), "se": None, "low": None, "high": None}
    identified = False
    if len(samples) > 1:
        low, high = np.percentile(samples, [2.5, 97.5])
        row |= {"se": float(samples.std(ddof=1)), "low": float(low), "high": float(high)}
        identified = bool(high < 10 * low) if coefficient else bool(low * high > 0)
    return row | {"at_bound": False, "identified": identified}


def _thinned(points: Envelope, count: int = 100) -> dict[str, list[float]]:
    chosen = np.unique(np.linspace(0, len(points.compute) - 1, count).round().astype(int))
    return {
        "compute": (points.compute[chosen] / PFLOP_S_DAY).tolist(),
        "loss": points.loss[chosen].tolist(),
        "params": points.params[chosen].tolist(),
        "tokens": points.tokens[chosen].tolist(),
    }


def _band(log_compute: Array, replicates: Array, count: int = 25) -> dict[str, list[float]] | None:
    """Pointwise 95% bands of the three lines over the fitted range."""
    if len(replicates) < 2:
        return None
    at = np.linspace(log_compute[0], log_compute[-1], count)
    band = {"compute": np.exp(at).tolist()}
    for i, name in enumerate(("loss", "params", "tokens")):
        lines = replicates[:, 2 * i, None] + replicates[:, 2 * i + 1, None] * at
        low, high = np.exp(np.percentile(lines, [2.5, 97.5], axis=0))
        band |= {f"{name}_low": low.tolist(), f"{name}_high": high.tolist()}
    return band


def _warnings(
    ladder: Ladder, points: Envelope, settings: FitConfig, fitted: int, assumed_noise: float | None
) -> list[dict[str, str]]:
    """What a reader must know before acting on the fit: a name, what it means, and this group's number.

    The text of a name is the same for every architecture where it can be, so that they can be shown together.
    """
    found = []
    sizes, span = len(ladder.log_params), float(points.compute[-1] / points.compute[0])
    decades = float(np.abs(np.log10(points.compute[[0, -1]] / PFLOP_S_DAY)).min())
    if sizes < 5:
        found.append(("few_sizes", "exponents from fewer than five sizes are rough", f"{sizes} sizes"))
    if points.bracketed:
        text = "no middle size is best over a factor of two in compute; the fit leans on the smallest and the largest"
        found.append(("edge_minimum", text, f"{points.edge_share:.0%} of the compute"))
    elif points.edge_share > 0.5:
        text = "the smallest or largest size is best over most of the compute; that part is not used"
        found.append(("edge_minimum", text, f"{points.edge_share:.0%}"))
    if span < 10:
        found.append(("short_range", "fitted over less than a factor of ten in compute", f"a factor of {span:.2g}"))
    if decades > 1 and not points.compute[0] < PFLOP_S_DAY < points.compute[-1]:
        text = "coefficients are values at 1 PFLOP/s-day, far outside of the compute fitted"
        found.append(("extrapolated_coefficient", text, f"{decades:.0f} decades"))
    if rising := [run for run, rise in zip(ladder.runs, _rise(ladder), strict=True) if rise > RISE]:
        found.append(
            (
                "rising_loss",
                "the loss of a run ends far above its lowest: diverged, or fits its data too well",
                ", ".join(rising),
            )
        )
    if ladder.irregularity > 0.05:
        text = "the shapes are not one family: FLOPs per token zigzag along the sizes"
        found.append(("irregular_shapes", text, f"{ladder.irregularity:.0%}"))
    if settings.bootstrap and assumed_noise is not None:
        percent = f"{100 * assumed_noise:.2g}%"
        text = f"intervals assume that the seed alone moves the loss by {percent}; train several seeds to measure it"
        found.append(("assumed_noise", text, ""))
    if settings.bootstrap and fitted < 0.9 * settings.bootstrap:
        share = 1 - fitted / settings.bootstrap
        found.append(("unstable", "resamples without a minimum to fit are left out of the intervals", f"{share:.0%}"))
    return [{"name": name, "text": text, "detail": detail} for name, text, detail in found]
