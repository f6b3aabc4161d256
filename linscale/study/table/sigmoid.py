"""From bits per byte to accuracy: the second step of a ladder of models (Bhagia et al. 2024, arXiv 2412.04403).

    accuracy = low + span / (1 + exp(slope (bpb - midpoint)))        slope > 0: accuracy falls with bits per byte

The publication writes a / (1 + exp(-k (bpb - L_0))) + b with a < 0: low = a + b, span = -a, slope = k, midpoint = L_0.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from linscale.config import UserError
from linscale.study.table.form import Form, FormProblem
from linscale.study.table.form_fit import fit_form, group_entry, resampled, stretched
from linscale.study.table.group import Group, PointFit, summary
from linscale.study.table.surfaces import Array
from linscale.study.table.unfit import check_distinct, check_fractions

GRID_SLOPE = (2.0, 5.0, 12.0, 30.0)  # over the range of bits per byte
GRID_MIDPOINT = (-0.5, -0.2, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.3)  # from the lowest to the highest bits per byte
SLOPE_BOUNDS = (0.05, 1000.0)  # over the range
NAMES = ("low", "span", "slope", "midpoint")


def sigmoid(bpb: Array, low: float, span: float, slope: float, midpoint: float) -> Array:
    """Accuracy between low and low + span at so many bits per byte."""
    return low + span * _falling(slope * (bpb - midpoint))


def fit_sigmoid(group: Group, settings: PointFit) -> dict[str, Any]:
    """The entry of one group. Raises UserError when points are too few, not fractions, or rise with bits per byte."""
    bpb, accuracy = group.numbers["bpb"], group.numbers["accuracy"]
    check_fractions("accuracy", accuracy, group.rows)
    zero = group.rows[accuracy <= 0]
    if settings.loss.space == "log" and zero.size:
        raise UserError(f"accuracy is 0 in row {zero[0]}, which has no logarithm: use --space linear")
    check_distinct("sigmoid", group.numbers, {"bpb": 3})
    if np.polyfit(bpb, accuracy, 1)[0] >= 0:
        raise UserError("accuracy does not fall with bits per byte: are bpb and accuracy the right columns?")
    counts, labels = resampled(group, settings)
    problem = FormProblem(
        sigmoid_form(bpb, settings.options.chance), settings.loss, accuracy, group.numbers.get("weight")
    )
    units = len(np.unique(labels))
    fitted = fit_form(problem, sigmoid_starts(problem, bpb, settings.options.chance), counts, labels)
    result = group_entry(group, settings, fitted, units, ("bpb", "accuracy"))
    if settings.options.chance is not None:
        given = np.full(len(counts), settings.options.chance)
        edges = [settings.options.chance] * 2
        low: dict[str, Any] = {"value": settings.options.chance, "se": None, "low": None, "high": None}
        if given.size:
            low |= {"se": 0.0, "low": settings.options.chance, "high": settings.options.chance}
        low |= {"at_bound": False, "identified": True, "profile": edges}
        result["parameters"] = {"low": low} | result["parameters"]
        result["draws"] = {"low": given.tolist()} | result["draws"]
    vectors = np.vstack([fitted.solution.vector, stretched(fitted)])
    high = vectors[:, 0] + settings.options.chance if settings.options.chance is not None else vectors[:, 1]
    result["derived"] = {"high": summary(high[0], high[1:])}
    for found in result["warnings"]:
        if found["name"] == "at_bound" and result["parameters"]["span"]["at_bound"]:
            found["detail"] = found["detail"].replace("span", "span: low + span is 1")
    return result


def sigmoid_form(bpb: Array, chance: float | None) -> Form:
    """The law over vectors (low, low + span, slope, midpoint), or with low at `chance` (span, slope, midpoint)."""
    lowest, reach = float(bpb.min()), float(np.ptp(bpb))
    steep = tuple(np.array(SLOPE_BOUNDS) / reach)

    def predict(vectors: Array) -> tuple[Array, Array]:
        slope, midpoint = vectors[:, -2:-1], vectors[:, -1:]
        share = _falling(slope * (bpb - midpoint))
        if chance is None:
            low, span = vectors[:, :1], vectors[:, 1:2] - vectors[:, :1]
            levels = [1 - share, share]
        else:
            low, span, levels = np.array(chance), vectors[:, :1], [share]
        bend = span * share * (1 - share)
        return low + span * share, np.stack([*levels, -bend * (bpb - midpoint), bend * slope], axis=-1)

    middle = (0.0, lowest + 2 * reach)
    levels = [(0.0, 1.0), (0.0, 1.0)] if chance is None else [(0.0, 1.0 - chance)]
    readings = np.eye(len(levels) + 2)
    if chance is None:
        readings[1, 0] = -1.0  # span = (low + span) - low
    return Form(
        "sigmoid",
        "accuracy = low + span / (1 + exp(slope (bpb - midpoint)))" + ("" if chance is None else f", low = {chance:g}"),
        NAMES[-len(readings) :],
        predict,
        np.array([*levels, steep, middle]).T,
        readings,
        np.zeros(len(readings), dtype=bool),
    )


def _falling(x: Array) -> Array:
    """1 / (1 + exp(x)) without overflow."""
    return 0.5 * (1 - np.tanh(0.5 * x))


def sigmoid_starts(problem: FormProblem, bpb: Array, chance: float | None) -> Array:
    """(P, p): at every slope and midpoint of a grid, the levels by linear least squares within their bounds."""
    from scipy.optimize import lsq_linear

    lowest, reach, rows = float(bpb.min()), float(np.ptp(bpb)), []
    bounds = problem.form.bounds[:, :-2]
    for slope, place in itertools.product(GRID_SLOPE, GRID_MIDPOINT):
        slope, midpoint = slope / reach, lowest + place * reach
        share = _falling(slope * (bpb - midpoint))
        terms = np.array([1 - share, share] if chance is None else [share]).T
        solved = lsq_linear(terms, problem.target - (chance or 0.0), bounds=(bounds[0], bounds[1])).x
        rows.append([*solved, slope, midpoint])
    return np.array(rows)
