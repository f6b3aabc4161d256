"""A plan as tables, and what the study file of its ladder says of itself."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from linscale.cli.output import duration, file_size, print_table
from linscale.config import human

if TYPE_CHECKING:
    from linscale.study.ladder_design import Ladder
    from linscale.study.proposal import Proposal


def print_plan(result: dict[str, Any]) -> None:
    """Tables of the models, of the bill, of the ladder and what it is worth; warnings last."""
    plans, law = result["plans"], result["source"]
    title = f"{result['flops']:.3g} training FLOPs, {result['pflop_s_days']:.3g} PFLOP/s-days, by the laws of {law}"
    columns = ("arch", "width x depth", "N", "N_opt", "tokens", "tokens/N", "expected loss")
    print_table(title, columns, [_model_row(each) for each in plans])
    machine = f"{result['gpus']} x {result['gpu']}"
    columns = ("arch", "batch", "steps", "lr", "a GPU holds", "micro-batch", "recompute")
    recipe = f"On {machine}, {result['length']} tokens a sequence, vocabulary {result['vocab_size']:,}"
    print_table(recipe, columns, [_recipe_row(each) for each in plans])
    columns = ("arch", "law FLOPs", "exact FLOPs", "MFU", "time", "GPU-hours", "disk")
    print_table("The bill", columns, [_bill_row(each, result["gpus"]) for each in plans])
    lines = [
        f"law FLOPs: {result['flops_definition']}. exact FLOPs: every matrix product, head included.",
        f"batch and lr: {result['recipe']}. "
        f"time: exact FLOPs / ({result['peak_flops'] / 1e12:.4g} TFLOP/s x MFU x GPUs).",
        *_ladder_lines(result),
        *_warning_lines([*plans, *filter(None, [result["ladder"]])]),
    ]
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _model_row(each: dict[str, Any]) -> tuple[str, ...]:
    loss = each["loss"]
    shown = f"{loss['value']:.3f}" + (f" ({loss['low']:.3f} to {loss['high']:.3f})" if loss["low"] is not None else "")
    return (
        each["arch"],
        f"{each['d_model']} x {each['n_layers']}",
        human(each["params"]),
        _span(each["n_opt"]),
        human(each["tokens"]),
        f"{each['tokens'] / each['params']:.3g}",
        shown,
    )


def _recipe_row(each: dict[str, Any]) -> tuple[str, ...]:
    return (
        each["arch"],
        human(each["batch_tokens"]),
        f"{each['steps']:,}",
        f"{each['lr']:g}",
        file_size(each["memory_bytes"]),
        str(each["micro_batch"]),
        each["activation_checkpointing"],
    )


def _bill_row(each: dict[str, Any], gpus: int) -> tuple[str, ...]:
    return (
        each["arch"],
        f"{each['law_flops']:.3g}",
        f"{each['exact_flops']:.3g}",
        f"{each['mfu']:.0%}",
        duration(each["seconds"]),
        f"{each['seconds'] * gpus / 3600:.3g}",
        file_size(each["disk_bytes"]),
    )


def _span(each: dict[str, Any]) -> str:
    if each["low"] is None:
        return human(each["value"])
    return f"{human(each['value'])} ({human(each['low'])} to {human(each['high'])})"


def _ladder_lines(result: dict[str, Any]) -> Iterator[str]:
    ladder = result["ladder"]
    if ladder is None:
        return
    first = result["plans"][0]["arch"]
    rows = [
        (
            rung["name"],
            human(rung["params"][first]),
            human(rung["tokens"]),
            human(rung["batch_tokens"]),
            f"{rung['lr']:g}",
            str(rung["seeds"]),
        )
        for rung in ladder["rungs"]
    ]
    runs = sum(rung["seeds"] for rung in ladder["rungs"])
    whole = sum(each["exact_flops"] for each in result["plans"]) / len(result["plans"])
    print_table("The ladder to train first", ("rung", f"N of {first}", "tokens", "batch", "lr", "seeds"), rows)
    rows = [(arch, *_certainty_row(each)) for arch, each in ladder["certainty"].items()]
    columns = ("arch", "known from", "loss now", "after", "even ladder", "N_opt now", "after", "even ladder")
    print_table("Half-widths of 95% intervals at the budget, by linear design", columns, rows)
    yield (
        f"ladder: {runs} runs of each architecture, {ladder['exact_flops'] / whole:.1%} of one model's exact FLOPs in "
        f"all, {duration(ladder['gpu_seconds'])} of one GPU."
    )
    yield "even ladder: even steps of size, each with its best tokens, for the same FLOPs."
    if ladder["file"]:
        yield f"Written to {ladder['file']}: linscale study plan {ladder['file']}"


def _certainty_row(each: dict[str, Any]) -> Iterator[str]:
    yield {"points": "the fit's points", "law": "the law's intervals", "prior": "a prior"}[each["basis"]]
    for key, show in (("log_loss", _percent), ("log_n_opt", _factor)):
        for name in ("now", "after", "after_even"):
            yield "-" if each[name] is None else show(each[name][key])


def _percent(log_width: float) -> str:
    return f"± {100 * math.expm1(min(log_width, 20)):.2g}%"


def _factor(log_width: float) -> str:
    return f"{math.exp(min(log_width, 20)):.3g} times"


def _warning_lines(warned: list[dict[str, Any]]) -> Iterator[str]:
    """Each warning once, with what it says of each architecture."""
    found: dict[tuple[str, str], list[str]] = {}
    for each in warned:
        for item in each["warnings"]:
            found.setdefault((item["name"], item["text"]), []).append(item["detail"])
    for (name, text), details in found.items():
        about = "; ".join(filter(None, details))
        yield f"warning {name}: {text}" + (f" ({about})" if about else "")


def ladder_comment(ladder: Ladder, proposals: list[Proposal]) -> str:
    """What the study file says of itself."""
    flops = max(each.cost.law_flops for each in proposals)
    lines = [
        f"The ladder that `linscale plan` proposes before {flops:.3g} training FLOPs are spent on one model:",
        f"{ladder.flops:.3g} FLOPs in all, chosen so that the loss there is predicted best for them.",
    ]
    for arch, each in ladder.certainty.items():
        lines.append(f"{arch}: half-width of 95% now {_percent(each.now[0])}, after it {_percent(each.after[0])}")
    lines.append("Fields: docs/reference/study.md. Rules of the choice: docs/reference/plan.md.")
    return "\n".join(lines)
