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
from linscale.study.comparison import BASELINE, BEYOND
from linscale.study.report.digest import (
    LAWS,
    display_name,
    noise_source,
    notes,
    printable,
    reference_texts,
    short,
    summary,
    with_interval,
)
from linscale.study.report.evaluation_digest import headlines, rounded

EVALUATION_ROWS = 24
SAMPLE_LINES, SAMPLE_CHARACTERS = 6, 400


def print_summary(study: Path, console: Console) -> None:
    """Print the laws with their 95% intervals, each architecture's best run, samples, and every warning.

    Not the law of efficient models and its warnings, which are printed as those of `linscale fit` are.
    """
    if console.is_terminal:
        _print(summary(study), console)
        return
    with console.capture() as captured:  # a file gets no lines that end in padding
        _print(summary(study), console)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    console.out("\n".join(lines), highlight=False)


def _print(found: dict[str, Any], console: Console) -> None:
    if found["law"] != "pac":
        console.print(_laws_table(found))
        console.print(_legend(found), style="dim")
    for compared in found["evaluations"]["side_by_side"][:1]:  # the largest size
        console.print(_evaluations_table(compared))
        console.print(_evaluations_legend(found["evaluations"]), style="dim")
    samples = [item for item in found["architectures"] if item["sample"]]
    if samples:
        console.print("\nSamples", style="bold")
    for item in samples:
        console.print(_heading(item))
        console.print(Padding(_sample(item["sample"]), (0, 0, 0, 2)))
    listed = notes(found if found["law"] != "pac" else found | {"architectures": []})
    if found["reference_compute"] != 1:  # the table has no coefficients at 1 PFLOP/s-day
        listed = [note for note in listed if note[0] != "extrapolated_coefficient"]
    if listed:
        console.print("\nBefore you act on this", style="bold")
    for name, concerned, text in listed:
        line = Text.assemble((name, "yellow"), f": {text}: ", (concerned, "bold"))
        console.print(Padding(line, (0, 0, 0, 2)))


def _laws_table(found: dict[str, Any]) -> Table:
    title = f"Scaling laws of {found['provenance']['study']}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_style="bold", title_justify="left", pad_edge=False)
    table.add_column("", no_wrap=True)
    for heading in ("L(C)", "N_opt(C)", "D_opt(C)"):
        table.add_column(heading, overflow="fold")  # a digit is never cut off
    base = "C" if found["reference_compute"] == 1 else "c"
    for item in found["architectures"]:
        laws = [_law(item, law, key, base) if item["fit"] else "not fitted" for law, key in LAWS]
        table.add_row(_speed_and_bits(item), *laws, end_section=True)
    return table


def _speed_and_bits(item: dict[str, Any]) -> Text:
    speed, bits = item["tokens_per_s"], item["bits_per_byte"]
    text = Text(item["name"], style="bold")
    text.append("\n- tok/s" if speed is None else f"\n{human(speed)} tok/s", style="not bold")
    text.append("\n- bits/B" if bits is None else f"\n{bits:.3f} bits/B", style="not bold")
    return text


def _law(item: dict[str, Any], law: str, key: str, base: str) -> Text:
    """Three lines: the law, the interval of its value at the reference, the interval of its exponent."""
    exponent = item["fit"]["parameters"][f"{law}_exponent"]
    power, power_interval = with_interval(exponent)
    value, interval = reference_texts(item, key)
    text = Text(f"{value} {base}^{power}{'' if exponent['identified'] else ' ?'}")
    return text.append(f"\n{interval}\n{power_interval}", style="dim")


def _legend(found: dict[str, Any]) -> Text:
    lines = []
    fits = [item["fit"] for item in found["architectures"] if item["fit"]]
    if fits:
        reference, unit = found["reference_compute"], "1 PFLOP/s-day = 8.64e19 FLOPs"
        low = short(min(fit["compute_range"][0] for fit in fits))
        high = short(max(fit["compute_range"][1] for fit in fits))
        if reference == 1:
            lines.append(f"C in PFLOP/s-days; {unit}.")
        else:
            lines.append(f"c = C / {short(reference)} PFLOP/s-days, amid what was fitted; {unit}.")
        lines.append(f"Fitted to the {found['loss']} loss from C = {low} to {high} PFLOP/s-days.")
        lines.append(f"Under each law: 95% intervals of factor and exponent, {noise_source(found)}.")
        if not all(fit["parameters"][f"{law}_exponent"]["identified"] for fit in fits for law, _ in LAWS):
            lines.append("? = the interval leaves open the sign of the exponent.")
    lines.append("L in nats per token; N without embeddings; D in tokens.")
    lines.append("tok/s, bits/B (validation bits per byte): of the run with the lowest loss.")
    return Text("\n".join(lines))


def _evaluations_table(compared: dict[str, Any]) -> Table:
    """The first metric of every task at one size, as many as fit a screen; an asterisk: it differs from LLaMA's."""
    what = f"size {compared['size']}" if compared["size"] else "equal compute"
    title = f"\nEvaluations, {what}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_style="bold", title_justify="left", pad_edge=False)
    table.add_column("", overflow="fold")
    for arch in compared["params"]:
        table.add_column(display_name(arch), justify="right", overflow="fold")
    for row in headlines(compared)[:EVALUATION_ROWS]:
        entries = {entry["arch"]: entry for entry in row["entries"]}
        cells = [_evaluation(entries[arch]) if arch in entries else "-" for arch in compared["params"]]
        table.add_row(f"{row['task']} {row['metric']}", *cells)
    return table


def _evaluation(entry: dict[str, Any]) -> Text:
    value, mark = rounded(entry["value"], entry["se"]), "*" if entry["differs"] else " "
    return Text(f"{value}{mark}", style="bold" if entry["differs"] else "")


def _evaluations_legend(evaluations: dict[str, Any]) -> Text:
    compared = evaluations["side_by_side"]
    rows, lines = len(headlines(compared[0])), []
    if any(entry["difference"] is not None for row in compared[0]["rows"] for entry in row["entries"]):
        lines.append(f"* differs from {display_name(BASELINE)} by more than {BEYOND} standard errors.")
    if rows > EVALUATION_ROWS:
        lines.append(f"{rows - EVALUATION_ROWS} more tasks are on the page.")
    lines.append("Other metrics, sizes and checkpoints: on the page.")
    lines += [f"left out: {line}" for line in evaluations["left_out"]]
    return Text("\n".join(lines))


def _heading(item: dict[str, Any]) -> Text:
    sample = item["sample"]
    return Text.assemble((item["name"], "bold"), (f"  {sample.get('run', '')} step {sample.get('step', '?')}", "dim"))


def _sample(sample: dict[str, Any]) -> Text:
    prompt, continuation = str(sample.get("prompt", "")), str(sample.get("continuation", ""))[:SAMPLE_CHARACTERS]
    lines = continuation.split("\n")
    shown = "\n".join(lines[:SAMPLE_LINES]) + (" ..." if len(lines) > SAMPLE_LINES else "")
    return Text.assemble((printable(prompt), "bold"), printable(shown))
