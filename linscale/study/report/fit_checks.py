"""Residuals of a fit as figures: against every input, and against what the law predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from linscale.study.laws import PFLOP_S_DAY
from linscale.study.prediction.fitted import Fitted
from linscale.study.prediction.forecast import pac_params
from linscale.study.report.figures import (
    COMPUTE,
    LOSS,
    PARAMS,
    TOKENS,
    Array,
    Axis,
    Figure,
    Mark,
    numbers,
    rounded,
)

TARGETS = {"loss": LOSS, "accuracy": Axis("accuracy", "Accuracy", log=False, symbol="accuracy")}
INPUTS = {
    "n": (PARAMS, "N"),
    "d": (TOKENS, "D"),
    "c": (COMPUTE, "compute"),
    "bpb": (Axis("bits_per_byte", "Bits per byte", log=False, symbol="bits per byte"), "bits per byte"),
}


LABELS = ("row", "run", "budget", "seed", "schedule")


def labels_of(points: Mapping[str, Any]) -> dict[str, Any]:
    """What hover texts and CSVs say of each point of a group beside its place."""
    return {name: list(points[name]) for name in LABELS if name in points}


def residual_figures(fits: Sequence[Fitted], space: str) -> list[Figure]:
    """Prediction minus what was measured, in percent where residuals are of logarithms (`space` is "log")."""
    groups = [fitted.entry for fitted in fits if fitted.law != "pac"]
    known = [group for group in groups if (group.get("points") or {}).get("residual")]
    figures = _of_sizes([fitted for fitted in fits if fitted.law == "pac" and fitted.entry.get("minima")])
    for role, (axis, words) in INPUTS.items():
        having = [group for group in known if role in group["points"]]
        if having and not (role == "c" and any("n" in group["points"] for group in having)):
            x = {group["group"]: _numbers(group, role) / (PFLOP_S_DAY if role == "c" else 1) for group in having}
            figures.append(_figure(f"residual-{role}", f"Residuals against {words}", axis, x, having, space))
    for target, axis in TARGETS.items():
        having = [group for group in known if target in group["points"]]
        if having:
            x = {group["group"]: predicted(group, target, space) for group in having}
            title = f"Predicted {axis.title[0].lower()}{axis.title[1:]}"
            axis = replace(axis, column=f"predicted_{axis.column}", title=title, log=False)
            figures.append(_figure("residual-predicted", f"Residuals against {title.lower()}", axis, x, having, space))
            break
    return figures


def _of_sizes(fits: Sequence[Fitted]) -> list[Figure]:
    """Of the PAC law: its parameters above those of the smallest size that is good enough."""
    marks = []
    for fitted in fits:
        d, n = numbers(fitted.entry["minima"]["tokens"]), numbers(fitted.entry["minima"]["params"])
        law = pac_params(fitted, d[None])[0]
        marks.append(Mark("points", "smallest N", fitted.name, rounded(d), rounded(100 * (law / n - 1))))
    unit = Axis("residual_percent", "Law above smallest N (%)", "percent", log=False, symbol="residual")
    title = "Residuals of N against D"
    return [Figure("residual-pac", title, TOKENS, unit, tuple(marks), f"{title}.")] if marks else []


def predicted(group: Mapping[str, Any], target: str, space: str) -> Array:
    """(m,) what the law says of the points: what was measured, and the residual on top."""
    measured, residual = _numbers(group, target), _numbers(group, "residual")
    return measured * np.exp(residual) if space == "log" else measured + residual


def _figure(
    name: str, title: str, axis: Axis, x: Mapping[str, Array], groups: Sequence[Mapping[str, Any]], space: str
) -> Figure:
    marks = []
    for group in groups:
        residual = _numbers(group, "residual")
        y = 100 * np.expm1(residual) if space == "log" else residual
        labels = labels_of(group["points"])
        marks.append(Mark("points", "points", group["group"], rounded(x[group["group"]]), rounded(y), extra=labels))
    ends = [end for values in x.values() for end in (float(np.nanmin(values)), float(np.nanmax(values)))]
    marks.insert(0, Mark("dotted", "law", None, rounded([min(ends), max(ends)]), [0.0, 0.0]))
    unit = (
        Axis("residual_percent", "Prediction above measurement (%)", "percent", log=False, symbol="residual")
        if space == "log"
        else Axis("residual", "Prediction minus measurement", log=False, symbol="residual")
    )
    return Figure(name, title, axis, unit, tuple(marks), f"{title}.")


def _numbers(group: Mapping[str, Any], role: str) -> Array:
    return numbers(group["points"][role])
