"""The evaluations of a study in short: the last checkpoints, and linear against softmax, as plain JSON values."""

from __future__ import annotations

import math
from typing import Any

from linscale.study.comparison import Comparison, Entry, comparisons
from linscale.study.evaluations import HEADLINE, Evaluations, latest
from linscale.study.suites import SUITES


def evaluation_digest(found: Evaluations) -> dict[str, Any]:
    """`values` at the last checkpoint of every run, `side_by_side` by size, and what was `left_out`.

    Points of curves and rows of maps are on the page alone, as is every other checkpoint.
    """
    last = latest(value for value in found.values if not value.is_detail)
    return {
        "values": [
            {
                "run": value.run.name,
                "arch": value.run.arch,
                "size": value.run.size,
                "step": value.step,
                "tokens": value.tokens,
                "flops": value.flops,
                "suite": value.suite,
                "task": value.task,
                "task_version": value.version,
                "metric": value.metric,
                "value": value.value,
                "se": value.se,
                "count": value.count,
            }
            for value in last
        ],
        "side_by_side": [_comparison(compared) for compared in comparisons(found.values)],
        "left_out": list(found.left_out),
    }


def headlines(compared: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a comparison one row a task: the metric that was recorded first, of needles the weighted average."""
    first: dict[str, dict[str, Any]] = {}
    for row in compared["rows"]:
        if row["task"] not in first or row["metric"] == HEADLINE:
            first[row["task"]] = row
    return sorted(first.values(), key=lambda row: [*SUITES].index(row["suite"]))


def rounded(value: float, se: float | None) -> str:
    """A value with two digits of its standard error, or four of its own where there is none."""
    if not se:
        return f"{value:.4g}"
    return f"{value:.{min(6, max(0, 1 - math.floor(math.log10(se))))}f}"


def _comparison(compared: Comparison) -> dict[str, Any]:
    return {
        "size": compared.size,
        "params": {arch: like.run.params for arch, like in compared.runs.items()},
        "rows": [
            {
                "suite": row.like.suite,
                "task": row.like.task,
                "metric": row.like.metric,
                "tokens": row.like.tokens,
                "entries": [_entry(entry) for entry in row.entries],
            }
            for row in compared.rows
        ],
    }


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "arch": entry.arch,
        "runs": list(entry.runs),
        "value": entry.value,
        "se": entry.se,
        "difference": entry.difference,
        "difference_se": entry.difference_se,
        "differs": entry.differs,
    }
