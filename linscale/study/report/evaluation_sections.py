"""The written parts of the evaluation pages: their frame, the tables side by side, what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from linscale.config import human
from linscale.study.comparison import BASELINE, BEYOND, Comparison, Entry, Row, comparisons
from linscale.study.evaluations import Evaluations
from linscale.study.laws import PFLOP_S_DAY
from linscale.study.report.digest import display_name
from linscale.study.report.evaluation_digest import rounded
from linscale.study.report.sections import MISSING, number, table
from linscale.study.suites import SUITES

DOWN = ' <span title="lower is better">↓</span>'


def evaluation_section(found: Evaluations, figures: dict[str, Any]) -> str:
    """Everything about what `linscale evaluate` measured; empty when it measured nothing."""
    if not found.values:
        return ""
    curves = any(g["curves"] for s in figures["suites"] for m in s["metrics"] for p in m["panels"] for g in p["groups"])
    box = '<label class="pick"><input type="checkbox" id="every-checkpoint"> Every checkpoint</label>' if curves else ""
    parts = [
        '<section class="evaluations" aria-labelledby="evaluations-title">',
        '<h2 id="evaluations-title">Evaluations</h2>',
        "<p>Marks are the last checkpoint of a run that was measured, bars 1.96 standard errors to either side: the "
        "chance of other questions, not of another seed. ↓: lower is better.</p>",
        _left_out(found.left_out),
        '<div class="figures">',
        f'<fieldset class="groups"><legend>Show</legend></fieldset>{box}',
        *(_suite(suite) for suite in figures["suites"]),
        _positions(figures["positions"]),
        _needles(figures["needles"]),
        "</div>",
        _side_by_side(comparisons(found.values)),
        _versions(found),
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def _suite(suite: dict[str, Any]) -> str:
    """A place for the panels of one suite, with a choice of metric where there are several."""
    name = suite["id"]
    options = "".join(f"<option>{escape(item['metric'])}</option>" for item in suite["metrics"])
    select = f'<select aria-label="Metric, {SUITES[name]}">{options}</select>'
    pick = f'<label class="pick">Metric {select}</label>' if len(suite["metrics"]) > 1 else ""
    return (
        f'<section id="suite-{name}" aria-labelledby="suite-{name}-title">'
        f'<h3 id="suite-{name}-title">{SUITES[name]}</h3>{pick}<figure class="holder"></figure></section>'
    )


def _positions(texts: Sequence[dict[str, Any]]) -> str:
    if not texts:
        return ""
    curves = [(text["task"], curve) for text in texts for panel in text["panels"] for curve in panel["curves"]]
    firsts = sorted({place for _, curve in curves for place in curve["first"]})
    rows = []
    for task, curve in curves:
        known = dict(zip(curve["first"], zip(curve["y"], curve["error"], strict=True), strict=True))
        cells = "".join(f"<td>{_with_error(*known[place]) if place in known else MISSING}</td>" for place in firsts)
        rows.append(_named_row(f"{task}, {curve['run']}", cells))
    return _maps(
        "positions",
        "Loss by position",
        texts,
        "Mean loss at the places of a window, in octaves. Dashed: the length of training sequences. Double-click for "
        "the whole range, the first places included.",
        _folded(
            "Loss by position in numbers",
            "Nats per token at the places N to 2N − 1 of a window, ± 1.96 standard errors.",
            "Text, run",
            [f"from {human(place)}" for place in firsts],
            rows,
        ),
    )


def _needles(modes: Sequence[dict[str, Any]]) -> str:
    if not modes:
        return ""
    maps = [(mode["task"], item) for mode in modes for item in mode["panels"]]
    lengths = sorted({length for _, item in maps for length in item["lengths"]})
    rows = []
    for task, item in maps:
        columns = zip(*item["z"], strict=True)
        means = {length: sum(column) / len(column) for length, column in zip(item["lengths"], columns, strict=True)}
        cells = "".join(f"<td>{f'{means[n]:.2f}' if n in means else MISSING}</td>" for n in lengths)
        rows.append(_named_row(f"{task}, {item['run']}", cells))
    return _maps(
        "needles",
        "Needles by length and depth",
        modes,
        "Accuracy of finding a needle at each length of text and depth in it, at the last checkpoint of every run: "
        '<span class="scale">0<i></i>1</span>. Behind the upright line are lengths beyond those of training.',
        _folded(
            "Accuracy by length in numbers",
            "Mean accuracy over all depths, by length of the text in tokens.",
            "Task, run",
            [human(length) for length in lengths],
            rows,
        ),
    )


def _maps(name: str, heading: str, figures: Sequence[dict[str, Any]], caption: str, numbers: str) -> str:
    """A figure of panels a task, and their numbers folded away."""
    shown = "".join(f'<h4>{escape(figure["title"])}</h4><div class="holder"></div>' for figure in figures)
    return (
        f'<section id="{name}" aria-labelledby="{name}-title"><h3 id="{name}-title">{heading}</h3>'
        f"<figure>{shown}<figcaption>{caption}</figcaption></figure>{numbers}</section>"
    )


def _side_by_side(compared: Sequence[Comparison]) -> str:
    """A table a size, the largest open."""
    differences = sum(e.difference_se is not None for c in compared for row in c.rows for e in row.entries)
    differ = sum(entry.differs for c in compared for row in c.rows for entry in row.entries)
    heading, text = "Values by size", ""
    if any(len(row.entries) > 1 and row.entries[0].arch == BASELINE for c in compared for row in c.rows):
        heading = "Linear against softmax, side by side"
        text = (
            f"<p>Under each value its difference from {display_name(BASELINE)} ± one standard error, as if the two "
            f"had been asked other questions; bold with an asterisk where it exceeds {BEYOND} of them. {differ} of "
            f"{differences} differences do, of which chance alone would make about {0.05 * differences:.0f}.</p>"
        )
    tables = "".join(_comparison(each, first=place == 0) for place, each in enumerate(compared))
    return (
        f'<section aria-labelledby="side-by-side-title"><h3 id="side-by-side-title">{heading}</h3>'
        f"{text}{tables}</section>"
    )


def _comparison(compared: Comparison, *, first: bool) -> str:
    runs = compared.runs
    what = f"Size {compared.size}" if compared.size else "Equal compute"
    archs = list(runs)
    head = "".join(
        f'<th scope="col">{escape(display_name(arch))}<small>{human(like.run.params)} parameters</small></th>'
        for arch, like in runs.items()
    )
    groups: dict[str, list[Row]] = {}
    for row in compared.rows:
        groups.setdefault(row.like.suite, []).append(row)
    tokens = {row.like.tokens for row in compared.rows}
    bodies = [
        f"<tbody>{''.join(_row(row, archs, tell_tokens=len(tokens) > 1) for row in groups[suite])}</tbody>"
        for suite in SUITES
        if suite in groups
    ]
    spent = number(max(like.flops for like in runs.values()) / PFLOP_S_DAY, 2)
    caption = f"Up to C = {spent} PFLOP/s-days; every row is after "
    caption += (
        f"as many tokens for all{f', {human(tokens.pop())}' if len(tokens) == 1 else ''}."
        if compared.size
        else ("as much compute for all, within 10%.")
    )
    columns = f'<tr><th scope="col">Task, metric</th>{head}</tr>'
    opened = " open" if first else ""
    return (
        f"<details{opened}><summary>{escape(what)}</summary>{table(caption, columns, ''.join(bodies), what)}</details>"
    )


def _row(row: Row, archs: Sequence[str], *, tell_tokens: bool) -> str:
    entries = {entry.arch: entry for entry in row.entries}
    like = row.like
    at = f", {human(like.tokens)} tokens" if tell_tokens else ""
    name = f"{escape(like.task)} <small>{escape(like.metric)}{DOWN if like.lower_is_better else ''}{at}</small>"
    cells = "".join(_entry(entries[arch]) if arch in entries else f"<td>{MISSING}</td>" for arch in archs)
    return f'<tr><th scope="row">{name}</th>{cells}</tr>'


def _entry(entry: Entry) -> str:
    value = _minus(rounded(entry.value, entry.se))
    if entry.difference is None:
        return f"<td>{value}</td>"
    error = "" if entry.difference_se is None else f" ± {rounded(entry.difference_se, entry.difference_se)}"
    sign = "+" if entry.difference >= 0 else ""
    difference = _minus(f"{sign}{rounded(entry.difference, entry.difference_se)}{error}")
    if entry.differs:
        return f"<td><strong>{value}*</strong><small><strong>{difference}</strong></small></td>"
    return f"<td>{value}<small>{difference}</small></td>"


def _with_error(value: float, error: float | None) -> str:
    if error is None:
        return _minus(rounded(value, None))
    return f"{_minus(rounded(value, error))}<small>± {rounded(error, error)}</small>"


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _left_out(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return (
        '<aside class="left-out" aria-labelledby="left-out-title"><h3 id="left-out-title">Left out</h3>'
        f"<ul>{items}</ul></aside>"
    )


def _versions(found: Evaluations) -> str:
    versions = dict.fromkeys((value.task, value.version) for value in found.values)
    items = "".join(f"<li>{escape(task)} <code>{escape(version)}</code></li>" for task, version in versions)
    return f"<details><summary>Versions of the tasks</summary><ul>{items}</ul></details>"


def _named_row(name: str, cells: str) -> str:
    return f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'


def _folded(summary: str, caption: str, corner: str, columns: Sequence[str], rows: Sequence[str]) -> str:
    headings = "".join(f'<th scope="col">{name}</th>' for name in (corner, *columns))
    body = table(caption, f"<tr>{headings}</tr>", f"<tbody>{''.join(rows)}</tbody>", summary)
    return f"<details><summary>{summary}</summary>{body}</details>"
