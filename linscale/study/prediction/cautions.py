"""What a reader of a prediction must know: named warnings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from linscale.study.prediction.fitted import Fitted

FEW = 200  # resamples: the 2.5 percentile of fewer rests on less than five of them
ROUGH = 0.10  # of the points' FLOPs beside k N^p D
SLACK = 1.05  # that little beyond is not worth a word
NOT_REPEATED = ("extrapolated_coefficient", "duplicates")  # of the fit: not about predictions

Array = np.ndarray
Caution = dict[str, str]


def caution(name: str, text: str, detail: str = "") -> Caution:
    """A named warning: `detail` is the numbers that the text is about."""
    return {"name": name, "text": text, "detail": detail}


def of_the_fit(fitted: Fitted | None) -> list[Caution]:
    """What the fit itself warns of, and parameters that it does not vouch for."""
    if fitted is None:
        return []
    found = [dict(each) for each in fitted.entry.get("warnings") or [] if each.get("name") not in NOT_REPEATED]
    named = {each["name"] for each in found}
    bound, loose = doubtful(fitted)
    if bound and "at_bound" not in named:
        found.append(caution("at_bound", "a parameter is on its bound", ", ".join(bound)))
    if loose and "not_identified" not in named:
        found.append(caution("not_identified", "the points do not determine a parameter", ", ".join(loose)))
    return found


def doubtful(fitted: Fitted) -> tuple[list[str], list[str]]:
    """Parameters on a bound, and others that the points do not determine.

    Not coefficients: they are values at 1 PFLOP/s-day, which may be far from all that is asked.
    """
    table: Mapping[str, Any] = fitted.entry.get("parameters") or {}
    bound = [name for name, each in table.items() if each.get("at_bound")]
    loose = [name for name, each in table.items() if each.get("identified") is False and name not in bound]
    return bound, [name for name in loose if not name.endswith("_coefficient")]


def merged(found: Iterable[Caution]) -> list[Caution]:
    """One of each name and text, with the details of all."""
    details: dict[tuple[str, str], list[str]] = {}
    for each in found:
        details.setdefault((each["name"], each["text"]), []).append(each["detail"])
    return [
        caution(name, text, "; ".join(dict.fromkeys(filter(None, listed)))) for (name, text), listed in details.items()
    ]


def resamples(fitted: Fitted) -> list[Caution]:
    """Of no resamples, and of few."""
    if not fitted.resamples:
        return [caution("no_intervals", "the file keeps no resamples: values without intervals")]
    if not fitted.entry.get("draws"):
        return [caution("band_only", "the file keeps no resamples: they are drawn from its 95% band, as if normal")]
    if fitted.resamples < FEW:
        text = "intervals of few resamples are rough; fit with --bootstrap 1000"
        return [caution("few_resamples", text, str(fitted.resamples))]
    return []


def exact_reference(fits: Iterable[Fitted]) -> list[Caution]:
    """Of fits without resamples beside others that have them."""
    exact = [fitted.name for fitted in fits if not fitted.resamples]
    if not exact:
        return []
    text = "a law without resamples is taken as exact: the intervals are of the other alone"
    return [caution("exact_reference", text, ", ".join(exact))]


def outside(fitted: Fitted, places: Iterable[tuple[str, str, float | None]]) -> list[Caution]:
    """Of values (what, role, value) that lie outside of what was fitted, and how far. C is in FLOPs."""
    far = []
    for what, role, value in places:
        if value is None or role not in fitted.ranges or not 0 < value < float("inf"):
            continue
        low, high = fitted.ranges[role]
        if value > high * SLACK:
            far.append(f"{what} {value:.3g} is {times(value / high)} the most, {high:.3g}")
        elif value < low / SLACK:
            far.append(f"{what} {value:.3g} is {times(low / value)} below the least, {low:.3g}")
    return extrapolated(far)


def extrapolated(places: Iterable[str]) -> list[Caution]:
    """Of places, in words, that lie outside of what was fitted."""
    far = "; ".join(places)
    text = "outside of what was fitted: intervals do not cover a law that bends there"
    return [caution("extrapolation", text, far)] if far else []


def no_common_losses() -> Caution:
    """Of two groups whose fitted losses do not meet."""
    return caution("no_common_losses", "the two were fitted to losses that do not meet: every row extrapolates")


def other_table(one: Fitted, other: Fitted) -> list[Caution]:
    """Of laws that come from different tables."""
    tables = [each.table.get("table") or each.source for each in (one, other)]
    if tables[0] == tables[1]:
        return []
    text = (
        "the two laws are of different tables: equal loss means the same only on the same text and tokenizer, and "
        "equal compute under the same count of FLOPs"
    )
    return [caution("different_tables", text, " and ".join(tables))]


def unreachable(target: Mapping[str, Any]) -> list[Caution]:
    """Of a loss that nothing reaches, in the fit or in some of its resamples."""
    if target["flops"] is None:
        return []
    reachable = target["reachable"]
    if target["flops"]["value"] == float("inf"):
        text = "nothing reaches the loss: the law as asked about ends above it"
    elif reachable is not None and reachable < 1:
        text = "in some resamples nothing reaches the loss: they end above it"
    else:
        return []
    share = "" if reachable is None else f"{target['loss']:g}: in {1 - reachable:.1%} of the resamples"
    return [caution("unreachable", text, share)]


def allocation_ignored() -> Caution:
    """Of N and D given to a law of compute."""
    text = "the law knows compute alone: this is the loss of its best N and D, whatever yours are"
    return caution("allocation_ignored", text)


def undefined(losses: Array) -> list[Caution]:
    """Of losses (1 + r,) that do not exist, in the fit or in some resamples."""
    if np.isnan(losses[0]):
        return [caution("no_best_use", "an exponent of the fit is 0: compute has no best use; give N and D")]
    without = float(np.isnan(losses[1:]).mean()) if len(losses) > 1 else 0.0
    if not without:
        return []
    text = "resamples in which an exponent is 0, and compute has no best use, are left out"
    return [caution("undefined_resamples", text, f"{without:.1%}")]


def flops(fitted: Fitted) -> list[Caution]:
    """Of FLOPs that do not follow from N and D as taken."""
    if fitted.flops.deviation > ROUGH:
        text = "the points' FLOPs leave the formula that stands for them"
        return [caution("flops_rough", text, f"{fitted.flops}, by up to {fitted.flops.deviation:.0%}")]
    column = fitted.table["columns"].get("c")
    known = "k" in (fitted.entry.get("compute") or {}) or {"n", "d", "c"} <= set(fitted.observed)
    if column not in (None, "6nd") and not known:
        text = "FLOPs of N and D are taken as 6 N D, while the fit's own are another column's"
        return [caution("flops_assumed", text, str(column))]
    return []


def times(ratio: float) -> str:
    """A ratio in words: 154x, 3.2x, 5.1e+06x."""
    return f"{ratio:.0f}x" if 10 <= ratio < 1e4 else f"{ratio:.2g}x"
