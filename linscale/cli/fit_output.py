"""What linscale fit prints."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from linscale.cli.fit_minima import law_lines, print_minima
from linscale.cli.output import print_note, print_table
from linscale.cli.sensitivity import print_sensitivity

ROWS_SHOWN = 20


def print_fit(result: dict[str, Any]) -> None:
    """Every group with its parameters, verdicts, what was left out, and warnings."""
    sys.stdout.write("".join(f"{line}\n" for line in _head(result)))
    for fitted in result["groups"]:
        print_table(
            f"{fitted['group']}: {fitted['formula']}",
            ("", "value", "se", "95% low", "high", "verdict"),
            [
                *_rows(fitted["parameters"]),
                *_rows({name: each for name, each in fitted["derived"].items() if name != "a"}),
            ],
        )
        print_minima(fitted)
        sys.stdout.write("".join(f"{line}\n" for line in _lines(fitted)))
    for item in result["refused"]:
        print_note(f"{item['group']} is not fitted: {item['reason']}")
    print_sensitivity(result.get("sensitivity", []))


def _rows(table: dict[str, dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for name, each in table.items():
        verdict = ""
        if "at_bound" in each:
            verdict = "on its bound" if each["at_bound"] else "" if each["identified"] else "not identified"
        yield (name, *(_number(each[key]) for key in ("value", "se", "low", "high")), verdict)


def _compute(compute: dict[str, Any]) -> Iterator[str]:
    line = f"C of N_opt and D_opt: {compute['formula']}"
    if compute["kappa"]:
        line += f"; near {compute['k']:.4g} N^{1 + compute['kappa']:.4g} D, within {compute['largest_deviation']:.1%}"
    yield line


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _head(result: dict[str, Any]) -> Iterator[str]:
    yield f"{result['source']}: {', '.join(f'{role} = {name}' for role, name in result['columns'].items())}"
    yield from (f"{role} by {result['columns'][role]}: {formula}" for role, formula in result["definitions"].items())
    yield from (f"note: {note}" for note in result["notes"])
    yield from _left_out(result["dropped"])


def _left_out(dropped: list[dict[str, Any]]) -> Iterator[str]:
    rules: dict[str, list[str]] = {}
    for item in dropped:
        rules.setdefault(item["rule"], []).append(str(item["row"]))
    for rule, rows in rules.items():
        more = f" and {len(rows) - ROWS_SHOWN} more" if len(rows) > ROWS_SHOWN else ""
        yield f"left out by {rule}: {len(rows)}: row {', '.join(rows[:ROWS_SHOWN])}{more}"


def _lines(fitted: dict[str, Any]) -> Iterator[str]:
    starts, boot, objective = fitted["starts"], fitted["bootstrap"], fitted["objective"]
    values = objective["value"] if isinstance(objective["value"], list) else [objective["value"]]
    yield f"{objective['name']}: {', '.join(f'{value:.6g}' for value in values)}"
    if starts:
        yield f"{starts['agree']} of {starts['tried']} starts agree with the best within 0.01%"
    if other := fitted["classical"]:
        yield f"{other['method']} from {other['tried']} starts: {other['value']:.6g}, on which {other['agree']} agree"
    yield from law_lines(fitted)
    if boot["replicates"]:
        yield f"intervals: {boot['replicates']} resamples of {boot['units']} {boot['by']}s"
    if "n_opt_exponent" in fitted["derived"] | fitted["parameters"]:
        yield "N_opt and D_opt: coefficient C^exponent, C in PFLOP/s-days of 8.64e19 FLOPs"
    if "n_opt_exponent" in fitted["derived"]:
        yield from _compute(fitted["compute"])
    yield f"{fitted['points_used']} points"
    yield from _left_out(fitted["dropped"])
    for warning in fitted["warnings"]:
        yield f"warning {warning['name']}: {warning['text']}" + (f" ({warning['detail']})" if warning["detail"] else "")
    yield ""
