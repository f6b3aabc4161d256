"""The figures of a fit of a table, as data: what is drawn follows from what each group's law and points have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from linscale.study.laws import PFLOP_S_DAY
from linscale.study.prediction.compute_law import compute_law
from linscale.study.prediction.fit_file import fitted_of
from linscale.study.prediction.fitted import Fitted
from linscale.study.prediction.surface import SURFACES, surface
from linscale.study.report.figures import (
    COMPUTE,
    LAW_VALUES,
    LINE_POINTS,
    LOSS,
    PARAMS,
    TOKENS,
    Array,
    Figure,
    Mark,
    numbers,
    published,
    rounded,
)
from linscale.study.report.fit_checks import labels_of, residual_figures
from linscale.study.report.fit_forms import form_figures, line_marks

FEW = 30  # minima that are drawn one by one: an envelope has more
FIXED = 5  # lines of a surface in a figure of one input, each with the other input held
Group = Mapping[str, Any]


def fit_figures(groups: Sequence[Group], space: str) -> list[Figure]:
    """All that can be drawn of the groups of a fit; `space` is that of the residuals, "log" or "linear"."""
    fits = [fitted_of(group, {}, "") for group in groups]
    figures = [
        *(_of_compute(fits, law) for law in LAW_VALUES),
        _curves(groups),
        *(_against(fits, role) for role in ("n", "d")),
        *form_figures(fits),
        *residual_figures(fits, space),
    ]
    return [figure for figure in figures if figure is not None and any(len(mark.x) for mark in figure.marks)]


def flops_of(fitted: Fitted) -> Array | None:
    """(m,) FLOPs of the points: as the table has them, else by the group's law of FLOPs; None where neither is."""
    points = fitted.entry.get("points") or {}
    if "c" in points:
        return numbers(points["c"])
    return fitted.flops.flops(numbers(points["n"]), numbers(points["d"])) if {"n", "d"} <= set(points) else None


def _of_compute(fits: Sequence[Fitted], law: str) -> Figure | None:
    """The loss, N or D of the efficient frontier against compute, with bands, what it rests on and the paper's law."""
    key, marks = LAW_VALUES[law], []
    for fitted in fits:
        if "c" not in fitted.ranges:
            continue
        low, high = (flops / PFLOP_S_DAY for flops in fitted.ranges["c"])
        compute = np.geomspace(low, max(high, low * 1.001), LINE_POINTS)
        values = _frontier(fitted, key, compute)
        if values is None:
            continue
        name, points = fitted.name, fitted.entry.get("points") or {}
        marks += line_marks(name, compute, values)
        flops = flops_of(fitted)
        if key == "loss" and flops is not None and "loss" in points:
            c = rounded(flops / PFLOP_S_DAY)
            marks.insert(0, Mark("points", "points", name, c, rounded(points["loss"]), extra=labels_of(points)))
        if known := _minima(fitted.entry):
            few = len(known["compute"]) <= FEW
            kind, label = ("minimum", "minimum") if few else ("faint", "envelope")
            marks.append(Mark(kind, label, name, rounded(known["compute"]), rounded(known[key])))  # type: ignore[arg-type]
        marks += published(name, law, (float(compute[0]), float(compute[-1])))
    if not marks:
        return None
    frame = replace(_FRAMES[law], marks=tuple(marks))
    dotted = any(mark.kind == "dotted" for mark in marks)
    return replace(frame, caption=f"{frame.caption} Dotted: the published laws.") if dotted else frame


def _minima(group: Group) -> Mapping[str, Any] | None:
    """What a law of compute was fitted to, by compute: of the table's budgets, or of a study's envelope."""
    known = group.get("minima") or group.get("envelope")
    return known if known and "compute" in known else None


def _frontier(fitted: Fitted, key: str, compute: Array) -> Array | None:
    """(1 + r, g) loss, params or tokens where `compute` (g,) PFLOP/s-days are spent best; None where none is said."""
    law, flops = compute_law(fitted), compute[None] * PFLOP_S_DAY
    if law is None:
        return None
    return {"loss": law.loss, "params": law.params, "tokens": law.tokens}[key](flops)


_FRAMES = {
    "l": Figure(
        "loss-compute", "Loss against compute", COMPUTE, LOSS, (),
        "Symbols: the points of the table. Line and band: the law where compute is spent best, with its 95% band; a "
        "point lies above it by what its size or its tokens cost.",
        tall=True,
    ),
    "n_opt": Figure(
        "n-opt", "Best number of parameters against compute", COMPUTE, PARAMS, (),
        "Best size N<sub>opt</sub>(C), with its 95% band.",
    ),
    "d_opt": Figure(
        "d-opt", "Tokens of the best size against compute", COMPUTE, TOKENS, (),
        "Tokens D<sub>opt</sub>(C) of the best size, with their 95% band.",
    ),
}  # fmt: skip


def _curves(groups: Sequence[Group]) -> Figure:
    """IsoFLOP curves: the points of each budget, the curve through them and its minimum."""
    marks = []
    for group in groups:
        for curve in (group.get("curves") or ()) if group["law"] != "pac" else ():
            name, of = group["group"], {"compute_pflop_s_days": rounded([curve["compute"]])[0]}
            left_out = {"left_out": str(curve["rule"])} if curve.get("rule") else {}
            marks.append(
                Mark("points", "budget", name, rounded(curve["params"]), rounded(curve["loss"]), extra=of | left_out)
            )
            if fitted := curve.get("fitted"):
                marks.append(Mark("curve", "curve", name, rounded(fitted["params"]), rounded(fitted["loss"]), extra=of))
            if best := curve.get("minimum"):
                at = rounded([best["params"]]), rounded([best["loss"]])
                marks.append(Mark("minimum", "minimum", name, *at, extra=of | {"tokens": rounded([best["tokens"]])}))
    caption = (
        "One curve a compute budget, through the losses of its sizes, with its minimum where it is used. A budget "
        "whose lowest loss is at the edge of its sizes has none."
    )
    return Figure("isoflop", "Loss against size at equal compute", PARAMS, LOSS, tuple(marks), caption, tall=True)


def _against(fits: Sequence[Fitted], role: str) -> Figure:
    """Loss against one input, and the surface along it with the other input held at some of the points' values."""
    other, marks = "d" if role == "n" else "n", []
    for fitted in fits:
        points = fitted.entry.get("points") or {}
        if fitted.law not in SURFACES or not {"n", "d", "loss"} <= set(points):
            continue
        x, held = np.array(points[role], dtype=float), np.unique(np.array(points[other], dtype=float))
        name, labels = fitted.name, {"tokens" if other == "d" else "params": rounded(points[other])}
        marks.append(
            Mark("points", "points", name, rounded(x), rounded(points["loss"]), extra=labels | labels_of(points))
        )
        for value in held[np.unique(np.linspace(0, held.size - 1, FIXED).round().astype(int))]:
            ends = x[np.abs(np.log(np.array(points[other], dtype=float) / value)) < np.log(1.5)]
            along = np.geomspace(ends.min(), ends.max() * 1.001, LINE_POINTS)
            fixed = np.full_like(along, value)
            inputs = (along, fixed) if role == "n" else (fixed, along)
            y = surface(fitted.law, fitted.values).loss(*(each[None] for each in inputs))[0]
            extra = {"tokens" if other == "d" else "params": rounded([value])[0]}
            marks.append(Mark("dashed", "law", name, rounded(along), rounded(y), extra=extra))
    axis, words = (PARAMS, "size") if role == "n" else (TOKENS, "tokens")
    rest = "tokens" if role == "n" else "the size"
    caption = f"Dashed: the law along {words}, with {rest} held at some values of the table."
    return Figure(f"loss-{role}", f"Loss against {words}", axis, LOSS, tuple(marks), caption)
