"""The findings of a study as plain JSON values: what the table, the page and `--json` all show."""

from __future__ import annotations

import dataclasses
import unicodedata
from pathlib import Path
from typing import Any

from linscale.config import UserError
from linscale.run_folder import read_json
from linscale.study.results import RunSummary, read_provenance, read_summaries

FITS, SAMPLES = "fits.json", "samples.json"
NAMES = {"llama": "LLaMA", "tnl": "TNL", "hgrn2": "HGRN2", "cosformer2": "cosFormer2"}


def display_name(arch: str) -> str:
    """An architecture as its authors write it."""
    return NAMES.get(arch, arch)


def summary(study: Path) -> dict[str, Any]:
    """Provenance, one entry an architecture (its law, best run and sample), what was refused, and every run.

    Architectures without a law are listed with `fit` None. Raises UserError when the folder holds no runs, or when
    fits.json or samples.json is damaged.
    """
    runs = read_summaries(study)
    fits = _read_fits(study)
    samples = _read_object(study / SAMPLES)
    laws = {group["group"]: group for group in fits.get("groups", [])}
    refused = {item["group"]: item["reason"] for item in fits.get("refused", [])}
    return {
        "provenance": dataclasses.asdict(read_provenance(study)),
        "loss": fits.get("loss"),
        "units": fits.get("units", {}),
        "settings": fits.get("settings", {}),
        "architectures": [
            _architecture(arch, runs, laws.get(arch), refused.get(arch), samples.get(arch))
            for arch in sorted({run.arch for run in runs} | set(laws))
        ],
        "runs": [dataclasses.asdict(run) for run in runs],
    }


def notes(architectures: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Warnings and refusals as (name, architectures, text), each text once with the architectures that it concerns."""
    found: dict[tuple[str, str], list[str]] = {}
    for item in architectures:
        listed = [(w["name"], w["text"]) for w in item["fit"]["warnings"]] if item["fit"] else []
        for note in listed if item["fit"] else [("not fitted", item["refused"])]:
            found.setdefault(note, []).append(item["name"])
    return [(name, ", ".join(concerned), text) for (name, text), concerned in found.items()]


def printable(text: str) -> str:
    """Text of a model without control characters, which could move the cursor of a terminal."""
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _architecture(
    arch: str, runs: list[RunSummary], fit: dict[str, Any] | None, refused: str | None, sample: Any
) -> dict[str, Any]:
    measured = [run for run in runs if run.arch == arch and run.validation_loss is not None]
    best = min(measured, key=lambda run: run.validation_loss or 0.0, default=None)
    return {
        "group": arch,
        "name": display_name(arch),
        "fit": fit,
        "refused": None if fit else (refused or "not fitted yet").removeprefix(f"{arch}: "),
        "best_run": best.run if best else None,
        "validation_loss": best.validation_loss if best else None,
        "bits_per_byte": best.bits_per_byte if best else None,
        "tokens_per_s": best.tokens_per_s if best else None,
        "sample": sample if isinstance(sample, dict) else None,
    }


def _read_fits(study: Path) -> dict[str, Any]:
    fits = _read_object(study / FITS)
    if fits and fits.get("version") != 1:
        raise UserError(f"{study / FITS}: version = {fits.get('version')!r}; this linscale reads version 1; fit again")
    return fits


def _read_object(path: Path) -> dict[str, Any]:
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object; delete the file and report again")
    return values
