"""What a reader of a fitted law must know: named warnings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from linscale.study.table.checks import point_warnings as point_warnings
from linscale.study.table.group import warning
from linscale.study.table.surface_fit import Solution, Valley
from linscale.study.table.surfaces import Array

FEW_UNITS = 10
FEW_AGREE = 0.25
FLAT = 200.0
"""Condition number: a square of sizes and lengths has 20 to 120, one ray of tokens per parameter 280 to 400."""
UNLIKELY = 0.01


def surface_warnings(
    solution: Solution, parameters: Mapping[str, Mapping[str, Any]], settled: Array, units: int
) -> list[dict[str, str]]:
    """What a reader must know of a fitted surface."""
    found = verdict_warnings(parameters)
    if solution.agree < FEW_AGREE * solution.starts:
        text = "few starts reach the best objective: the valley is flat, or has several floors"
        found.append(warning("starts_disagree", text, [f"{solution.agree} of {solution.starts}"]))
    return found + resampling_warnings(settled, units)


def valley_warnings(valley: Valley, noise: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """Of a flat valley, and of a law that misses its points by more than seeds move them."""
    found = []
    if valley.condition > FLAT:
        text = "a flat valley: parameters trade against each other at hardly any cost; quote predictions, not them"
        found.append(warning("flat_valley", text, [f"condition number {valley.condition:.0f}", *valley.along]))
    if noise and noise["lack_of_fit"] is not None and noise["lack_of_fit"] < UNLIKELY:
        text = "the law misses its points by more than seeds move them: another law, or points that do not belong"
        found.append(warning("lack_of_fit", text, [f"probability {noise['lack_of_fit']:.1g}"]))
    return found


def verdict_warnings(parameters: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """Of parameters on a bound, and of those that the points do not determine."""
    found = []
    at_bound = [name for name, each in parameters.items() if each["at_bound"]]
    if at_bound:
        text = "a parameter is on its bound: the law has a term that the points do not show"
        found.append(warning("at_bound", text, at_bound))
    open_ended = [name for name, each in parameters.items() if not each["identified"] and not each["at_bound"]]
    if open_ended:
        text = "the points do not determine a parameter: its profile is open on a side"
        found.append(warning("not_identified", text, open_ended))
    return found


def resampling_warnings(settled: Array, units: int) -> list[dict[str, str]]:
    """Of few units, and of resamples (r,) that did not settle."""
    found = []
    if settled.size and 0 < units < FEW_UNITS:
        text = "few units to resample: intervals from fewer than ten are rough and mostly too narrow"
        found.append(warning("few_units", text, [str(units)]))
    if settled.size and settled.mean() < 0.9:
        text = "resamples whose fit had not come to rest are in the intervals"
        found.append(warning("unstable", text, [f"{1 - settled.mean():.0%}"]))
    return found
