"""What a fit says when one choice is changed, as tables: other losses and definitions, other ways to find a minimum."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from linscale.study.report.digest import display_name
from linscale.study.report.sections import MISSING, number, table


def sensitivity(result: Mapping[str, Any]) -> str:
    """All tables of a fit, with a heading; empty where it has none."""
    tables = [_choices(result["sensitivity"])] if result.get("sensitivity") else []
    for group in result["groups"]:
        if group.get("sensitivity"):
            tables.append(_ways(display_name(group["group"]), group["sensitivity"]))
    if not tables:
        return ""
    heading = '<h2 id="sensitivity-title">If one choice is changed</h2>'
    return f'<section aria-labelledby="sensitivity-title">{heading}{"".join(tables)}</section>'


def _choices(entries: list[Mapping[str, Any]]) -> str:
    """The table of `--sensitivity`: a row a group and changed choice, with intervals."""
    names = list(dict.fromkeys(name for entry in entries for name in entry.get("parameters") or {}))
    rows = []
    for entry in entries:
        head = f'<th scope="row">{escape(str(entry["changed"]))}</th><td class="text">{escape(_group(entry))}</td>'
        if entry.get("refused"):
            rows.append(f'<tr>{head}<td class="reason" colspan="{len(names) + 1}">{escape(entry["refused"])}</td></tr>')
            continue
        cells = "".join(f"<td>{_interval((entry.get('parameters') or {}).get(name))}</td>" for name in names)
        rows.append(f"<tr>{head}<td>{entry['points_used']}</td>{cells}</tr>")
    head = '<th scope="col">changed</th><th scope="col" class="text">group</th><th scope="col">points</th>'
    head += "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    caption = "The same fit with one choice changed at a time, and 95% intervals under each value."
    return table(caption, f"<tr>{head}</tr>", f"<tbody>{''.join(rows)}</tbody>", "If one choice is changed")


def _ways(group: str, rows: list[Mapping[str, Any]]) -> str:
    """A group's own table: the first column is what was changed."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    body = "".join(
        f'<tr><th scope="row">{_cell(row.get(names[0]))}</th>'
        + "".join(f"<td>{_cell(row.get(name))}</td>" for name in names[1:])
        + "</tr>"
        for row in rows
    )
    head = "".join(f'<th scope="col">{escape(name.replace("_", " "))}</th>' for name in names)
    label = f"{group}: if {names[0]} is changed"
    return table(f"{escape(group)}.", f"<tr>{head}</tr>", f"<tbody>{body}</tbody>", escape(label, quote=True))


def _group(entry: Mapping[str, Any]) -> str:
    return display_name(str(entry.get("group", "")))


def _interval(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return MISSING
    ends = "" if row.get("low") is None else f"<small>{number(row['low'])} to {number(row['high'])}</small>"
    return f"{number(row['value'])}{ends}"


def _cell(value: object) -> str:
    if value is None:
        return MISSING
    return number(value, 4) if isinstance(value, (int, float)) else escape(str(value))
