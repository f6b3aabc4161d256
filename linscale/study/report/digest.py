"""The findings of a study as plain JSON values: what the table, the page and `--json` all show."""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np

from linscale.config import UserError, human
from linscale.run_folder import read_json
from linscale.study.evaluations import Evaluations, read_evaluations
from linscale.study.laws import law_of
from linscale.study.report.evaluation_digest import evaluation_digest
from linscale.study.results import RunSummary, read_provenance, read_summaries

FITS, SAMPLES = "fits.json", "samples.json"
ENDS = ("low", "high")
LAWS = (("l", "loss"), ("n_opt", "params"), ("d_opt", "tokens"))  # names in fits.json of parameters and of values
NAMES = {
    "llama": "LLaMA",
    "tnl": "TNL",
    "hgrn2": "HGRN2",
    "cosformer2": "cosFormer2",
    "recurrent_transformer": "Recurrent",
    "linearized": "Linearized",
}


def display_name(arch: str) -> str:
    """An architecture as its authors write it."""
    return NAMES.get(arch, arch)


def summary(study: Path, evaluations: Evaluations | None = None) -> dict[str, Any]:
    """Provenance, one entry an architecture (its law, best run and sample), what was refused, and every run.

    `evaluations`, read from the study where they are not given, are added in short: the last checkpoints alone.

    `reference_compute` is the compute C0 in PFLOP/s-days at which all laws are shown side by side, and `at_reference`
    of an architecture what its law says there: `loss`, `params` and `tokens`, each with its 95% interval.
    The law of efficient models, `law` = "pac", says nothing of compute: `at_reference` is None, and `fit` the group of
    fits.json without its draws. Architectures without a law are listed with `fit` None. Raises UserError when the
    folder holds no runs, or when fits.json or samples.json is damaged.
    """
    runs = read_summaries(study)
    fits = _read_fits(study)
    samples = _read_object(study / SAMPLES)
    laws = {group["group"]: group for group in fits.get("groups", [])}
    of_compute = {name: group for name, group in laws.items() if group.get("law") != "pac"}
    refused = {item["group"]: item["reason"] for item in fits.get("refused", [])}
    reference = reference_compute(list(of_compute.values()))
    return {
        "provenance": dataclasses.asdict(read_provenance(study)),
        "law": next(iter(laws.values())).get("law", "envelope") if laws else None,
        "loss": fits.get("loss"),
        "units": fits.get("units", {}),
        "settings": fits.get("settings", {}),
        "reference_compute": reference,
        "architectures": [
            _architecture(arch, runs, laws.get(arch), refused.get(arch), samples.get(arch))
            | {"at_reference": at_compute(laws[arch], reference) if arch in of_compute else None}
            for arch in sorted({run.arch for run in runs} | set(laws))
        ],
        "runs": [dataclasses.asdict(run) for run in runs],
        "evaluations": evaluation_digest(read_evaluations(study) if evaluations is None else evaluations),
    }


def reference_compute(fits: list[dict[str, Any]]) -> float:
    """The middle of the compute that all laws were fitted to, to one digit, in PFLOP/s-days.

    1 where that is inside of it, or where the laws have no compute in common.
    """
    low = max((fit["compute_range"][0] for fit in fits), default=1.0)
    high = min((fit["compute_range"][1] for fit in fits), default=1.0)
    if low <= 1 <= high or low > high:
        return 1.0
    middle = math.sqrt(low * high)
    rounded = float(f"{middle:.0e}")
    return rounded if low <= rounded <= high else middle


def at_compute(fit: dict[str, Any], compute: float) -> dict[str, dict[str, float | None]]:
    """What a law says at a compute, with its 95% interval: of the band, or of the coefficients at 1 PFLOP/s-day."""
    law, band, parameters = law_of(fit["parameters"]), fit["band"], fit["parameters"]
    found: dict[str, dict[str, float | None]] = {}
    for name, key in LAWS:
        row = parameters[f"{name}_coefficient"]
        low, high = row["low"], row["high"]
        if compute != 1 and band:
            at = np.log(band["compute"])
            low, high = (float(np.exp(np.interp(np.log(compute), at, np.log(band[f"{key}_{e}"])))) for e in ENDS)
        found[key] = {"value": getattr(law, key)(compute), "low": low, "high": high}
    return found


def with_interval(row: dict[str, Any], *, digits: int = 4) -> tuple[str, str]:
    """A value and its interval, with two digits of the interval's half-width and at most `digits` decimals."""
    if row["low"] is None:
        return f"{row['value']:.{digits}f}", "no interval"
    half = (row["high"] - row["low"]) / 2
    decimals = min(digits, max(0, 1 - math.floor(math.log10(half)))) if half > 0 else digits
    return f"{row['value']:.{decimals}f}", f"{row['low']:.{decimals}f} to {row['high']:.{decimals}f}"


def reference_texts(item: dict[str, Any], key: str) -> tuple[str, str]:
    """`loss`, `params` or `tokens` of an architecture at the reference compute, and its interval, for people."""
    row = item["at_reference"][key]
    if key == "loss":
        return with_interval(row)
    interval = "no interval" if row["low"] is None else f"{human(row['low'])} to {human(row['high'])}"
    return human(row["value"]), interval


def short(value: float) -> str:
    """Two digits: 1.2e-10, 0.036, 150."""
    if 1e-3 <= value < 1e4:
        return f"{float(f'{value:.2g}'):g}"
    mantissa, power = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(power)}"


def noise_source(found: dict[str, Any]) -> str:
    """What the intervals rest on, in words: runs alone, or an assumption about seeds."""
    boots = [item["fit"]["bootstrap"] for item in found["architectures"] if item["fit"]]
    assumed = {boot["seed_noise"] for boot in boots if boot["seed_noise_source"] == "assumed"}
    if not assumed:
        return "bootstrap over runs"
    return f"assuming {100 * max(assumed):.2g}% seed noise"


def notes(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Warnings, refusals and unfinished runs as (name, concerned, text), each text once.

    `concerned` lists architectures or runs, each with its own number where there is one.
    """
    grouped: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for item in found["architectures"]:
        if not item["fit"]:
            grouped.setdefault(("not fitted", item["refused"]), []).append((item["name"], ""))
        for warning in item["fit"]["warnings"] if item["fit"] else []:
            grouped.setdefault((warning["name"], warning["text"]), []).append((item["name"], warning.get("detail", "")))
    for run in found["runs"]:
        if run["state"] != "done":
            grouped.setdefault((run["state"], "not finished"), []).append((run["run"], ""))
    everyone = len(found["architectures"])
    return [(name, _concerned(pairs, everyone), text) for (name, text), pairs in grouped.items()]


def _concerned(pairs: list[tuple[str, str]], everyone: int) -> str:
    """'LLaMA, TNL (4 sizes); HGRN2 (3 sizes)', or 'all' where nobody is left out and more than one could be."""
    by_detail: dict[str, list[str]] = {}
    for name, detail in pairs:
        by_detail.setdefault(detail, []).append(name)
    parts = []
    for detail, names in by_detail.items():
        who = "all" if len(names) == everyone > 1 else ", ".join(names)
        parts.append(f"{who} ({detail})" if detail else who)
    return "; ".join(parts)


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
        "fit": {key: value for key, value in fit.items() if key != "draws"} if fit else None,
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
