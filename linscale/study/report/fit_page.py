"""A fit of a table as one HTML page that opens without a network."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from linscale.study.report import fit_sections, sections
from linscale.study.report.digest import display_name
from linscale.study.report.figures import Figure, drawn, series
from linscale.study.report.fit_figures import fit_figures
from linscale.study.report.fit_sensitivity import sensitivity
from linscale.study.report.frame import Page, template, write_page

TITLES = {"pac": "PAC", "isoflop": "IsoFLOP"}
BESIDE = {"n-opt": "How to spend compute", "loss-n": "Loss against size and tokens", "residual-": "Residuals"}
"""Figures that share a section with those after them, by how their ids begin, and its title."""


def write_fit_report(result: Mapping[str, Any], out: Path) -> Path:
    """Write the page of a fit to the file `out` and return it.

    `result` is the JSON of `linscale fit` (docs/reference/fit.md), of any law. The table that it names is read for its
    hash, where it still is there. Raises UserError when `out` cannot be written.
    """
    groups = result["groups"]
    figures = fit_figures(groups, residual_space(groups))
    names = [group["group"] for group in groups]
    source = Path(str(result["source"]))
    body = {
        "warnings": sections.warnings(fit_sections.notes(result)),
        "figures": under_headings(figures),
        "parameters": fit_sections.parameters(groups),
        "minimum": fit_sections.minimum(groups),
        "sensitivity": sensitivity(result),
        "dropped": fit_sections.dropped(result),
        "provenance": fit_sections.provenance(result, sha256(source)),
    }
    laws = ", ".join(dict.fromkeys(str(group["law"]) for group in groups))
    page = Page(
        title=f"{TITLES.get(laws, laws[:1].upper() + laws[1:])} law of {source.name}",
        lead=fit_sections.lead(result),
        body=template("fit.html", body),
        groups=series(names, {name: display_name(name) for name in names}),
        figures=figures,
    )
    return write_page(page, out)


def residual_space(groups: Sequence[Mapping[str, Any]]) -> str:
    """ "log" where the residuals of all are of logarithms, else "linear"."""
    return "log" if all("of log " in str(group["objective"]["name"]) for group in groups) else "linear"


def sha256(path: Path) -> str | None:
    """Of a file's bytes; None where there is no such file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def under_headings(figures: Sequence[Figure]) -> str:
    """Figures under headings: those that belong together side by side."""
    grouped: dict[str, list[Figure]] = {}
    for figure in figures:
        title = {"d-opt": BESIDE["n-opt"], "loss-d": BESIDE["loss-n"]}.get(figure.id, figure.title)
        for start, shared in BESIDE.items():
            title = shared if figure.id.startswith(start) else title
        grouped.setdefault(title, []).append(figure)
    parts = []
    for at, (title, own) in enumerate(grouped.items()):
        places = "\n".join(map(drawn, own))
        inside = places if len(own) == 1 else f'<div class="{"pair" if len(own) == 2 else "trio"}">{places}</div>'
        name = f"section-{at}-title"
        parts.append(f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(title)}</h2>{inside}</section>')
    return "\n".join(parts)
