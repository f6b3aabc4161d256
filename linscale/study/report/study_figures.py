"""The figures of a study as data: losses with their laws, allocation, slices at equal compute, residuals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from linscale.config import UserError, parse
from linscale.study.envelope_fit import FitConfig
from linscale.study.laws import PFLOP_S_DAY, law_of
from linscale.study.report.figures import (
    COMPUTE,
    LAW_VALUES,
    LINE_POINTS,
    LOSS,
    PARAMS,
    TOKENS,
    Array,
    Axis,
    Figure,
    Mark,
    band,
    law_line,
    of_compute,
    published,
    rounded,
)
from linscale.study.report.slices import Slice, slices
from linscale.study.results import Curve, read_study

CURVE_POINTS = 300  # of one run in a figure
HEADROOM = 0.7  # of the laws' extent in log loss that is shown above them: early loss is far above
DEVIATION = Axis("deviation_percent", "Deviation from the law (%)", "percent", log=False)
CAPTIONS = {
    "n_opt": "Best size N<sub>opt</sub>(C), embeddings excluded.",
    "d_opt": "Tokens D<sub>opt</sub>(C) that the best size is trained on.",
}
NAMES = {"l": "loss", "n_opt": "best size", "d_opt": "best tokens"}


def read_curves(study: Path, loss: str | None) -> list[Curve]:
    """The curves that were fitted; none before anything is measured: the tables still say where each run stands."""
    try:
        return read_study(study, loss="train" if loss == "train" else "validation")
    except UserError:
        return []


def study_figures(curves: Sequence[Curve], found: Mapping[str, Any]) -> dict[str, Figure]:
    """By id; `found` is the digest's summary."""
    fits = {item["group"]: item["fit"] for item in found["architectures"] if item["fit"]}
    loss = "training" if found["loss"] == "train" else "validation"
    figures = [loss_figure(curves, fits, loss), *(_allocation(fits, curves, law) for law in ("n_opt", "d_opt"))]
    cut = slices(curves, fits, parse(FitConfig, dict(found["settings"]))) if fits else []
    if cut:
        figures.append(isoflop_figure(cut))
    figures += [residual_figure(fits, law) for law in LAW_VALUES if fits]
    return {figure.id: figure for figure in figures}


def loss_figure(curves: Sequence[Curve], fits: Mapping[str, Any], loss: str) -> Figure:
    """Every run's loss against compute, the envelopes, laws with their bands, and the published laws."""
    marks = [_curve(curve) for curve in curves]
    laws = _law_marks(fits, "l", _shown(curves))
    axis = replace(LOSS, title=f"{loss.capitalize()} loss (nats per token)")
    values = [value for mark in laws if mark.kind != "dotted" for value in (*mark.y, *mark.low, *mark.high)]
    if values:
        low, high = min(values), max(values)
        seen = [value for mark in marks for value in mark.y]
        axis = replace(axis, range=(min([low, *seen]), min(max([high, *seen]), high * (high / low) ** HEADROOM)))
    caption = (
        f"Thin lines: the {loss} loss of each run. Broad strokes: their lower envelope, where it is known between "
        "sizes. Straight lines: the law L(C) fitted to it, with its 95% band. Dotted, where the ranges meet: the "
        "published laws. Double-click for the whole range."
    )
    return Figure("loss", "Loss against training compute", COMPUTE, axis, (*marks, *laws), caption, tall=True)


def isoflop_figure(cut: Sequence[Slice]) -> Figure:
    """Loss against size at some compute values, the parabola through the best size, and its minimum."""
    marks = []
    for each in cut:
        of = {"compute_pflop_s_days": rounded([each.compute])[0]}
        marks += [
            Mark("points", "sizes", each.arch, rounded(each.params), rounded(each.loss), extra=of),
            Mark("curve", "parabola", each.arch, rounded(each.line_params), rounded(each.line_loss), extra=of),
            Mark("minimum", "minimum", each.arch, rounded([each.best_params]), rounded([each.best_loss]), extra=of),
        ]
    caption = (
        "At some of the compute values that the law rests on: the loss of every size measured there, the parabola "
        "through the best size and its two neighbours, and its minimum, which is a point of the envelope."
    )
    return Figure("isoflop", "Loss against size at equal compute", PARAMS, LOSS, tuple(marks), caption)


def residual_figure(fits: Mapping[str, Any], law: str) -> Figure:
    """How far the envelope lies from the law, in percent."""
    marks: list[Mark] = []
    for group, fit in fits.items():
        compute = np.array(fit["envelope"]["compute"])
        value = np.array(fit["envelope"][LAW_VALUES[law]])
        marks.append(
            Mark("points", "envelope", group, rounded(compute), rounded(100 * (value / _fitted(fit, law, compute) - 1)))
        )
    ends = [value for mark in marks for value in (min(mark.x), max(mark.x))]
    marks.insert(0, Mark("dotted", "law", None, [min(ends), max(ends)], [0.0, 0.0]))
    return Figure(
        f"residual-{LAW_VALUES[law]}", f"Residuals of the {NAMES[law]} against compute", COMPUTE, DEVIATION,
        tuple(marks), f"Residuals of the {NAMES[law]}.",
    )  # fmt: skip


def _allocation(fits: Mapping[str, Any], curves: Sequence[Curve], law: str) -> Figure:
    axis = PARAMS if law == "n_opt" else TOKENS
    title = "Best number of parameters against compute" if law == "n_opt" else "Tokens of the best size against compute"
    return Figure(LAW_VALUES[law], title, COMPUTE, axis, tuple(_law_marks(fits, law, _shown(curves))), CAPTIONS[law])


def _law_marks(fits: Mapping[str, Any], law: str, shown: tuple[float, float]) -> list[Mark]:
    marks: list[Mark] = []
    for group, fit in fits.items():
        key, envelope, known = LAW_VALUES[law], fit["envelope"], fit["band"]
        if known:
            marks.append(band(group, *(np.array(known[name]) for name in ("compute", f"{key}_low", f"{key}_high"))))
        marks.append(Mark("faint", "envelope", group, rounded(envelope["compute"]), rounded(envelope[key])))
        marks += published(group, law, shown)
        low, high = fit["compute_range"]
        compute = np.geomspace(float(low), float(high), LINE_POINTS)
        marks.append(law_line("law", group, compute, _fitted(fit, law, compute)))
    return marks


def _fitted(fit: Mapping[str, Any], law: str, compute: Array) -> Array:
    return of_compute(law_of(fit["parameters"]), law, compute)


def _curve(curve: Curve) -> Mark:
    count = len(curve.tokens)
    spread = np.geomspace(1, count, CURVE_POINTS).round() if count > CURVE_POINTS else np.arange(1, count + 1)
    chosen = np.unique(spread.astype(int)) - 1
    extra = {"run": curve.run, "params": float(f"{curve.params:.6g}"), "tokens": rounded(curve.tokens[chosen])}
    x, y = rounded(curve.flops[chosen] / PFLOP_S_DAY), rounded(curve.loss[chosen])
    return Mark("curve", "run", curve.arch, x, y, extra=extra)


def _shown(curves: Iterable[Curve]) -> tuple[float, float]:
    ends = [(curve.flops[0] / PFLOP_S_DAY, curve.flops[-1] / PFLOP_S_DAY) for curve in curves]
    return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else (1.0, 1.0)
