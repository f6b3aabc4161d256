"""The figures of the evaluation pages as data: metrics against compute, loss by position, maps of needles."""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from linscale.study.evaluations import HEADLINE, LENGTH, PLACES, Evaluation, latest
from linscale.study.laws import PFLOP_S_DAY
from linscale.study.report.digest import display_name
from linscale.study.suites import SUITES

MEAN = "mean of "  # metrics that are means over the tasks of a suite
HALF_WIDTH = 1.96  # standard errors to either side
WINDOW = re.compile(r"window(\d+)")
DEPTHS = re.compile(r"-depths([\d.,x]+)")  # 0,25,50 or 0..100x35: 35 depths at equal distances, rounded
SPACED = re.compile(r"([\d.]+?)\.\.([\d.]+)x(\d+)")


def evaluation_figures(values: Sequence[Evaluation], archs: Sequence[str]) -> dict[str, Any]:
    """What evaluations.js draws; `archs` in the order of the page's colours."""
    suites = _suites([value for value in values if not value.is_part])
    return {
        "architectures": {arch: {"name": display_name(arch), "series": series} for series, arch in enumerate(archs)},
        "axes": _shared_axes(suites),
        "suites": suites,
        "positions": _positions([value for value in values if PLACES.fullmatch(value.metric)]),
        "needles": _needles([value for value in values if value.cells and LENGTH.fullmatch(value.metric)]),
    }


def _suites(values: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """By suite its metrics, the one that most tasks have first, and of each a panel a task; means over tasks apart.

    A suite of one task has all of its metrics side by side.
    """
    suites = []
    for suite, members in _grouped(values, lambda value: value.suite).items():
        panels: dict[str, list[dict[str, Any]]] = {}
        for (task, metric), own in _grouped(members, lambda value: (value.task, value.metric)).items():
            panels.setdefault(metric, []).append(_panel(task, own))
        means = [panel for metric in panels if metric.startswith(MEAN) for panel in panels[metric]]
        rest = {metric: own for metric, own in panels.items() if not metric.startswith(MEAN)}
        metrics = sorted(rest, key=lambda metric: (metric != HEADLINE, -len(rest[metric])))
        choices = [{"metric": metric, "panels": rest[metric]} for metric in metrics]
        if len({value.task for value in members if not value.metric.startswith(MEAN)}) == 1:
            choices = [{"metric": "all", "panels": [panel for choice in choices for panel in choice["panels"]]}]
        suites.append({"id": suite, "means": means, "metrics": choices})
    return sorted(suites, key=lambda suite: [*SUITES].index(str(suite["id"])))


def _shared_axes(suites: Sequence[dict[str, Any]]) -> list[list[float]]:
    """The compute of all curves, each list once; the curves keep its number. Tasks share their checkpoints.

    It halves a page of many tasks.
    """
    axes: dict[tuple[float, ...], int] = {}
    panels = [panel for suite in suites for panel in suite["means"]]
    panels += [panel for suite in suites for choice in suite["metrics"] for panel in choice["panels"]]
    for curve in (curve for panel in panels for group in panel["groups"] for curve in group["curves"]):
        curve["x"] = axes.setdefault(tuple(curve["x"]), len(axes))
    return [list(axis) for axis in axes]


def _panel(task: str, values: Sequence[Evaluation]) -> dict[str, Any]:
    """One task and metric: of every run its curve over checkpoints and its last value with the error."""
    groups = []
    for arch, own in _grouped(values, lambda value: value.run.arch).items():
        last = sorted(latest(own), key=lambda value: value.flops)
        curves = _grouped(sorted(own, key=lambda value: value.flops), lambda value: value.run.name)
        groups.append(
            {
                "arch": arch,
                "last": [_point(value) for value in last],
                "line": _line(last),
                "curves": [
                    {"run": run, "x": [_compute(v) for v in curve], "y": [_digits(v.value) for v in curve]}
                    for run, curve in curves.items()
                    if len(curve) > 1
                ],
            }
        )
    first = values[0]
    title = task.upper() if first.metric.startswith(MEAN) else plain_title(first)
    return {
        "task": task, "title": title, "metric": first.metric, "lower": first.lower_is_better, "groups": groups,
    }  # fmt: skip


def plain_title(value: Evaluation) -> str:
    """The name of a task without its suite's before it."""
    return value.task.removeprefix(value.suite).lstrip("-_:") or value.task


def _point(value: Evaluation) -> dict[str, Any]:
    return {
        "run": value.run.name,
        "params": value.run.params,
        "step": value.step,
        "tokens": value.tokens,
        "x": _compute(value),
        "y": _digits(value.value),
        "error": None if value.se is None else _digits(HALF_WIDTH * value.se),
        "count": value.count,
    }


def _line(last: Sequence[Evaluation]) -> dict[str, list[float]]:
    """Through the last checkpoints of all sizes; the mean where a size has several seeds."""
    sizes = _grouped(last, lambda value: value.run.size).values()
    points = sorted((_mean(v.flops for v in own) / PFLOP_S_DAY, _mean(v.value for v in own)) for own in sizes)
    return {"x": [_digits(x) for x, _ in points], "y": [_digits(y) for _, y in points]}


def _positions(values: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """By text a panel a size, the largest first: a curve a run at its last checkpoint, and the lengths trained on."""
    texts: dict[str, dict[str, Any]] = {}
    for (task, size), own in _by_size(values, lambda value: (value.task, value.run.size)):
        curves = []
        written = WINDOW.search(own[0].version)
        window = int(written[1]) if written else sys.maxsize
        for curve in _grouped(latest(own), lambda value: value.run.name).values():
            newest = max(value.step for value in curve)
            points = sorted((int(_number(PLACES, v.metric)), v) for v in curve if v.step == newest)
            curves.append(
                {
                    "arch": curve[0].run.arch,
                    "run": curve[0].run.name,
                    "step": newest,
                    "first": [place for place, _ in points],
                    "last": [min(2 * place - 1, window) for place, _ in points],
                    "y": [_digits(value.value) for _, value in points],
                    "error": [None if v.se is None else _digits(HALF_WIDTH * v.se) for _, v in points],
                }
            )
        lengths = sorted({value.run.length for value in own if value.run.length})
        text = texts.setdefault(task, {"task": task, "title": plain_title(own[0]), "panels": []})
        text["panels"].append({"title": size, "lengths": lengths, "curves": curves})
    return [*texts.values()]


def _needles(values: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """By task a map a run, the largest size first: accuracies at its last checkpoint, a row a depth."""
    modes: dict[str, dict[str, Any]] = {}
    for (task, _), own in _by_size(values, lambda value: (value.task, value.run.name)):
        newest = max(value.step for value in own)
        columns = sorted((int(_number(LENGTH, v.metric)), v) for v in own if v.step == newest)
        depths = needle_depths(columns[0][1])
        same = [(length, value) for length, value in columns if len(value.cells or ()) == len(depths)]
        mode = modes.setdefault(task, {"task": task, "title": plain_title(own[0]), "panels": []})
        mode["panels"].append(
            {
                "title": own[0].run.name,
                "arch": own[0].run.arch,
                "run": own[0].run.name,
                "size": own[0].run.size,
                "step": newest,
                "trained": own[0].run.length,
                "mean": _digits(_mean(value.value for _, value in same)),
                "lengths": [length for length, _ in same],
                "depths": [_digits(depth) for depth in depths],
                "z": [[_digits((value.cells or ())[row]) for _, value in same] for row in range(len(depths))],
            }
        )
    return [*modes.values()]


def needle_depths(value: Evaluation) -> list[float]:
    """Depth of every cell in percent: as the version of the task has them, else spread evenly from 0 to 100."""
    count = len(value.cells or ())
    listed = DEPTHS.search(value.version)
    if listed and (spaced := SPACED.fullmatch(listed[1])):
        depths = np.linspace(float(spaced[1]), float(spaced[2]), int(spaced[3])).round().tolist()
    elif listed and re.fullmatch(r"[\d.]+(,[\d.]+)*", listed[1]):
        depths = [float(depth) for depth in listed[1].split(",")]
    else:
        depths = []
    return depths if len(depths) == count else np.linspace(0, 100, count).tolist()


def _by_size(
    values: Iterable[Evaluation], key: Callable[[Evaluation], tuple[str, str]]
) -> list[tuple[tuple[str, str], list[Evaluation]]]:
    """Groups by task, then from most parameters to fewest, architectures of one size beside each other."""
    groups = _grouped(values, key)
    largest: Counter[str] = Counter()
    for own in groups.values():
        for value in own:
            largest[value.run.size] = max(largest[value.run.size], int(value.run.params))
    return sorted(
        groups.items(),
        key=lambda item: (item[0][0], -largest[item[1][0].run.size], item[1][0].run.size, item[1][0].run.arch),
    )


def _grouped(values: Iterable[Evaluation], key: Callable[[Evaluation], Any]) -> dict[Any, list[Evaluation]]:
    groups: dict[Any, list[Evaluation]] = defaultdict(list)
    for value in values:
        groups[key(value)].append(value)
    return groups


def _compute(value: Evaluation) -> float:
    return _digits(value.flops / PFLOP_S_DAY)


def _number(pattern: re.Pattern[str], metric: str) -> str:
    match = pattern.fullmatch(metric)
    assert match
    return match[1]


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _digits(value: float) -> float:
    return float(f"{value:.5g}")
