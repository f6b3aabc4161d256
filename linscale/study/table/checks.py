"""What is wrong with the points themselves, whatever law they are fitted with: named warnings that name rows."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from linscale.study.table.columns import is_definition
from linscale.study.table.group import Group, warning
from linscale.study.table.points import ROWS_SHOWN

Array = np.ndarray
HIGHEST_LOSS = 14.0  # nats: ln of a vocabulary of 1.2 million
FLOPS_RATIO = 10.0
TOY_RATIO = 1e3  # attention alone is most of a toy's FLOPs
FEWEST = {"n": (1e3, "parameters"), "d": (1e5, "tokens"), "c": (1e9, "FLOPs")}
"""Below these a column is hardly in ones."""
CONSTANT = re.compile(r"constant|const|none|null|stable", re.I)
TRUE, FALSE = re.compile(r"true|1|1\.0|yes", re.I), re.compile(r"false|0|0\.0|no", re.I)


def point_warnings(group: Group) -> list[dict[str, str]]:
    """Of points that repeat, whose units cannot be right, or whose losses do not compare."""
    checks = (_duplicates, _high_loss, _other_units, _bits, _flops_differ, _mixed_schedules)
    return [found for check in checks for found in check(group)]


def _duplicates(group: Group) -> Iterator[dict[str, str]]:
    table = np.array(list(group.numbers.values())).T
    _, first, counts = np.unique(table, axis=0, return_index=True, return_counts=True)
    if (counts > 1).any():
        again = np.setdiff1d(np.arange(len(group.rows)), first)
        yield warning("duplicates", "rows that repeat an earlier one count twice", shown_rows(group.rows[again]))


def _high_loss(group: Group) -> Iterator[dict[str, str]]:
    """A model that knows nothing but the vocabulary has a loss of its logarithm."""
    if "loss" not in group.numbers:
        return
    loss = group.numbers["loss"]
    known = "vocab_size" in group.numbers
    highest = np.log(group.numbers["vocab_size"]) if known else np.full(loss.shape, HIGHEST_LOSS)
    if (loss > highest).any():
        of = "the table's vocab_size" if known else "any vocabulary"
        text = f"a loss above the logarithm of {of}: not nats per token, or diverged"
        yield warning("high_loss", text, shown_rows(group.rows[loss > highest]))


def _other_units(group: Group) -> Iterator[dict[str, str]]:
    """Values too small for ones, but where a column of FLOPs agrees with both others: then they are toys."""
    agree = np.zeros(len(group.rows), dtype=bool)
    if {"n", "d", "c"} <= set(group.numbers) and not is_definition("c", group.columns.get("c", "")):
        agree = np.abs(np.log(_ratio(group))) < np.log(TOY_RATIO)
    for role, (least, unit) in FEWEST.items():
        small = ~agree & (group.numbers[role] < least) if role in group.numbers else np.zeros(0, dtype=bool)
        if small.any() and not is_definition(role, group.columns.get(role, "")):
            name = group.columns.get(role, role)
            text = f"{name} below {least:g} {unit}: in thousands, millions, billions or PFLOP/s-days? Laws take ones"
            yield warning("units", text, shown_rows(group.rows[small]))


def _bits(group: Group) -> Iterator[dict[str, str]]:
    """The unit of a loss cannot be seen in its values, but in its column's name, and where it equals bits per byte."""
    if "loss" not in group.numbers:
        return
    name = group.columns.get("loss", "loss")
    if re.search(r"bpb|bits|bpc|perplexity|ppl", name, re.I):
        text = f"{name} is the loss: its name says another unit than nats per token"
        yield warning("loss_units", text)
    if "bpb" in group.numbers and group.columns.get("bpb") != name:
        same = np.isclose(group.numbers["loss"], group.numbers["bpb"], rtol=1e-6)
        if same.any():
            text = "the loss is the same number as bits per byte: one of them is in the other's unit"
            yield warning("loss_units", text, shown_rows(group.rows[same]))


def _flops_differ(group: Group) -> Iterator[dict[str, str]]:
    if not {"n", "d", "c"} <= set(group.numbers) or group.columns.get("c") == "6nd":
        return
    far = np.abs(np.log(_ratio(group))) > np.log(FLOPS_RATIO)
    if far.any():
        text = "c differs from 6 n d by more than a factor of ten: other units?"
        yield warning("flops_differ", text, shown_rows(group.rows[far]))


def _ratio(group: Group) -> Array:
    """(m,) C over 6 N D."""
    return np.asarray(group.numbers["c"] / (6 * group.numbers["n"] * group.numbers["d"]))


def _mixed_schedules(group: Group) -> Iterator[dict[str, str]]:
    """Losses before a learning rate has decayed are higher than after, by more than laws resolve."""
    kinds = group.labels.get("schedule", np.full(len(group.rows), ""))
    decays = np.array([not CONSTANT.fullmatch(kind) for kind in kinds.tolist()], dtype=bool)
    early = _not_last(group) & decays
    if early.any():
        text = (
            "checkpoints before the end of their run: where the learning rate decays, their losses do not compare with "
            "final ones; keep those alone, as in --where final, or have a column schedule that says constant"
        )
        yield warning("mixed_schedules", text, shown_rows(group.rows[early]))
    names = sorted(set(kinds.tolist()))
    if len(names) > 1 and not early.any():
        text = "points of several learning-rate schedules in one law: group by schedule, or choose one with --where"
        yield warning("mixed_schedules", text, names[:ROWS_SHOWN])


def _not_last(group: Group) -> Array:
    """(m,) whether a point is not the end of its run: said by `final`, else where the run has more tokens elsewhere."""
    if "final" in group.labels:
        words = group.labels["final"].tolist()
        early = np.array([bool(FALSE.fullmatch(each)) for each in words])
        if early.any() or any(TRUE.fullmatch(each) for each in words):
            return early
    if "run" not in group.labels or "d" not in group.numbers:
        return np.zeros(len(group.rows), dtype=bool)
    _, run = np.unique(group.labels["run"], return_inverse=True)
    most = np.zeros(run.max(initial=-1) + 1)
    np.maximum.at(most, run, group.numbers["d"])
    return np.asarray(group.numbers["d"] < most[run] * (1 - 1e-9))


def shown_rows(rows: Array) -> list[str]:
    """The first of some rows' numbers, and how many more there are."""
    shown = [f"row {row}" for row in rows[:ROWS_SHOWN]]
    return shown + ([f"{len(rows) - ROWS_SHOWN} more"] if len(rows) > ROWS_SHOWN else [])
