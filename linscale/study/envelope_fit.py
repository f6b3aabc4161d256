"""The estimator behind every envelope law, of a study or of a table: envelope, three power laws, resampled runs.

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
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import pydantic

from linscale.config import UserError, config
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
from linscale.study.laws import PARAMETERS, PFLOP_S_DAY, fit_power_laws
from linscale.study.results import Curve, Loss
from linscale.study.table.options import Tolerance

Array = np.ndarray
CHUNK = 100  # replicates fitted at a time: bounds memory at some 30 MB
REPLICATE_GRID = 300  # compute values a replicate is fitted on: the envelope is smooth, and fewer are faster
MIN_REPEATS = 3  # degrees of freedom from which seed noise is measured: with fewer it is right to a factor of two


@config
class FitConfig:
    """How the laws are fitted."""

    law: Literal["envelope", "pac"] = "envelope"
    """"envelope": L, N_opt and D_opt as powers of compute. "pac": the smallest size that is good enough for each amount
    of text, N = coefficient unique_tokens^exponent, from the best checkpoint of every run."""
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
    tolerance: str | None = None
    """pac: what is good enough, nats above the best loss as in "0.02" (the default), or "1%" of it."""

    @pydantic.model_validator(mode="after")
    def _of_its_law(self) -> Self:
        if self.law == "envelope" and self.tolerance is not None:
            raise ValueError('tolerance: the envelope law does not read it; it is for law = "pac"')
        if self.law == "pac" and self.loss != "validation":
            raise ValueError(f'loss = {self.loss!r}: law = "pac" compares validation losses')
        if self.law == "pac" and (self.grid, self.smooth, self.discard) != (1500, 0.01, 0.02):
            raise ValueError("grid, smooth and discard: the pac law does not read them; leave them out")
        try:
            Tolerance.parse(self.tolerance or "0.02")
        except UserError as error:
            raise ValueError(str(error)) from None
        return self


@dataclass(frozen=True)
class Estimate:
    """The laws of one architecture, and what they rest on."""

    ladder: Ladder
    points: Envelope
    laws: Array
    """(6,) log coefficient and exponent of L, N_opt and D_opt in turn."""
    residuals: Array
    """(3, p) log L, log N_opt and log D_opt of the envelope minus the laws."""
    replicates: Array
    """(fitted, 6) the laws of resampled runs."""
    seed_noise: float
    """Standard deviation of log loss."""
    noise_measured: bool

    @property
    def log_compute(self) -> Array:
        """(p,) of the envelope, in PFLOP/s-days."""
        return np.asarray(np.log(self.points.compute / PFLOP_S_DAY))


def estimate(curves: Sequence[Curve], settings: FitConfig) -> Estimate:
    """Fit the curves of one architecture and their resamples.

    Raises UserError naming the architecture when fewer than three sizes overlap in compute, or when no size between
    two others wins over a factor of two in compute.
    """
    ladder = ladder_of(curves, settings, settings.grid)
    points = lower_envelope(ladder)
    log_compute = np.log(points.compute / PFLOP_S_DAY)
    values = np.log([points.loss, points.params, points.tokens])
    intercepts, slopes = fit_power_laws(log_compute, values, np.ones_like(values, dtype=bool))
    residuals = values - intercepts[:, None] - slopes[:, None] * log_compute
    noise, measured = _seed_noise(ladder, settings)
    replicates = _replicates(curves, settings, noise, points)
    return Estimate(
        ladder, points, np.stack([intercepts, slopes], axis=1).ravel(), residuals, replicates, noise, measured
    )


def ladder_of(curves: Sequence[Curve], settings: FitConfig, grid: int) -> Ladder:
    """Curves on a grid of compute, smoothed where they are training losses. Raises UserError as `build_ladder` does."""
    smooth = settings.smooth if settings.loss == "train" else 0.0
    return build_ladder(curves, grid=grid, smooth=smooth, discard=settings.discard)


def _replicates(curves: Sequence[Curve], settings: FitConfig, noise: float, points: Envelope) -> Array:
    """The laws of resampled runs: (fitted, 6), log coefficient and exponent of L, N_opt and D_opt in turn.

    A replicate whose envelope spans less than a factor of two in compute is left out.
    """
    ladder = ladder_of(curves, settings, min(settings.grid, REPLICATE_GRID))
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
