"""How a law moves with what was chosen: rows left out, the loss function, and how parameters and FLOPs are counted.

Each line is the same fit with one choice changed. A conclusion that does not survive its neighbours is not one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from linscale.config import UserError
from linscale.study.sources.read import Source
from linscale.study.table.columns import Chooser
from linscale.study.table.compute import compute_of, optima
from linscale.study.table.definitions import DEFINITIONS
from linscale.study.table.fit import TABLE_LAWS, fit_points
from linscale.study.table.group import PointFit, select
from linscale.study.table.points import Points, read_points
from linscale.study.table.surface_fit import Loss

REPLICATES = 200
LOSSES = ("huber:1e-3", "l2", "lad")


@dataclass(frozen=True)
class Choices:
    """What a table was read and fitted with."""

    columns: Mapping[str, str]
    group: tuple[str, ...]
    where: str
    settings: PointFit


def sensitivity(source: Source, choices: Choices) -> list[dict[str, Any]]:
    """One entry a group and changed choice: `changed`, `points_used`, and `parameters` with value, low and high.

    The first is the fit as it was asked for. A fit that does not come about has `refused`, its reason.
    """
    few = replace(choices.settings, bootstrap=min(choices.settings.bootstrap, REPLICATES))
    choices = replace(choices, settings=few)
    base = _fit(source, choices)
    found = _entries("nothing", base)
    for changed, each in _variants(source, choices):
        try:
            found += _entries(changed, _fit(source, each))
        except UserError as error:
            found.append({"changed": changed, "refused": str(error)})
    for name in _countings(source, choices, "c") if "c" not in TABLE_LAWS[few.law].roles else ():
        counted = replace(choices, columns={**choices.columns, "c": name})
        try:
            found += _entries(f"c = {name}", {**base, "groups": _recounted(source, counted, base["groups"])})
        except UserError as error:
            found.append({"changed": f"c = {name}", "refused": str(error)})
    return found


def _fit(source: Source, choices: Choices) -> dict[str, Any]:
    return fit_points(_points(source, choices), choices.settings)


def _points(source: Source, choices: Choices, more: tuple[str, ...] = ()) -> Points:
    law = TABLE_LAWS[choices.settings.law]
    return read_points(
        source,
        columns=choices.columns,
        needed=(*law.roles, *more),
        optional=law.optional,
        group=choices.group,
        where=choices.where,
    )


def _recounted(source: Source, choices: Choices, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fitted groups with N_opt and D_opt under another count of FLOPs, which the rest of the law does not read."""
    points = _points(source, choices, ("c",))
    found = []
    for fitted in groups:
        if {"A", "B", "alpha", "beta"} <= set(fitted["parameters"]) and "n_opt_exponent" in fitted.get("derived", {}):
            group, _ = select(points, fitted["group"], choices.settings.drop)
            table = {
                name: np.array([fitted["parameters"][name]["value"], *fitted["draws"][name]])
                for name in ("A", "B", "alpha", "beta")
            }
            stretch = fitted["bootstrap"]["prediction_stretch"]
            found.append({**fitted, "derived": optima(table, compute_of(group), stretch)})
    return found


def _variants(source: Source, choices: Choices) -> Iterator[tuple[str, Choices]]:
    """What is changed in words, and the choices with it, where the law is fitted anew."""
    if choices.where:
        yield "without --where", replace(choices, where="")
    settings = choices.settings
    if settings.drop[1]:
        yield "without --drop", replace(choices, settings=replace(settings, drop=("highest", 0)))
    for text in LOSSES if TABLE_LAWS[settings.law].reads_loss else ():
        loss = Loss.parse(text, settings.loss.space)
        if str(loss) != str(settings.loss):
            yield f"--loss {text}", replace(choices, settings=replace(settings, loss=loss))
    for role in ("c", "n"):
        if role in TABLE_LAWS[settings.law].roles:
            for name in _countings(source, choices, role):
                yield f"{role} = {name}", replace(choices, columns={**choices.columns, role: name})


def _countings(source: Source, choices: Choices, role: str) -> Iterator[str]:
    """Columns and definitions that the table allows for a role, but the one in use."""
    needed = TABLE_LAWS[choices.settings.law].roles
    chooser = Chooser(str(source.path), source.names, choices.columns)
    in_use = choices.columns.get(role) or chooser.find(role)
    if role == "c" and "c" not in needed and "c" not in choices.columns:
        in_use = "6nd"  # what N_opt and D_opt are computed with where no column was named
    column = Chooser(str(source.path), source.names, {}).find(role)
    others = [chooser.find(other) for other in (("n_body", "n_total") if role == "n" else ())]
    for name in dict.fromkeys([column, *others, *DEFINITIONS[role]]):
        if name is None or name == in_use:
            continue
        try:
            Chooser(str(source.path), source.names, {**choices.columns, role: name}).choose(needed, {role: name})
        except UserError:
            continue
        yield name


def _entries(changed: str, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    fitted = [_entry(changed, group) for group in result["groups"]]
    return fitted + [{"changed": changed, "group": one["group"], "refused": one["reason"]} for one in result["refused"]]


def _entry(changed: str, fitted: Mapping[str, Any]) -> dict[str, Any]:
    """Exponents and levels of one fit: coefficients have units that move with the exponents, and are left out."""
    table = {**fitted["parameters"], **fitted.get("derived", {})}
    kept = {name: each for name, each in table.items() if name not in ("a", "A", "B") and "coefficient" not in name}
    return {
        "changed": changed,
        "group": fitted["group"],
        "points_used": fitted["points_used"],
        "parameters": {name: {key: each[key] for key in ("value", "low", "high")} for name, each in kept.items()},
    }
