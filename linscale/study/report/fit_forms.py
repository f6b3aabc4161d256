"""Figures of the laws that are no surface of N and D: scores of a loss, repeated data, the PAC law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from linscale.study.prediction.estimate import band as interval_band
from linscale.study.prediction.fitted import Fitted
from linscale.study.prediction.forecast import pac_params
from linscale.study.prediction.score import own_score
from linscale.study.prediction.surface import worth
from linscale.study.report.figures import (
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
    numbers,
    rounded,
)
from linscale.study.report.fit_checks import labels_of
from linscale.study.table.resampling import widened

BITS = Axis("bits_per_byte", "Bits per byte", log=False, symbol="bits per byte")
ACCURACY = Axis("accuracy", "Accuracy", log=False, symbol="accuracy")
ERROR = Axis("error", "Error downstream", log=False, symbol="error")
EPOCHS = Axis("epochs", "Passes over the same tokens", symbol="passes")
WORTH = Axis("worth_epochs", "Worth, in passes over new tokens", symbol="worth")
PAC_BAND = (0.44, 0.72)
"""Exponents of N ~ D^exponent in PAC theory: 1 - 2b to 1 - b where loss ~ D^-b, b = 0.28 (arXiv 2402.14746)."""
Group = Mapping[str, Any]


def form_figures(fits: Sequence[Fitted]) -> list[Figure]:
    """Scores of a loss, the worth of repeated tokens, and the PAC law; without marks where a law has none."""
    return [
        _scores(fits, "bpb", BITS, ACCURACY),
        _scores(fits, "loss", replace(LOSS, log=False), ERROR),
        _repeats(fits),
        _pac(fits),
        _pac_sizes([fitted.entry for fitted in fits]),
    ]


def line_marks(name: str, x: Array, values: Array) -> list[Mark]:
    """A law's line and, where there are resamples, its band: values (1 + r, g) at x (g,), those of the fit first."""
    low, high = interval_band(values)
    drawn = [band(name, x, low, high)] if low.size else []
    return [*drawn, law_line("law", name, x, values[0])]


def _scores(fits: Sequence[Fitted], role: str, x_axis: Axis, y_axis: Axis) -> Figure:
    """A score against the loss it comes from: the points, the fitted curve and its band."""
    marks, target = [], y_axis.column
    for fitted in fits:
        points, score = fitted.entry.get("points") or {}, own_score(fitted)
        if score is None or score.kind != target or not {role, target} <= set(points):
            continue
        x, y, name = numbers(points[role]), numbers(points[target]), fitted.name
        along = np.linspace(np.nanmin(x[np.isfinite(y)]), np.nanmax(x[np.isfinite(y)]), LINE_POINTS)
        marks.append(Mark("points", "points", name, rounded(x), rounded(y), extra=labels_of(points)))
        marks += line_marks(name, along, score.of(along[None]))
    title = f"{y_axis.title} against {x_axis.title[0].lower()}{x_axis.title[1:]}"
    return Figure(target, title, x_axis, y_axis, tuple(marks), "The fitted curve, with its 95% band.", tall=True)


def _repeats(fits: Sequence[Fitted]) -> Figure:
    """What passes over the same tokens are worth."""
    marks: list[Mark] = []
    for fitted in fits:
        points = fitted.entry.get("points") or {}
        if "r_d" not in fitted.values or not {"d", "unique"} <= set(points):
            continue
        passes = np.array(points["d"], dtype=float) / np.array(points["unique"], dtype=float)
        along = np.geomspace(1, max(float(passes.max()), 2.0), LINE_POINTS)
        values = worth(along[None], 1.0, fitted.values["r_d"][:, None])
        marks += line_marks(fitted.name, along, widened(values, fitted.stretch))
    if marks:
        most = max(max(mark.x) for mark in marks)
        marks.insert(0, Mark("dotted", "new tokens", None, [1.0, most], [1.0, most]))
    caption = "What passes over the same tokens are worth, with the 95% band. Dotted: if repeated tokens were new."
    return Figure("epochs", "Worth of repeated tokens", EPOCHS, WORTH, tuple(marks), caption)


def _pac(fits: Sequence[Fitted]) -> Figure:
    """Parameters that tokens ask for, with the exponents that theory expects through the middle of the line."""
    marks: list[Mark] = []
    for fitted in fits:
        chosen = fitted.entry.get("minima") or fitted.entry.get("points") or {}
        n, d = (chosen.get(long, chosen.get(role)) for long, role in (("params", "n"), ("tokens", "d")))
        if fitted.law != "pac" or n is None or d is None or not len(d):
            continue
        along, name = np.geomspace(min(d), max(d) * 1.001, LINE_POINTS), fitted.name
        values = pac_params(fitted, along[None])
        middle = np.sqrt(along[0] * along[-1])
        sides = [values[0, LINE_POINTS // 2] * (along / middle) ** exponent for exponent in PAC_BAND]
        grey = rounded(np.minimum(*sides)), rounded(np.maximum(*sides))
        marks.append(Mark("band", "exponents 0.44 to 0.72", None, rounded(along), sides=grey))
        marks += [Mark("points", "smallest N", name, rounded(d), rounded(n)), *line_marks(name, along, values)]
    caption = (
        "The smallest size within the tolerance of the best, at each number of tokens, and the law with its 95% band. "
        "Grey: exponents from 0.44 to 0.72 through the middle of the line."
    )
    return Figure("pac", "Parameters against tokens", TOKENS, PARAMS, tuple(marks), caption, tall=True)


def _pac_sizes(groups: Sequence[Group]) -> Figure:
    """Loss against size at each amount of data, and the smallest size that is good enough."""
    marks = []
    for group in groups:
        for curve in (group.get("curves") or ()) if group["law"] == "pac" else ():
            name, of = group["group"], {"tokens": rounded([curve["tokens"]])[0]}
            sizes = rounded(curve["params"]), rounded(curve["loss"])
            marks += [Mark("points", "sizes", name, *sizes, extra=of), Mark("curve", "sizes", name, *sizes, extra=of)]
            if best := curve.get("minimum"):
                at = rounded([best["params"]]), rounded([best["loss"]])
                marks.append(Mark("minimum", "good enough", name, *at, extra=of))
    caption = "One line an amount of data. Diamonds: the smallest size whose loss is within the tolerance of the best."
    return Figure("pac-sizes", "Loss against size at equal data", PARAMS, LOSS, tuple(marks), caption)
