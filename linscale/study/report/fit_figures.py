"""The figures of a fit of a table, as data: what is drawn follows from what each group's law and points have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from linscale.study.laws import PFLOP_S_DAY
from linscale.study.report import law_curves
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
    figures = [
        *(_of_compute(groups, law) for law in LAW_VALUES),
        _curves(groups),
        *(_against(groups, role) for role in ("n", "d")),
        *form_figures(groups),
        *residual_figures(groups, space),
    ]
    return [figure for figure in figures if figure is not None and any(len(mark.x) for mark in figure.marks)]


def compute_law(group: Group) -> tuple[float, float]:
    """k and kappa of FLOPs = k N^(1 + kappa) D: of the group's columns where it says so, else of 6 N D."""
    said = group.get("compute") or {}
    return (said["k"], said["kappa"]) if "k" in said else law_curves.SIX_ND


def flops_of(group: Group) -> Array | None:
    """(m,) FLOPs of the points: as the table has them, else by the group's law of compute; None where neither is."""
    points = group.get("points") or {}
    if "c" in points:
        return numbers(points["c"])
    if "n" in points and "d" in points:
        k, kappa = compute_law(group)
        return np.asarray(k * numbers(points["n"]) ** (1 + kappa) * numbers(points["d"]))
    return None


def _of_compute(groups: Sequence[Group], law: str) -> Figure | None:
    """The loss, N or D of the efficient frontier against compute, with bands, what it rests on and the paper's law."""
    key, marks, ranges = LAW_VALUES[law], [], []
    for group in groups:
        compute = compute_range(group)
        line = _frontier(group, key, compute) if compute is not None else None
        if compute is None or line is None:
            continue
        name, ends = group["group"], (float(compute[0]), float(compute[-1]))
        ranges.append(ends)
        marks += line_marks(name, compute, line)
        flops, points = flops_of(group), group.get("points") or {}
        if key == "loss" and flops is not None and "loss" in points:
            c = rounded(flops / PFLOP_S_DAY)
            marks.insert(0, Mark("points", "points", name, c, rounded(points["loss"]), extra=labels_of(points)))
        if known := _minima(group):
            few = len(known["compute"]) <= FEW
            kind, label = ("minimum", "minimum") if few else ("faint", "envelope")
            marks.append(Mark(kind, label, name, rounded(known["compute"]), rounded(known[key])))  # type: ignore[arg-type]
        marks += published(name, law, ends)
    if not marks:
        return None
    frame = replace(_FRAMES[law], marks=tuple(marks))
    dotted = any(mark.kind == "dotted" for mark in marks)
    return replace(frame, caption=f"{frame.caption} Dotted: the published laws.") if dotted else frame


def compute_range(group: Group) -> Array | None:
    """(LINE_POINTS,) PFLOP/s-days over which a group was fitted; None where no compute is known."""
    known = _minima(group)
    flops = flops_of(group)
    if flops is not None and flops.size:
        low, high = float(flops.min()) / PFLOP_S_DAY, float(flops.max()) / PFLOP_S_DAY
    elif known and len(known["compute"]):
        low, high = min(known["compute"]), max(known["compute"])
    else:
        return None
    return np.geomspace(low, max(high, low * 1.001), LINE_POINTS)


def _minima(group: Group) -> Mapping[str, Any] | None:
    """What a law of compute was fitted to, by compute: of the table's budgets, or of a study's envelope."""
    known = group.get("minima") or group.get("envelope")
    return known if known and "compute" in known else None


def _frontier(group: Group, key: str, compute: Array) -> law_curves.Line | None:
    values = law_curves.frontier(group["law"], law_curves.parameters_of(group), compute, compute_law(group))
    if values is None or key not in values:
        return None
    line, known = law_curves.line_of(values[key]), group.get("band")
    if line.low.size or not known:
        return line
    at, log_c = np.log(compute), np.log(known["compute"])
    ends = [np.exp(np.interp(at, log_c, np.log(known[f"{key}_{end}"]))) for end in ("low", "high")]
    return law_curves.Line(line.value, *ends)


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


def _against(groups: Sequence[Group], role: str) -> Figure:
    """Loss against one input, and the surface along it with the other input held at some of the points' values."""
    other, marks = "d" if role == "n" else "n", []
    for group in groups:
        points = group.get("points") or {}
        if group["law"] not in law_curves.SURFACES or not {"n", "d", "loss"} <= set(points):
            continue
        x, held = np.array(points[role], dtype=float), np.unique(np.array(points[other], dtype=float))
        name, labels = group["group"], {"tokens" if other == "d" else "params": rounded(points[other])}
        marks.append(
            Mark("points", "points", name, rounded(x), rounded(points["loss"]), extra=labels | labels_of(points))
        )
        for value in held[np.unique(np.linspace(0, held.size - 1, FIXED).round().astype(int))]:
            ends = x[np.abs(np.log(np.array(points[other], dtype=float) / value)) < np.log(1.5)]
            along = np.geomspace(ends.min(), ends.max() * 1.001, LINE_POINTS)
            inputs = (along, value) if role == "n" else (value, along)
            fit = {name: each[:1] for name, each in law_curves.parameters_of(group).items()}
            y = law_curves.surface(group["law"], fit, *map(np.asarray, inputs))[0]
            extra = {"tokens" if other == "d" else "params": rounded([value])[0]}
            marks.append(Mark("dashed", "law", name, rounded(along), rounded(y), extra=extra))
    axis, words = (PARAMS, "size") if role == "n" else (TOKENS, "tokens")
    fixed = "tokens" if role == "n" else "the size"
    caption = f"Dashed: the law along {words}, with {fixed} held at some values of the table."
    return Figure(f"loss-{role}", f"Loss against {words}", axis, LOSS, tuple(marks), caption)
