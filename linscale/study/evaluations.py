"""What was measured on the checkpoints of a study beyond the validation loss, in one version a task.

Two values of a task are comparable where their versions agree, so of every task one version is read: the one that most
runs have, of equals the one recorded last. What is left out for that, or because it is no finite number, is named.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from linscale.evaluate.questions import CSR
from linscale.run_folder import EVALUATION_KEYS, EVALUATIONS, latest_records
from linscale.study.results import read_config, run_folders
from linscale.study.suites import MMLU, SCROLLS, place_of, plain_name, suite_of

PLACES = re.compile(r"loss_from_(\d+)")
LENGTH = re.compile(r"acc_(\d+)")
LOWER_IS_BETTER = re.compile(r"loss|nats|bits|perplexity|ppl|error|truncated")
HEADLINE = "weighted_average"  # of needles; of other tasks it is the metric that is recorded first


@dataclass(frozen=True)
class EvaluatedRun:
    """The run that a value belongs to."""

    name: str
    arch: str
    size: str
    params: float
    """Non-embedding parameters N."""
    length: int | None
    """Tokens of a training sequence; None where the run does not say."""


@dataclass(frozen=True)
class Evaluation:
    """One number about one checkpoint."""

    run: EvaluatedRun
    step: int
    tokens: float
    flops: float
    task: str
    version: str
    metric: str
    value: float
    se: float | None
    """Standard error over what was scored."""
    count: int | None
    cells: tuple[float, ...] | None = None
    """The parts that `value` is the mean of, such as one per depth of a needle."""

    @property
    def suite(self) -> str:
        """The key in SUITES of the group that its task belongs to."""
        return suite_of(self.task)

    @property
    def is_part(self) -> bool:
        """Whether it is one point of a curve or a row of a map, which are shown as such and not on their own."""
        by_length = self.suite == "needle" and LENGTH.fullmatch(self.metric)
        return self.cells is not None or bool(by_length or PLACES.fullmatch(self.metric))

    @property
    def is_detail(self) -> bool:
        """Whether it has a chart but no row where values are listed: parts, and the subjects of MMLU."""
        return self.is_part or (self.suite == "mmlu" and self.metric not in MMLU)

    @property
    def lower_is_better(self) -> bool:
        return bool(LOWER_IS_BETTER.search(self.metric))


@dataclass(frozen=True)
class Evaluations:
    """All that is comparable, and what is left out of it, a line each."""

    values: tuple[Evaluation, ...] = ()
    left_out: tuple[str, ...] = ()


def read_evaluations(study: Path) -> Evaluations:
    """Every value of every checkpoint of a study, tasks in their order, with the means over CSR and SCROLLS.

    Raises UserError when the folder holds no runs, or the config of one is damaged.
    """
    return evaluations_of(run_folders(study))


def evaluations_of(folders: Sequence[Path]) -> Evaluations:
    """The same of run folders."""
    found: list[Evaluation] = []
    unread: Counter[str] = Counter()
    for folder in folders:
        records = latest_records(folder / EVALUATIONS, EVALUATION_KEYS)
        records = [record for record in records if record.get("task") != "validation"]
        config = read_config(folder) if records else {}
        run = _run(config) if records else None
        for record in records:
            value = _evaluation(run, record, float(config["flops_per_token"])) if run else None
            if value is None:
                unread[str(record.get("task"))] += 1
            else:
                found.append(value)
    chosen, lines = _one_version(found)
    lines += [f"{task}: {count} value(s) that are no finite number" for task, count in sorted(unread.items())]
    chosen.sort(key=lambda value: place_of(value.task))
    csr, csr_lines = _mean_of(chosen, "csr", {task: (metric,) for task, metric in CSR.items()})
    scrolls, scrolls_lines = _mean_of(chosen, "scrolls", SCROLLS)
    return Evaluations((*csr, *scrolls, *chosen), (*lines, *csr_lines, *scrolls_lines))


def latest(values: Iterable[Evaluation]) -> list[Evaluation]:
    """Of every run, task and metric the value at the last checkpoint that has one."""
    last: dict[tuple[str, str, str], Evaluation] = {}
    for value in values:
        key = (value.run.name, value.task, value.metric)
        if key not in last or value.step > last[key].step:
            last[key] = value
    return list(last.values())


def _run(config: Mapping[str, Any]) -> EvaluatedRun:
    length = (config.get("train") or {}).get("length")
    return EvaluatedRun(
        name=str(config["run"]),
        arch=str(config["model"]["arch"]),
        size=str(config.get("size") or config["run"]),
        params=float(config["params"]["non_embedding"]),
        length=length if isinstance(length, int) else None,
    )


def _evaluation(run: EvaluatedRun, record: Mapping[str, Any], flops_per_token: float) -> Evaluation | None:
    """A record; None where it holds no number."""
    value, step, tokens, cells = (record.get(key) for key in ("value", "step", "tokens", "cells"))
    if not (_finite(value) and _finite(step) and _finite(tokens) and tokens > 0):
        return None
    if cells is not None and not (isinstance(cells, list) and cells and all(map(_finite, cells))):
        return None
    se, count = record.get("se"), record.get("count")
    return Evaluation(
        run=run,
        step=int(step),
        tokens=float(tokens),
        flops=float(tokens) * flops_per_token,
        task=str(record.get("task")),
        version=str(record.get("task_version")),
        metric=str(record.get("metric")),
        value=float(value),
        se=float(se) if _finite(se) else None,
        count=int(count) if _finite(count) else None,
        cells=None if cells is None else tuple(map(float, cells)),
    )


def _one_version(values: Sequence[Evaluation]) -> tuple[list[Evaluation], list[str]]:
    """The values in the chosen version of their tasks, and a line for every version that was not chosen."""
    runs: dict[str, dict[str, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
    last: dict[tuple[str, str], str] = {}
    for value in values:
        runs[value.task][value.version][value.run.name] = None
        last[value.task, value.run.name] = value.version
    chosen: dict[str, str] = {}
    left: dict[str, list[str]] = defaultdict(list)
    for task, versions in runs.items():
        newest = Counter(version for (name, _), version in last.items() if name == task)
        best = max(versions, key=lambda version: (len(versions[version]), newest[version]))
        chosen[task] = best
        for version, names in versions.items():
            if version != best:
                left[f"version {version} of {_listed(list(names))}; shown is version {best}"].append(task)
    lines = [f"{_listed(tasks)}: {why}" for why, tasks in left.items()]
    return [value for value in values if value.version == chosen[value.task]], lines


def _listed(names: Sequence[str]) -> str:
    """Up to four names, or the first and how many more there are."""
    return ", ".join(names) if len(names) <= 4 else f"{names[0]} and {len(names) - 1} others"


def _mean_of(
    values: Sequence[Evaluation], name: str, parts: Mapping[str, Sequence[str]]
) -> tuple[list[Evaluation], list[str]]:
    """The mean over `parts`, metrics by task, at every checkpoint that has all of them on whole sets.

    Errors of tasks are independent; those of the metrics of one task are on the same samples and add up.
    """
    wanted = {(task, metric) for task, metrics in parts.items() for metric in metrics}
    mine = [value for value in values if value.suite == name and (plain_name(value.task), value.metric) in wanted]
    partial = sorted({value.task for value in mine if "-first" in value.version})
    lacking = sorted(set(parts) - {plain_name(value.task) for value in mine})
    if not mine:
        return [], []
    if partial or lacking:
        why = f"{', '.join(partial)} on the first records alone" if partial else f"{', '.join(lacking)} not measured"
        return [], [f"mean of {name}: {why}"]
    checkpoints: dict[tuple[str, int], dict[tuple[str, str], Evaluation]] = defaultdict(dict)
    for value in mine:
        checkpoints[value.run.name, value.step][plain_name(value.task), value.metric] = value
    means = []
    for found in checkpoints.values():
        if set(found) != wanted:
            continue
        known = all(value.se is not None for value in found.values())
        errors = [sum(found[task, metric].se or 0.0 for metric in metrics) for task, metrics in parts.items()]
        mean = math.fsum(value.value for value in found.values()) / len(wanted)
        means.append(
            replace(next(iter(found.values())), task=name, version="of its tasks", metric=f"mean of {len(wanted)}",
                    value=mean, se=math.hypot(*errors) / len(wanted) if known else None, count=None)
        )  # fmt: skip
    return means, []


def _finite(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)
