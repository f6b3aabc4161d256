"""A study as one HTML page that opens without a network: figures, tables, warnings, samples and method."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from linscale.config import UserError
from linscale.run_folder import EVALUATIONS
from linscale.study.evaluations import read_evaluations
from linscale.study.laws import PAPER_LAWS, PFLOP_S_DAY, EnvelopeLaw, law_of
from linscale.study.report import sections
from linscale.study.report.digest import summary
from linscale.study.report.evaluation_figures import evaluation_figures
from linscale.study.report.evaluation_sections import evaluation_section
from linscale.study.results import Curve, read_study, run_folders

CURVE_POINTS = 300  # of one run in a figure
PAPER_RANGE = (0.01, 1000.0)  # PFLOP/s-days over which the paper draws its curves
HEAD = 2048  # bytes of a page that its fingerprint stands in
FOLDER = Path(__file__).parent


def write_report(study: Path, out: Path) -> Path:
    """Write the page of `study` to the file `out` and return it; the same study gives the same bytes.

    Raises UserError when the study holds no runs, its results are damaged, or `out` cannot be written.
    """
    from plotly.offline import get_plotlyjs

    evaluations = read_evaluations(study)
    found = summary(study, evaluations)
    measured = evaluation_figures(evaluations.values, [item["group"] for item in found["architectures"]])
    script = (FOLDER / "page.js").read_text(encoding="utf-8").strip()
    if evaluations.values:
        script += "\n" + (FOLDER / "evaluations.js").read_text(encoding="utf-8").strip()
    page = Template((FOLDER / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"Scaling laws of {found['provenance']['study']}"),
        loss=sections.loss_name(found),
        style=(FOLDER / "page.css").read_text(encoding="utf-8").strip(),
        script=script,
        plotly=get_plotlyjs().strip(),
        figures=_json(_figures(study, found)),
        fingerprint=evaluations_fingerprint(study),
        evaluations=evaluation_section(evaluations, measured),
        evaluation_data=f'<script type="application/json" id="evaluations">{_json(measured)}</script>'
        if evaluations.values
        else "",
        provenance=sections.provenance(found),
        warnings=sections.warnings(found),
        lead=sections.lead(found),
        laws=sections.laws(found),
        runs=sections.runs_table(found["runs"]),
        samples=sections.samples(found),
        method=sections.method(found),
    )
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8", newline="\n")
        temporary.replace(out)
    except OSError as error:
        raise UserError(f"{out}: cannot write the report: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return out


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


def _json(value: Any) -> str:
    """JSON that may stand in a script of a page: it cannot end it."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _figures(study: Path, found: dict[str, Any]) -> list[dict[str, Any]]:
    """The three figures as data: per architecture its curves, envelope, fitted line and band, and the published law."""
    try:
        curves = read_study(study, loss="train" if found["loss"] == "train" else "validation")
    except UserError:  # nothing measured yet: the tables still say where each run stands
        curves = []
    spent = [curve.flops / PFLOP_S_DAY for curve in curves]
    shown = (min(c[0] for c in spent), max(c[-1] for c in spent)) if spent else (1.0, 1.0)
    figures = []
    for key, symbol, title in (
        ("loss", "L", f"{sections.loss_name(found).capitalize()} loss (nats per token)"),
        ("params", "N", "Parameters N"),
        ("tokens", "D", "Tokens D"),
    ):
        groups = []
        for series, item in enumerate(found["architectures"]):
            if key != "loss" and item["fit"] is None:
                continue
            own = [curve for curve in curves if curve.arch == item["group"]] if key == "loss" else []
            groups.append(
                {"name": item["name"], "series": series, "curves": [_curve(curve) for curve in own]}
                | _fitted(item["fit"], key)
                | {"published": _published(item["group"], key, shown)}
            )
        figures.append({"id": key, "symbol": symbol, "title": title, "groups": groups})
    return figures


def _curve(curve: Curve) -> dict[str, Any]:
    chosen = np.unique(np.geomspace(1, len(curve.tokens), CURVE_POINTS).round().astype(int)) - 1
    return {
        "run": curve.run,
        "params": curve.params,
        "x": _rounded(curve.flops[chosen] / PFLOP_S_DAY),
        "y": _rounded(curve.loss[chosen]),
        "tokens": _rounded(curve.tokens[chosen]),
    }


def _fitted(fit: dict[str, Any] | None, key: str) -> dict[str, Any]:
    if fit is None:
        return {"points": None, "line": None, "band": None}
    band = fit["band"]
    low, high = fit["compute_range"]
    compute = np.geomspace(float(low), float(high), 25)
    return {
        "points": {"x": _rounded(fit["envelope"]["compute"]), "y": _rounded(fit["envelope"][key])},
        "line": {"x": _rounded(compute), "y": _rounded(_evaluate(law_of(fit["parameters"]), key, compute))},
        "band": band
        and {
            "x": _rounded(band["compute"]),
            "low": _rounded(band[f"{key}_low"]),
            "high": _rounded(band[f"{key}_high"]),
        },
    }


def _published(arch: str, key: str, shown: tuple[float, float]) -> dict[str, list[float]] | None:
    """The paper's line where the study's compute and the paper's overlap: outside, it would be an extrapolation."""
    low, high = max(shown[0], PAPER_RANGE[0]), min(shown[1], PAPER_RANGE[1])
    if arch not in PAPER_LAWS or low >= high:
        return None
    compute = np.geomspace(low, high, 25)
    return {"x": _rounded(compute), "y": _rounded(_evaluate(PAPER_LAWS[arch], key, compute))}


def _evaluate(law: EnvelopeLaw, key: str, compute: np.ndarray) -> np.ndarray:
    return {"loss": law.loss, "params": law.params, "tokens": law.tokens}[key](compute)


def _rounded(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
