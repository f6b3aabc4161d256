"""Linear against softmax, side by side: runs of one size, or checkpoints of equal compute, and their differences."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from linscale.study.evaluations import Evaluation

BASELINE = "llama"  # softmax attention, what the others are compared with
BEYOND = 1.96  # standard errors: what chance alone exceeds once in twenty differences
NEAR = 1.1  # ratio of compute up to which two checkpoints are taken as equal

Members: TypeAlias = dict[str, list[Evaluation]]
"""Values of one task and metric by architecture, more than one where several seeds were trained."""


@dataclass(frozen=True)
class Entry:
    """The value of an architecture, and how it differs from the baseline's."""

    like: Evaluation
    """Any of the values that were averaged: its run, tokens and compute."""
    runs: tuple[str, ...]
    value: float
    """A mean where several seeds were trained."""
    se: float | None
    difference: float | None
    """Value minus the baseline's; None for the baseline itself and where it has no value."""
    difference_se: float | None
    """Of the difference, as if the two were measured on other samples; None where one has no standard error."""

    @property
    def arch(self) -> str:
        return self.like.run.arch

    @property
    def differs(self) -> bool:
        """Whether the difference exceeds 1.96 of its standard errors."""
        if self.difference is None or self.difference_se is None:
            return False
        return abs(self.difference) > BEYOND * self.difference_se


@dataclass(frozen=True)
class Row:
    """One metric of one task after as many tokens, or as much compute, for all."""

    entries: tuple[Entry, ...]
    """By architecture, the baseline first."""

    @property
    def like(self) -> Evaluation:
        """Any of the values: its task and metric."""
        return self.entries[0].like


@dataclass(frozen=True)
class Comparison:
    """The metrics of models that are alike."""

    size: str | None
    """Label of the size that they share; None where they share the compute alone."""
    rows: tuple[Row, ...]

    @property
    def runs(self) -> dict[str, Evaluation]:
        """By architecture a value that is compared: its parameters, tokens and compute. The baseline first."""
        found: dict[str, Evaluation] = {}
        for entry in sorted((e for row in self.rows for e in row.entries), key=lambda e: (e.arch != BASELINE, e.arch)):
            found.setdefault(entry.arch, entry.like)
        return found


def comparisons(values: Iterable[Evaluation]) -> list[Comparison]:
    """Every size with its metrics, the largest first.

    Where no size of the baseline is another architecture's, its last checkpoints are compared with those of the others
    that spent as much compute, within 10%. Without a baseline there are values but no differences.
    """
    shown = [value for value in values if not value.is_detail]
    sizes: dict[str, list[Evaluation]] = defaultdict(list)
    for value in shown:
        sizes[value.run.size].append(value)
    archs = {size: {value.run.arch for value in members} for size, members in sizes.items()}
    everyone = {value.run.arch for value in shown}
    if len(everyone) > 1 and BASELINE in everyone and not any(len(a) > 1 and BASELINE in a for a in archs.values()):
        found = _by_compute(shown)
    else:
        found = [Comparison(size, tuple(_rows(members))) for size, members in sizes.items()]
    return sorted(found, key=lambda comparison: -max(like.run.params for like in comparison.runs.values()))


def _rows(values: Sequence[Evaluation]) -> Iterable[Row]:
    """A row a metric, at the last tokens at which most architectures, and the baseline where it is there, have it."""
    for members in _by_metric(values):
        at: dict[float, Members] = defaultdict(lambda: defaultdict(list))
        for value in members:
            at[value.tokens][value.run.arch].append(value)
        yield _row(at[max(at, key=lambda tokens: (BASELINE in at[tokens], len(at[tokens]), tokens))])


def _by_compute(values: Sequence[Evaluation]) -> list[Comparison]:
    """One comparison a run of the baseline, with the nearest checkpoint of each other architecture."""
    runs = dict.fromkeys(value.run for value in values if value.run.arch == BASELINE)
    found = []
    for run in runs:
        rows = []
        for members in _by_metric(values):
            mine = [value for value in members if value.run == run]
            if not mine:
                continue
            last = max(mine, key=lambda value: value.step)
            row: Members = {BASELINE: [last]}
            for arch in sorted({value.run.arch for value in members} - {BASELINE}):
                others = [value for value in members if value.run.arch == arch]
                nearest = min(others, key=lambda value: _apart(value, last))
                if _apart(nearest, last) <= math.log(NEAR):
                    row[arch] = [nearest]
            rows.append(_row(row))
        found.append(Comparison(None, tuple(rows)))
    return found


def _apart(one: Evaluation, other: Evaluation) -> float:
    """Ratio of compute, as a logarithm."""
    return abs(math.log(one.flops / other.flops))


def _by_metric(values: Sequence[Evaluation]) -> Iterable[list[Evaluation]]:
    groups: dict[tuple[str, str], list[Evaluation]] = defaultdict(list)
    for value in values:
        groups[value.task, value.metric].append(value)
    return groups.values()


def _row(members: Members) -> Row:
    baseline = _mean(members[BASELINE]) if BASELINE in members else None
    entries = []
    for arch, values in sorted(members.items(), key=lambda item: (item[0] != BASELINE, item[0])):
        value, se = _mean(values)
        difference = difference_se = None
        if baseline is not None and arch != BASELINE:
            difference = value - baseline[0]
            if se is not None and baseline[1] is not None:
                difference_se = math.hypot(se, baseline[1])
        runs = tuple(sorted(value.run.name for value in values))
        entries.append(Entry(values[0], runs, value, se, difference, difference_se))
    return Row(tuple(entries))


def _mean(values: Sequence[Evaluation]) -> tuple[float, float | None]:
    """Mean over seeds and its standard error: that over samples, which the seeds share, and that between seeds."""
    count = len(values)
    mean = math.fsum(value.value for value in values) / count
    errors = [value.se for value in values if value.se is not None]
    if len(errors) < count:
        return mean, None
    if count == 1:
        return mean, errors[0]
    between = math.fsum((value.value - mean) ** 2 for value in values) / (count - 1) / count
    return mean, math.sqrt(math.fsum(se**2 for se in errors) / count + between)
