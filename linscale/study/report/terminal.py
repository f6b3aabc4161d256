"""The findings of a study in a terminal, readable from 80 columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from linscale.config import human
from linscale.study.report.digest import notes, printable
from linscale.study.report.digest import summary as summary

SAMPLE_LINES, SAMPLE_CHARACTERS = 6, 400


def print_summary(study: Path, console: Console) -> None:
    """Print the laws with their 95% intervals, each architecture's best run, samples, and every warning."""
    found = summary(study)
    console.print(_laws_table(found["architectures"], study.resolve().name))
    console.print(_legend(found), style="dim")
    samples = [item for item in found["architectures"] if item["sample"]]
    if samples:
        console.print("\nSamples", style="bold")
    for item in samples:
        console.print(_heading(item))
        console.print(Padding(_sample(item["sample"]), (0, 0, 0, 2)))
    unfinished = [
        (run["state"], run["run"], "the run has not finished") for run in found["runs"] if run["state"] != "done"
    ]
    for name, concerned, text in notes(found["architectures"]) + unfinished:
        console.print(Text.assemble((f"{name}: ", "yellow"), (concerned, "bold"), f": {text}"))


def _laws_table(architectures: list[dict[str, Any]], title: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=f"Scaling laws of {title}", title_style="bold", pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in ("L(C)", "N_opt(C)", "D_opt(C)"):
        table.add_column(heading, overflow="fold")  # a digit is never cut off
    for item in architectures:
        parameters = (item["fit"] or {}).get("parameters")
        laws = [_law(parameters, law) if parameters else "not fitted" for law in ("l", "n_opt", "d_opt")]
        table.add_row(_speed_and_bits(item), *laws, end_section=True)
    return table


def _speed_and_bits(item: dict[str, Any]) -> Text:
    speed, bits = item["tokens_per_s"], item["bits_per_byte"]
    text = Text(item["name"], style="bold")
    text.append("\n- tok/s" if speed is None else f"\n{human(speed)} tok/s", style="not bold")
    text.append("\n- bits/B" if bits is None else f"\n{bits:.3f} bits/B", style="not bold")
    return text


def _law(parameters: dict[str, dict[str, Any]], law: str) -> Text:
    """Three lines: the law, the interval of its coefficient, the interval of its exponent."""
    coefficient, exponent = parameters[f"{law}_coefficient"], parameters[f"{law}_exponent"]
    mark = "" if coefficient["identified"] and exponent["identified"] else " ?"
    text = Text(f"{_number(coefficient['value'])} C^{exponent['value']:.4f}{mark}")
    for row, form in ((coefficient, _number), (exponent, lambda value: f"{value:.4f}")):
        interval = "no interval" if row["low"] is None else f"{form(row['low'])} to {form(row['high'])}"
        text.append(f"\n{interval}", style="dim")
    return text


def _number(value: float) -> str:
    if 1e-2 <= abs(value) < 1e4:
        return f"{value:.4g}"
    mantissa, power = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(power)}"


def _legend(found: dict[str, Any]) -> Text:
    ranges = [item["fit"]["compute_range"] for item in found["architectures"] if item["fit"]]
    lines = ["C in PFLOP/s-days, L in nats per token, N without embeddings, D in tokens."]
    if ranges:
        low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
        lines.append(f"Fitted to the {found['loss']} loss over C = {_number(low)} to {_number(high)}.")
        lines.append("Under each law: 95% intervals of coefficient and exponent; ? = not identified.")
    lines.append("tok/s and bits/B (validation bits per byte): of the run with the lowest validation loss.")
    return Text("\n".join(lines))


def _heading(item: dict[str, Any]) -> Text:
    sample = item["sample"]
    return Text.assemble((item["name"], "bold"), (f"  {sample.get('run', '')} step {sample.get('step', '?')}", "dim"))


def _sample(sample: dict[str, Any]) -> Text:
    prompt, continuation = str(sample.get("prompt", "")), str(sample.get("continuation", ""))[:SAMPLE_CHARACTERS]
    lines = continuation.split("\n")
    shown = "\n".join(lines[:SAMPLE_LINES]) + (" ..." if len(lines) > SAMPLE_LINES else "")
    return Text.assemble((printable(prompt), "bold"), printable(shown))
