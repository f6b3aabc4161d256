"""What a study's page shows of the law of efficient models, in the place of the laws of compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from linscale.study.report import fit_sections, sections
from linscale.study.report.digest import display_name
from linscale.study.report.figures import Figure
from linscale.study.report.fit_figures import fit_figures
from linscale.study.report.fit_page import residual_space, sha256, under_headings
from linscale.study.report.study_figures import loss_figure
from linscale.study.results import Curve

ANSWERS = {True: "inside", False: "outside", None: sections.MISSING}


def efficient_figures(curves: Sequence[Curve], result: Mapping[str, Any]) -> list[Figure]:
    """Of the law, and every run's loss. `result` is the content of fits.json."""
    losses = replace(loss_figure(curves, {}, "validation"), caption="The validation loss of each run.")
    return [*fit_figures(result["groups"], residual_space(result["groups"])), losses]


def efficient_parts(
    study: Path, found: Mapping[str, Any], result: Mapping[str, Any], figures: Sequence[Figure]
) -> dict[str, str]:
    """HTML by its place in efficient.html; `found` is the digest's summary, `result` the content of fits.json."""
    table = study / Path(str(result["source"])).name  # where the study is now
    return {
        "figures": under_headings(figures),
        "parameters": fit_sections.parameters(result["groups"]),
        "compared": compared(result["groups"]),
        "points": "<p>The best checkpoint of every finished run, by its validation loss.</p>"
        + fit_sections.dropped(result),
        "method": sections.provenance(dict(found)) + fit_sections.provenance(result, sha256(table)),
    }


def compared(groups: Sequence[Mapping[str, Any]]) -> str:
    """The exponent of every architecture beside those of the literature, and whether its interval holds them."""
    references = groups[0]["compared"]
    heads = ("", "exponent", *(f"{each['exponent']:g}" for each in references))
    rows = []
    for group in groups:
        answers = "".join(f"<td>{ANSWERS[each['inside']]}</td>" for each in group["compared"])
        value = sections.number(group["parameters"]["exponent"]["value"], 3)
        rows.append(f'<tr><th scope="row">{escape(display_name(group["group"]))}</th><td>{value}</td>{answers}</tr>')
    names = "; ".join(f"{each['exponent']:g}: {each['name']}" for each in references)
    caption = f"Whether the 95% interval of the exponent holds those of the literature. {escape(names)}."
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return sections.table(caption, f"<tr>{head}</tr>", f"<tbody>{''.join(rows)}</tbody>", "Exponents compared")
