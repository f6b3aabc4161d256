"""Fit the scaling laws of a study by the paper's method (arXiv 2406.16690; approach 1 of Hoffmann et al. 2022).

    curves -> lower envelope over sizes: at each compute the lowest loss, and the N and D that reach it (envelope.py)
           -> L, N_opt and D_opt = coefficient * C^exponent, each by least squares in log-log space
           -> 95% intervals by refitting resampled runs (envelope_fit.py)

Here: what fits.json says of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, prod
from typing import Any

import numpy as np

from linscale.config import UserError, to_dict
from linscale.study.envelope import Envelope, Ladder, lower_envelope
from linscale.study.envelope_fit import Estimate, FitConfig, estimate, ladder_of
from linscale.study.laws import FORMULA, PARAMETERS, PFLOP_S_DAY, UNITS
from linscale.study.results import Curve

Array = np.ndarray
RISE = 0.05  # in log loss: beyond the noise of seeds and of evaluation


def envelope(curves: Sequence[Curve], settings: FitConfig) -> Envelope:
    """The lower envelope over the sizes of one architecture.

    Raises UserError naming the architecture when fewer than three sizes overlap in compute, or when no size between
    two others wins over a factor of two in compute.
    """
    return lower_envelope(ladder_of(curves, settings, settings.grid))


def fit_group(curves: Sequence[Curve], settings: FitConfig) -> dict[str, Any]:
    """Fit the curves of one architecture: one entry of `groups` in fits.json. Raises UserError as `envelope` does."""
    found = estimate(curves, settings)
    ladder, points, replicates = found.ladder, found.points, found.replicates
    return {
        "group": ladder.arch,
        "law": "envelope",
        "formula": FORMULA,
        "parameters": parameter_rows(found),
        "objective": {
            "name": "root mean square residual of log L, log N_opt, log D_opt",
            "value": np.sqrt((found.residuals**2).mean(1)).tolist(),
        },
        "points_used": len(points.compute),
        "dropped": [{"rule": rule, "count": count} for rule, count in points.dropped.items()],
        "compute_range": [float(c / PFLOP_S_DAY) for c in (points.compute[0], points.compute[-1])],
        "envelope": thinned(points),
        "band": band(found.log_compute, replicates),
        "bootstrap": {
            "replicates": settings.bootstrap,
            "fitted": len(replicates),
            "distinct_resamples": _distinct_resamples(ladder),
            "seed_noise": found.seed_noise,
            "seed_noise_source": "measured" if found.noise_measured else "assumed",
        },
        "runs": list(ladder.runs),
        "warnings": envelope_warnings(found, settings),
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
        "settings": {name: value for name, value in to_dict(settings).items() if name not in ("law", "tolerance")},
        "groups": groups,
        "refused": refused,
    }


def _rise(ladder: Ladder) -> Array:
    """(r,) how far the log loss of each run ends above its minimum."""
    last = ladder.log_loss.shape[1] - 1 - np.isnan(ladder.log_loss[:, ::-1]).argmin(1)
    return ladder.log_loss[np.arange(len(last)), last] - np.nanmin(ladder.log_loss, axis=1)


def _distinct_resamples(ladder: Ladder) -> int:
    """Ways to draw n runs of n with replacement, within each size: binom(2n - 1, n)."""
    counts = np.bincount(ladder.size_of)
    return prod(comb(2 * int(n) - 1, int(n)) for n in counts)


def parameter_rows(found: Estimate) -> dict[str, dict[str, Any]]:
    """By name, as in fits.json."""
    return {name: _parameter(name, found.laws[i], found.replicates[:, i]) for i, name in enumerate(PARAMETERS)}


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


def thinned(points: Envelope, count: int = 100) -> dict[str, list[float]]:
    """Up to `count` points of the envelope, C in PFLOP/s-days."""
    chosen = np.unique(np.linspace(0, len(points.compute) - 1, count).round().astype(int))
    return {
        "compute": (points.compute[chosen] / PFLOP_S_DAY).tolist(),
        "loss": points.loss[chosen].tolist(),
        "params": points.params[chosen].tolist(),
        "tokens": points.tokens[chosen].tolist(),
    }


def band(log_compute: Array, replicates: Array, count: int = 25) -> dict[str, list[float]] | None:
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


def envelope_warnings(found: Estimate, settings: FitConfig) -> list[dict[str, str]]:
    """What a reader must know before acting on the fit: a name, what it means, and this group's number.

    The text of a name is the same for every architecture where it can be, so that they can be shown together.
    """
    ladder, points, fitted = found.ladder, found.points, len(found.replicates)
    made = []
    sizes, span = len(ladder.log_params), float(points.compute[-1] / points.compute[0])
    decades = float(np.abs(np.log10(points.compute[[0, -1]] / PFLOP_S_DAY)).min())
    if sizes < 5:
        made.append(("few_sizes", "exponents from fewer than five sizes are rough", f"{sizes} sizes"))
    if points.bracketed:
        text = "no middle size is best over a factor of two in compute; the fit leans on the smallest and the largest"
        made.append(("edge_minimum", text, f"{points.edge_share:.0%} of the compute"))
    elif points.edge_share > 0.5:
        text = "the smallest or largest size is best over most of the compute; that part is not used"
        made.append(("edge_minimum", text, f"{points.edge_share:.0%}"))
    if span < 10:
        made.append(("short_range", "fitted over less than a factor of ten in compute", f"a factor of {span:.2g}"))
    if decades > 1 and not points.compute[0] < PFLOP_S_DAY < points.compute[-1]:
        text = "coefficients are values at 1 PFLOP/s-day, far outside of the compute fitted"
        made.append(("extrapolated_coefficient", text, f"{decades:.0f} decades"))
    if rising := [run for run, rise in zip(ladder.runs, _rise(ladder), strict=True) if rise > RISE]:
        made.append(
            (
                "rising_loss",
                "the loss of a run ends far above its lowest: diverged, or fits its data too well",
                ", ".join(rising),
            )
        )
    if ladder.irregularity > 0.05:
        text = "the shapes are not one family: FLOPs per token zigzag along the sizes"
        made.append(("irregular_shapes", text, f"{ladder.irregularity:.0%}"))
    if settings.bootstrap and not found.noise_measured:
        percent = f"{100 * found.seed_noise:.2g}%"
        text = f"intervals assume that the seed alone moves the loss by {percent}; train several seeds to measure it"
        made.append(("assumed_noise", text, ""))
    if settings.bootstrap and fitted < 0.9 * settings.bootstrap:
        share = 1 - fitted / settings.bootstrap
        made.append(("unstable", "resamples without a minimum to fit are left out of the intervals", f"{share:.0%}"))
    return [{"name": name, "text": text, "detail": detail} for name, text, detail in made]
