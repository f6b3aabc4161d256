"""The written parts of the page of a fit: parameters, starts, rows left out, provenance. All text is escaped here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from linscale.run_folder import code_version
from linscale.study.laws import PAPER_LAWS
from linscale.study.report.digest import display_name
from linscale.study.report.sections import MISSING, number, table

NO_COMPUTE = ("sigmoid", "pac")  # laws that say nothing of it
ROWS_SHOWN = 200  # numbers of rows listed under one rule
Group = Mapping[str, Any]


def lead(result: Mapping[str, Any]) -> str:
    """What was fitted to how much, in HTML."""
    groups = result["groups"]
    points = sum(group["points_used"] for group in groups)
    formulas = "".join(
        f"<br><code>{escape(text)}</code>" for text in dict.fromkeys(group["formula"] for group in groups)
    )
    count = f"{len(groups)} groups, {points} points" if len(groups) > 1 else f"{points} points"
    return f"<p>{count} of <code>{escape(Path(str(result['source'])).name)}</code>.{formulas}</p>"


def notes(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Warnings and refusals as (name, concerned, text), each text once."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for group in result["groups"]:
        for found in group["warnings"]:
            detail = f" ({found['detail']})" if found["detail"] else ""
            grouped.setdefault((found["name"], found["text"]), []).append(display_name(group["group"]) + detail)
    for item in result["refused"]:
        grouped.setdefault(("not fitted", item["reason"]), []).append(display_name(item["group"]))
    return [(name, "; ".join(concerned), text) for (name, text), concerned in grouped.items()]


def parameters(groups: Sequence[Group]) -> str:
    """A row a parameter: value, standard error, intervals, verdict, and the paper's where it has one."""
    paper = any(_paper(group, name) for group in groups for name in _rows(group))
    profile = any(row.get("profile") for group in groups for row in group["parameters"].values())
    columns = ["value", "standard error", "95% interval"]
    columns += ["profile interval"] * profile + ["verdict"] + ["published"] * paper
    bodies = []
    for group in groups:
        head = f'<tr><th scope="rowgroup" colspan="{len(columns) + 1}">{escape(display_name(group["group"]))}</th></tr>'
        rows = [_parameter(group, name, row, profile=profile, paper=paper) for name, row in _rows(group).items()]
        bodies.append(f"<tbody>{head}{''.join(rows)}</tbody>")
    headings = "".join(
        f'<th scope="col"{" class=text" if name == "verdict" else ""}>{name}</th>' for name in ("parameter", *columns)
    )
    caption = "The 95% interval is over resamples, the profile interval of the likelihood with all others fitted anew."
    if paper:
        caption += " Published: Shen et al. 2024, another corpus and vocabulary: only exponents compare."
    verdicts = "".join(
        f"<p>{escape(display_name(group['group']))}: {escape(str(group['verdict']))}.</p>"
        for group in groups
        if group.get("verdict")
    )
    return table(caption, f"<tr>{headings}</tr>", "".join(bodies), "Parameters") + verdicts


def minimum(groups: Sequence[Group]) -> str:
    """Objectives, starts and resamples of every group."""
    rows = []
    for group in groups:
        starts, other, boot = (group.get(name) for name in ("starts", "classical", "bootstrap"))
        value = group["objective"]["value"]
        cells = [
            str(group["points_used"]),
            ", ".join(number(each, 5) for each in value) if isinstance(value, list) else number(value, 5),
            f"{starts['agree']} of {starts['tried']}" if starts else MISSING,
            f"{number(other['value'], 5)}<small>{other['agree']} of {other['tried']}</small>" if other else MISSING,
            f"{boot['replicates']}<small>{_resampled(boot)}</small>" if boot and boot["replicates"] else MISSING,
        ]
        name = f'<th scope="row">{escape(display_name(group["group"]))}</th>'
        rows.append(f"<tr>{name}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    names = ("group", "points", "objective", "starts that agree", "L-BFGS-B", "resamples")
    objectives = "; ".join(dict.fromkeys(str(group["objective"]["name"]) for group in groups))
    caption = (
        f"Objective: {escape(objectives)}. Starts agree when they end within 0.01% of the best; L-BFGS-B is the same "
        "objective minimised in the classical way, and how many of its starts agree."
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return table(caption, f"<tr>{head}</tr>", f"<tbody>{''.join(rows)}</tbody>", "How sure the minimum is")


def dropped(result: Mapping[str, Any]) -> str:
    """Rows left out, by the rule that did it."""
    found: dict[tuple[str, str], list[str]] = {}
    for item in result["dropped"]:
        found.setdefault(("", item["rule"]), []).append(str(item.get("row", item.get("count", ""))))
    for group in result["groups"]:
        for item in group["dropped"]:
            key = (display_name(group["group"]), item["rule"])
            found.setdefault(key, []).append(str(item.get("row", item.get("count", ""))))
    if not found:
        return "<p>Every row of the table is used.</p>"
    lines = []
    for (group, rule), rows in found.items():
        more = f" and {len(rows) - ROWS_SHOWN} more" if len(rows) > ROWS_SHOWN else ""
        of = f"{escape(group)}, " if group else ""
        lines.append(
            f"<li>{of}<code>{escape(rule)}</code>: {len(rows)} left out"
            f"<details><summary>Rows</summary>{escape(', '.join(rows[:ROWS_SHOWN]))}{more}</details></li>"
        )
    return f"<p>Rows are counted from 1, without the header.</p><ul>{''.join(lines)}</ul>"


def provenance(result: Mapping[str, Any], digest: str | None) -> str:
    """Where the numbers come from, as a description list; `digest` is the SHA-256 of the table."""
    columns = ", ".join(f"{role} = {name}" for role, name in result["columns"].items())
    settings = ", ".join(f"{name} = {value}" for name, value in result["settings"].items() if value is not None)
    laws = ", ".join(dict.fromkeys(str(group["law"]) for group in result["groups"]))
    rows = [
        ("Table", f"<code>{escape(Path(str(result['source'])).name)}</code>"),
        (
            "SHA-256",
            f"<code>{digest}</code>"
            if digest
            else "none: the source is not one file that was there when this was written",
        ),
        ("Columns", f"<code>{escape(columns)}</code>"),
        *([] if laws in NO_COMPUTE else [("Compute", _compute(result))]),
        *([("Definitions", _definitions(result["definitions"]))] if result.get("definitions") else []),
        *([("Notes", escape("; ".join(map(str, result["notes"]))))] if result.get("notes") else []),
        ("Law", escape(laws)),
        ("Settings", f"<code>{escape(settings)}</code>"),
        ("Units", escape("; ".join(f"{name}: {text}" for name, text in result["units"].items()))),
        ("Written by", f"<code>linscale {escape(code_version())}</code>"),
    ]
    return '<dl class="provenance">' + "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows) + "</dl>"


def _compute(result: Mapping[str, Any]) -> str:
    """The definition of FLOPs, in words."""
    said = [group["compute"] for group in result["groups"] if group.get("compute")]
    if said:
        texts = dict.fromkeys(f"{each['definition']}: {each['formula']}" for each in said)
        return f"{escape('; '.join(texts))}; 1 PFLOP/s-day = 8.64 × 10<sup>19</sup> FLOPs"
    defined = result["columns"].get("c")
    if defined is None:
        return "no FLOPs are read; where figures and N<sub>opt</sub> need compute, C = 6 N D"
    definition = "C = 6 N D" if defined == "6nd" else f"<code>{escape(str(defined))}</code>"
    return f"{definition}; 1 PFLOP/s-day = 8.64 × 10<sup>19</sup> FLOPs"


def _definitions(definitions: Mapping[str, str]) -> str:
    return escape("; ".join(f"{role}: {formula}" for role, formula in definitions.items()))


def _rows(group: Group) -> dict[str, Mapping[str, Any]]:
    """Parameters and what is derived of them, each number once."""
    derived = {name: row for name, row in group.get("derived", {}).items() if name != "a"}
    return {**group["parameters"], **derived}


def _parameter(group: Group, name: str, row: Mapping[str, Any], *, profile: bool, paper: bool) -> str:
    cells = [
        number(row["value"], 4),
        MISSING if row["se"] is None else number(row["se"], 2),
        _ends(row["low"], row["high"]),
    ]
    if profile:
        cells.append(_ends(*(row.get("profile") or (None, None)), either=True) if row.get("profile") else MISSING)
    text = f"<td>{'</td><td>'.join(cells)}</td>"
    text += f'<td class="text">{_verdict(row)}</td>'
    if paper:
        known = _paper(group, name)
        text += f"<td>{MISSING if known is None else number(known, 4)}</td>"
    return f'<tr><th scope="row"><code>{escape(name)}</code></th>{text}</tr>'


def _verdict(row: Mapping[str, Any]) -> str:
    if "at_bound" not in row:
        return "derived"
    if row["at_bound"]:
        return "<strong>on its bound</strong>"
    return "identified" if row["identified"] else "<strong>not identified</strong>"


def _ends(low: float | None, high: float | None, *, either: bool = False) -> str:
    if low is None and high is None:
        return "open" if either else MISSING
    lower, upper = ("open" if end is None else number(end, 4) for end in (low, high))
    return f"{lower} to {upper}"


def _paper(group: Group, name: str) -> float | None:
    value = getattr(PAPER_LAWS.get(group["group"]), name, None)
    return None if value is None else float(value)


def _resampled(boot: Mapping[str, Any]) -> str:
    if "by" not in boot:
        return "of runs"
    return f"of {boot['units']} {escape(str(boot['by']))}s"
