"""linscale compare: compute multipliers between fitted laws, and where they cross."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro

from linscale.cli.output import Json, print_json, print_note, print_table
from linscale.cli.predict import shared_lines, shared_warnings, warning_lines
from linscale.config import UserError, amount
from linscale.study.laws import PFLOP_S_DAY


def compare(
    fits: Annotated[tuple[Path, ...], tyro.conf.Positional] = (),
    *,
    at_loss: str = "",
    at_flops: str = "",
    at_score: str = "",
    baseline: str = "",
    group: str = "",
    downstream: Path | None = None,
    paper: bool = False,
    json: Json = False,
) -> None:
    """Compare fitted groups: how many times less compute each needs than a baseline, and where their laws cross.

    A multiplier of 2 says that the group reaches the loss with half the compute of the baseline. Compute is spent best
    on either side. Intervals are 95%; one that holds 1 says "not distinguished".

    Args:
        fits: JSON files of linscale fit, or fits.json of studies.
        at_loss: Losses to compare at, as in 3.0,2.5. By default five that both were fitted to.
        at_flops: Compute of the baseline, in FLOPs, as in 1e21,1e22: compared at the loss that it reaches.
        at_score: Downstream errors or accuracies to compare at.
        baseline: The group that the others are compared with. By default llama, or else the first.
        group: Groups to compare, as in llama,tnl. All by default.
        downstream: The JSON of a sigmoid that reads the loss: --at-score compares its accuracies.
        paper: Add the four laws of arXiv 2406.16690.
        json: Print JSON instead of tables.
    """
    from linscale.study.prediction.compute_law import paper_groups
    from linscale.study.prediction.contest import contest, labelled
    from linscale.study.prediction.fit_file import read_fit, select
    from linscale.study.prediction.multiplier import At

    if not fits and not paper:
        raise UserError("fits: name at least one JSON of linscale fit, or --paper for the published laws alone")
    at = At(_numbers(at_loss, "at-loss"), _numbers(at_flops, "at-flops"), _numbers(at_score, "at-score"))
    groups = labelled([read_fit(path) for path in fits]) + (paper_groups() if paper else [])
    chosen = select(groups, tuple(name.strip() for name in group.split(",") if name.strip()))
    result = contest(chosen, baseline, at, read_fit(downstream) if downstream else [])
    if json:
        print_json({"version": 1, **result})
        return
    for pair in result["pairs"]:
        _print_pair(pair)
    sys.stdout.write("".join(f"{line}\n" for line in shared_lines(shared_warnings(result["groups"], least=1))))
    for item in result["refused"]:
        print_note(f"{item['group']} against {item['baseline']}: {item['reason']}")


def _numbers(text: str, field: str) -> tuple[float, ...]:
    return tuple(amount(part, field) for part in text.split(",") if part.strip())


def _print_pair(pair: dict[str, Any]) -> None:
    kinds = {row["at"] for row in pair["rows"]}
    (kind,) = kinds if len(kinds) == 1 else ("",)
    heads = (kind, "FLOPs", "baseline", "multiplier, 95%", "")
    print_table(f"{pair['group']} against {pair['baseline']}", heads, [_row(row, kind) for row in pair["rows"]])
    sys.stdout.write("".join(f"{line}\n" for line in _lines(pair)))


def _row(row: dict[str, Any], kind: str) -> tuple[str, ...]:
    multiplier, label = row["multiplier"], f"{row['value']:.4g}" if kind else f"{row['at']} {row['value']:.4g}"
    interval = "" if multiplier["low"] is None else f" ({_interval(multiplier, 'inf')})"
    spent = [_shown(row[key]["value"]) for key in ("flops", "baseline_flops")]
    mark = " *" if row["outside"] else ""
    return label + mark, *spent, _shown(multiplier["value"], "inf") + interval, row["verdict"]


def _shown(value: float | None, endless: str = "never") -> str:
    return "-" if value is None else endless if value == float("inf") else f"{value:.3g}"


def _interval(each: dict[str, Any], endless: str = "never") -> str:
    return "-" if each["low"] is None else f"{_shown(each['low'], endless)} to {_shown(each['high'], endless)}"


def _lines(pair: dict[str, Any]) -> Iterator[str]:
    if any(row["outside"] for row in pair["rows"]):
        yield "* outside of the compute that one of them was fitted to"
    for row in pair["rows"]:
        if row["difference"]:
            each = row["difference"]
            yield f"at {row['value']:.4g} FLOPs the losses differ by {_shown(each['value'])} ({_interval(each)})"
    for each in pair["crossings"]:
        yield _crossing(each)
    none = pair["no_crossing"]
    if not pair["crossings"]:
        yield "the laws do not cross" + (f" in {none:.0%} of the resamples" if pair["resamples"] else "")
    elif pair["resamples"] and none:
        yield f"no crossing in {none:.0%} of the resamples"
    yield from warning_lines(pair["warnings"])
    yield ""


def _crossing(each: dict[str, Any]) -> str:
    flops = each["flops"]
    if flops["value"] is None:
        return f"{each['overtakes']} overtakes somewhere in {each['share']:.0%} of the resamples, though not in the fit"
    days = flops["value"] / PFLOP_S_DAY
    text = f"{each['overtakes']} overtakes at {flops['value']:.3g} FLOPs ({days:.3g} PFLOP/s-days)"
    interval = "" if flops["low"] is None else f", 95% {_interval(flops)}"
    share = "" if each["share"] is None else f", in {each['share']:.0%} of the resamples"
    return text + interval + share + ("" if each["within"] else "; outside of the compute that was fitted")
