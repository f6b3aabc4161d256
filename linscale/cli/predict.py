"""linscale predict: what a fitted law expects of compute, of a model, or how much compute a loss takes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro

from linscale.cli.output import Json, print_json, print_note, print_table
from linscale.config import amount, human

Warnings = dict[tuple[str, ...], list[str]]
"""Name, text and detail of a warning: the groups that have it."""
Amount = Annotated[str, tyro.conf.arg(metavar="NUMBER")]


def predict(
    fit: Annotated[Path, tyro.conf.Positional],
    *,
    flops: Amount = "",
    params: Amount = "",
    tokens: Amount = "",
    unique: Amount = "",
    bpb: float | None = None,
    loss: float | None = None,
    group: str = "",
    downstream: Path | None = None,
    json: Json = False,
) -> None:
    """Expect the loss of compute or of a model from a fit, with 95% intervals, and the compute that a loss takes.

    Numbers are written 1e24, 7B or 300e9. FLOPs are FLOPs, not PFLOP/s-days.

    Args:
        fit: The JSON of linscale fit, or a study's fits.json.
        flops: Training compute: the lowest loss, and the N and D that reach it.
        params: Parameters, beside --tokens, or beside --flops, which then gives the tokens.
        tokens: Tokens.
        unique: Unique tokens, for a law of repeated data.
        bpb: Bits per byte, for a sigmoid.
        loss: A loss to reach: the compute, N and D it takes, and how likely the run asked about reaches it.
        group: Groups, as in llama,tnl. All by default.
        downstream: The JSON of a sigmoid fitted to the same loss in bits per byte: accuracy too.
        json: Print JSON instead of a table.
    """
    from linscale.study.prediction.answer import Question
    from linscale.study.prediction.fit_file import read_fit, select
    from linscale.study.prediction.forecast import forecast_all

    given = {"flops": flops, "params": params, "tokens": tokens, "unique": unique}
    numbers = {name: amount(text, name) if text else None for name, text in given.items()}
    question = Question(**numbers, bpb=bpb, loss=loss)
    groups = select(read_fit(fit), tuple(name.strip() for name in group.split(",") if name.strip()))
    result = forecast_all(groups, question, read_fit(downstream) if downstream else [])
    if json:
        print_json({"version": 1, **result})
        return
    shared = shared_warnings(result["predictions"])
    for answer in result["predictions"]:
        sys.stdout.write(f"{_title(answer)}\n")
        print_table("", ("", "value", "95% of the law", "95% of a new run"), list(_rows(answer)))
        sys.stdout.write("".join(f"{line}\n" for line in _lines(answer, shared)))
    sys.stdout.write("".join(f"{line}\n" for line in shared_lines(shared)))
    for item in result["refused"]:
        print_note(item["reason"])


def _title(answer: dict[str, Any]) -> str:
    at = answer["at"]
    words = {
        "flops": "FLOPs",
        "params": "parameters",
        "tokens": "tokens",
        "unique": "of them unique",
        "bpb": "bits per byte",
    }
    asked = [f"{_size(name, at[name])} {word}" for name, word in words.items() if at[name] is not None]
    return f"{answer['group']} ({answer['law']})" + (f": {', '.join(asked)}" if asked else "")


def _size(name: str, value: float) -> str:
    return human(value) if name in ("params", "tokens", "unique") else f"{value:.4g}"


def _rows(answer: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for key, name in (("loss", "loss"), ("n_opt", "best N"), ("d_opt", "best D"), ("score", "")):
        if answer[key] is not None:
            yield _row(name or answer[key]["kind"], answer[key], key in ("n_opt", "d_opt"))
    target = answer["target"]
    if target is not None:
        for key, name in (("flops", "FLOPs"), ("params", "N"), ("tokens", "D")):
            if target[key] is not None:
                yield _row(f"{name} to reach {target['loss']:g}", target[key], key != "flops")


def _row(name: str, each: dict[str, Any], large: bool) -> tuple[str, ...]:
    def shown(value: float | None) -> str:
        if value is None:
            return "-"
        return "never" if value == float("inf") else human(value) if large else f"{value:.4g}"

    def interval(low: str, high: str) -> str:
        if each.get(low) is None:
            return "-"
        first, last = shown(each[low]), shown(each[high])
        return first if first == last == "never" else f"{first} to {last}"

    return name, shown(each["value"]), interval("low", "high"), interval("new_low", "new_high")


def _lines(answer: dict[str, Any], shared: Warnings) -> Iterator[str]:
    target, at = answer["target"], answer["at"]
    if target is not None and target["probability"] is not None:
        new = target["new_probability"]
        run = "" if new is None else f"; of a single run: {new:.0%}"
        yield f"chance of {target['loss']:g} or less, as the law goes: {target['probability']:.0%}{run}"
    if at["flops"] is not None or target is not None:
        yield f"{answer['flops_definition']} FLOPs"
    if answer["resamples"]:
        new = any((answer[key] or {}).get("new_low") is not None for key in ("loss", "score"))
        scatter = "; a new run: with the scatter of the fitted points about the law" if new else ""
        yield f"{answer['resamples']} resamples{scatter}"
    yield from warning_lines([each for each in answer["warnings"] if tuple(each.values()) not in shared])
    yield ""


def shared_warnings(groups: list[dict[str, Any]], least: int = 2) -> Warnings:
    """The warnings that at least so many groups have word for word: who has them."""
    found: Warnings = {}
    for each in groups:
        for warning in each["warnings"]:
            found.setdefault(tuple(warning.values()), []).append(each["group"])
    return {key: names for key, names in found.items() if len(names) >= least}


def shared_lines(shared: Warnings) -> Iterator[str]:
    """A line for each, with the groups that have it."""
    for (name, text, detail), names in shared.items():
        yield from warning_lines([{"name": f"{name} ({', '.join(names)})", "text": text, "detail": detail}])


def warning_lines(warnings: list[dict[str, str]]) -> Iterator[str]:
    """A line a warning, and below it a line for each of the places that it lists."""
    for warning in warnings:
        details = [part for part in warning["detail"].split("; ") if part]
        text = f"warning {warning['name']}: {warning['text']}"
        yield text + (f" ({details[0]})" if len(details) == 1 else ":" if details else "")
        if len(details) > 1:
            yield from (f"  {part}" for part in details)
