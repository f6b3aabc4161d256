"""Groups of one or several fits against a baseline: multipliers, crossings, and what to be wary of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from linscale.config import UserError
from linscale.study.prediction import cautions
from linscale.study.prediction.compute_law import compute_law, loss_range
from linscale.study.prediction.crossing import crossings
from linscale.study.prediction.fitted import Fitted
from linscale.study.prediction.forecast import matching
from linscale.study.prediction.multiplier import At, Row, common, rows, shared_compute, sides

BASELINE = "llama"  # what the others are compared with where nothing is said
PAPER = "paper:"


def labelled(files: Sequence[Sequence[Fitted]]) -> list[Fitted]:
    """The groups of all files under names that differ: FILE:GROUP where the group's own is taken or says nothing."""
    counts: dict[str, int] = {}
    for fitted in (each for groups in files for each in groups):
        counts[fitted.name] = counts.get(fitted.name, 0) + 1
    stems = [Path(groups[0].source).stem for groups in files]
    found = []
    for groups, stem in zip(files, stems, strict=True):
        place = stem if stems.count(stem) == 1 else str(Path(groups[0].source).with_suffix(""))
        for fitted in groups:
            alone = counts[fitted.name] == 1 and (fitted.name != "all" or len(files) == 1)
            found.append(
                fitted if alone else fitted.renamed(place if fitted.name == "all" else f"{place}:{fitted.name}")
            )
    return found


def contest(groups: Sequence[Fitted], baseline: str, at: At, sigmoids: Sequence[Fitted] = ()) -> dict[str, Any]:
    """Every group against the baseline, as documented in docs/reference/predict.md.

    Published laws of the paper are compared with those of the same architecture too. Raises UserError for one group
    alone, an unknown baseline, or when no pair can be compared.
    """
    if len(groups) < 2:
        raise UserError(f"{groups[0].name}: one group has nothing to be compared with; name a second file, or --paper")
    against = _baseline(groups, baseline)
    pairs, refused = [], []
    for x, y in _pairs(groups, against):
        try:
            pairs.append(_pair(x, y, at, [matching(each, sigmoids) for each in (x, y)]))
        except UserError as error:
            refused.append({"group": x.name, "baseline": y.name, "reason": str(error)})
    if not pairs:
        raise UserError("; ".join(dict.fromkeys(item["reason"] for item in refused)))
    used = {name for pair in pairs for name in (pair["group"], pair["baseline"])}
    return {
        "baseline": against.name,
        "groups": [_about(fitted) for fitted in groups if fitted.name in used],
        "pairs": pairs,
        "refused": refused,
    }


def _baseline(groups: Sequence[Fitted], name: str) -> Fitted:
    """By its name, or the part of it behind the last colon; without a name llama, or else the first."""
    wanted = _plain(name or BASELINE)
    exact = [each for each in groups if each.name.lower() == (name or BASELINE).lower()]
    found = exact or [each for each in groups if _plain(each.name) == wanted]
    if name and not found:
        raise UserError(f"baseline = {name}: no such group; expected one of {', '.join(each.name for each in groups)}")
    return found[0] if found else groups[0]


def _pairs(groups: Sequence[Fitted], against: Fitted) -> list[tuple[Fitted, Fitted]]:
    """Each against the baseline, published laws against the published one of its name; then each beside its own."""
    published = {each.name: each for each in groups if each.name.startswith(PAPER)}
    pairs = []
    for each in groups:
        theirs = published.get(PAPER + _plain(against.name), against)
        other = theirs if each.name in published and against.name not in published else against
        pairs += [(each, other)] if each is not other else []
    for each in groups:
        its = published.get(PAPER + _plain(each.name))
        if its is not None and its is not against and each.name not in published:
            pairs.append((each, its))
    return pairs


def _plain(name: str) -> str:
    """An architecture's name without its file, in small letters."""
    return name.rpartition(":")[2].rpartition("/")[2].lower()


def _pair(fitted: Fitted, baseline: Fitted, at: At, sigmoids: Sequence[Fitted | None]) -> dict[str, Any]:
    x, y = sides((fitted, baseline), sigmoids)
    found: list[cautions.Caution] = []
    if not (at.losses or at.flops or at.scores):
        at, shared = common(x, y)
        found += [] if shared else [cautions.no_common_losses()]
    compared = rows(x, y, at)
    meeting, none = crossings(x.law, y.law, (fitted.name, baseline.name), shared_compute(x, y))
    if fitted.resamples or baseline.resamples:
        found += cautions.exact_reference((fitted, baseline))
    return {
        "group": fitted.name,
        "baseline": baseline.name,
        "resamples": x.fitted.resamples,
        "paired": "same rows" if fitted.resampled_as(baseline) else "at random",
        "rows": compared,
        "crossings": meeting,
        "no_crossing": none,
        "warnings": _outside(compared) + cautions.other_table(fitted, baseline) + found,
    }


def _outside(compared: Sequence[Row]) -> list[cautions.Caution]:
    """How far each of the two is compared outside of what it was fitted to, at most."""
    places = []
    for name in dict.fromkeys(name for row in compared for name in row["outside"]):
        ratios = [row["outside"][name] for row in compared if name in row["outside"]]
        if max(ratios) > 1:
            places.append(f"{name} up to {cautions.times(max(ratios))} beyond the compute fitted")
        if min(ratios) < 1:
            places.append(f"{name} up to {cautions.times(1 / min(ratios))} below the compute fitted")
    return cautions.extrapolated(places)


def _about(fitted: Fitted) -> dict[str, Any]:
    law = compute_law(fitted)
    return {
        "group": fitted.name,
        "source": fitted.source,
        "law": fitted.law,
        "flops_definition": str(fitted.flops),
        "resamples": fitted.resamples,
        "compute_range": fitted.ranges.get("c"),
        "loss_range": None if law is None else loss_range(law, fitted),
        "warnings": [
            *cautions.resamples(fitted),
            *([] if law is None else cautions.undefined(law.above[0])),
            *cautions.of_the_fit(fitted),
        ],
    }
