"""A study as one HTML page that opens without a network: figures, tables, warnings, samples and method."""

from __future__ import annotations

import hashlib
from html import escape
from pathlib import Path
from typing import Any

from linscale.run_folder import EVALUATIONS
from linscale.study.evaluations import read_evaluations
from linscale.study.prediction.fit_file import read_content
from linscale.study.report import sections
from linscale.study.report.digest import FITS, notes, summary
from linscale.study.report.efficient_page import efficient_figures, efficient_parts
from linscale.study.report.evaluation_figures import evaluation_figures
from linscale.study.report.evaluation_sections import evaluation_section
from linscale.study.report.figures import Figure, drawn, series
from linscale.study.report.frame import Page, script_json, template, write_page
from linscale.study.report.study_figures import read_curves, study_figures
from linscale.study.results import run_folders

HEAD = 2048  # bytes of a page that its fingerprint stands in


def write_report(study: Path, out: Path) -> Path:
    """Write the page of `study` to the file `out` and return it; the same study gives the same bytes.

    Raises UserError when the study holds no runs, its results are damaged, or `out` cannot be written.
    """
    evaluations = read_evaluations(study)
    found = summary(study, evaluations)
    names = [item["group"] for item in found["architectures"]]
    measured = evaluation_figures(evaluations.values, names)
    curves = read_curves(study, found["loss"])
    shared = {
        "warnings": sections.warnings(notes(found)),
        "runs": sections.runs_table(found["runs"]),
        "evaluations": evaluation_section(evaluations, measured),
        "samples": sections.samples(found),
    }
    if found["law"] == "pac":
        result = read_content(study / FITS)
        figures = efficient_figures(curves, result)
        body = template("efficient.html", shared | efficient_parts(study, found, result, figures))
    else:
        of_compute = study_figures(curves, found)
        figures, body = [*of_compute.values()], template("study.html", shared | _laws_of_compute(of_compute, found))
    data = f'<script type="application/json" id="evaluations">{script_json(measured)}</script>'
    page = Page(
        title=f"Scaling laws of {found['provenance']['study']}",
        lead=f"<p>{sections.lead(found)}</p>",
        body=body + (data if evaluations.values else ""),
        groups=series(names, {item["group"]: item["name"] for item in found["architectures"]}),
        figures=figures,
        head=f'<meta name="evaluations" content="{escape(evaluations_fingerprint(study))}">',
        scripts=("evaluations.js",) if evaluations.values else (),
    )
    return write_page(page, out)


def evaluations_fingerprint(study: Path) -> str:
    """Of every record of an evaluation in the study: a page that holds another one is out of date."""
    digest = hashlib.blake2b(digest_size=16)
    for folder in run_folders(study):
        digest.update(folder.name.encode())
        if (folder / EVALUATIONS).exists():
            digest.update((folder / EVALUATIONS).read_bytes())
    return digest.hexdigest()


def is_current(page: Path, study: Path) -> bool:
    """Whether a page of the study is there and shows all that was evaluated."""
    if not page.is_file():
        return False
    with page.open("rb") as file:
        return f'name="evaluations" content="{evaluations_fingerprint(study)}"'.encode() in file.read(HEAD)


def _laws_of_compute(figures: dict[str, Figure], found: dict[str, Any]) -> dict[str, str]:
    return {
        "loss": drawn(figures["loss"]),
        "allocation": "\n".join(drawn(figures[name]) for name in ("params", "tokens")),
        "checks": _checks(figures),
        "laws": sections.laws(found),
        "method": sections.method(found),
        "provenance": sections.provenance(found),
    }


def _checks(figures: dict[str, Figure]) -> str:
    """What the laws rest on: slices at equal compute, and residuals; empty without a law."""
    parts = []
    if "isoflop" in figures:
        parts.append(
            f'<section aria-labelledby="isoflop-title"><h2 id="isoflop-title">Loss at equal compute</h2>'
            f"{drawn(figures['isoflop'])}</section>"
        )
    residuals = [figure for name, figure in figures.items() if name.startswith("residual-")]
    if residuals:
        parts.append(
            '<section aria-labelledby="residuals-title"><h2 id="residuals-title">Residuals</h2><div class="trio">'
            + "\n".join(map(drawn, residuals))
            + "</div></section>"
        )
    return "\n".join(parts)
