"""How an exponent of N ~ D^exponent compares with those of the literature, and what a reader must know of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from linscale.study.table.curve_noise import Noise
from linscale.study.table.efficient import Smallest
from linscale.study.table.group import PointFit, warning
from linscale.study.table.isoflop_warnings import assumed_warning

BAND = (0.44, 0.72)
REFERENCES = (
    (BAND[0], "lower end of the band for efficient models (Kausik, arXiv 2402.14746)"),
    (BAND[1], "upper end of the band for efficient models (Kausik, arXiv 2402.14746)"),
    (1.0, "parameters in proportion to data (Hoffmann et al. 2022)"),
)
FEW_SETS = 4
DECADES = 2.0
CHANGED = 0.1  # of an exponent, where there is no interval to compare with


def compared(exponent: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each exponent of the literature, and whether the interval holds it; null without an interval."""
    low, high = exponent["low"], exponent["high"]
    return [
        {"exponent": value, "name": name, "inside": None if low is None else bool(low <= value <= high)}
        for value, name in REFERENCES
    ]


def verdict(exponent: Mapping[str, Any]) -> str:
    """Where the interval of the exponent lies, in words."""
    low, high, band = exponent["low"], exponent["high"], f"[{BAND[0]:g}, {BAND[1]:g}]"
    if low is None:
        where = "within" if BAND[0] <= exponent["value"] <= BAND[1] else "outside of"
        return f"exponent {exponent['value']:.3g} lies {where} {band}; without an interval that says little"
    if BAND[0] <= low and high <= BAND[1]:
        place = f"lies within {band}"
    elif high < BAND[0] or low > BAND[1]:
        place = f"lies wholly {'below' if high < BAND[0] else 'above'} {band}"
    else:
        place = f"overlaps {band} and reaches beyond it" if low > BAND[0] or high < BAND[1] else f"holds all of {band}"
    one = "holds" if low <= 1 <= high else "excludes"
    return f"the exponent's interval, {low:.3g} to {high:.3g}, {place}; it {one} 1"


def pac_warnings(
    log_d: Sequence[float],
    chosen: Sequence[Smallest],
    settings: PointFit,
    noise: Noise,
    exponent: Mapping[str, Any],
    sensitivity: Sequence[Mapping[str, Any]],
) -> list[dict[str, str]]:
    """`log_d` of every amount of data, used or not, and the size chosen at each."""
    found, pairs = [], list(zip(np.exp(log_d), chosen, strict=True))
    edges = [f"the smallest is good enough at {d:.3g} tokens: not used" for d, one in pairs if one.first[0]]
    edges += [f"the largest is best at {d:.3g}" for d, one in pairs if one.last[0]]
    if edges:
        text = "a size at the end of the sizes decides: a smaller one may be good enough, or a larger one better"
        found.append(warning("edge_size", text, edges))
    used = np.array([each for each, one in zip(log_d, chosen, strict=True) if not one.first[0]])
    if len(used) < FEW_SETS:
        text = "an exponent from fewer than four amounts of data is rough"
        found.append(warning("few_data_sizes", text, [str(len(used))]))
    if np.ptp(used) < DECADES * np.log(10) * (1 - 1e-6):
        text = "fitted over less than two decades of data"
        found.append(warning("short_data_range", text, [f"a factor of {np.exp(np.ptp(used)):.2g}"]))
    if changed := [f"{each['tolerance']}: {_shown(each)}" for each in sensitivity if _differs(each, exponent)]:
        text = "the tolerance decides the exponent"
        found.append(warning("tolerance_decides", text, changed))
    return found + assumed_warning(settings, noise)


def _differs(row: Mapping[str, Any], exponent: Mapping[str, Any]) -> bool:
    if row["exponent"] is None:
        return True
    if exponent["low"] is None:
        return bool(abs(row["exponent"] - exponent["value"]) > CHANGED)
    return not exponent["low"] <= row["exponent"] <= exponent["high"]


def _shown(row: Mapping[str, Any]) -> str:
    return "not to be fitted" if row["exponent"] is None else f"{row['exponent']:.3g}"
