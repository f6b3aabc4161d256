"""The written parts of the report page: provenance, warnings, tables, samples, method. All text is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from linscale.config import human
from linscale.study.laws import PAPER_LAWS, PARAMETERS
from linscale.study.report.digest import notes, printable

LAWS = (("l", "L(C)"), ("n_opt", "N<sub>opt</sub>(C)"), ("d_opt", "D<sub>opt</sub>(C)"))
MISSING = "–"


def loss_name(found: dict[str, Any]) -> str:
    """The loss that was fitted, in words."""
    return "training" if found["loss"] == "train" else "validation"


def provenance(found: dict[str, Any]) -> str:
    """What the numbers came from, as a description list."""
    origin = found["provenance"]
    loss = "mean over the tokens of a step" if found["loss"] == "train" else "the same held-out text for every run"
    rows = [
        ("Study", escape(origin["study"])),
        ("Code", _codes(origin["code"])),
        ("Data", _codes(origin["data"])),
        ("Device", escape(", ".join(origin["device"])) or MISSING),
        ("Loss", f"{loss_name(found)} cross-entropy, nats per token ({loss})"),
        ("Protocol", _codes(origin["protocol"])),
        ("Compute", "training FLOPs of the closed forms, embeddings excluded; 1 PFLOP/s-day = 8.64 × 10<sup>19</sup>"),
    ]
    return '<dl class="provenance">' + "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in rows) + "</dl>"


def warnings(found: dict[str, Any]) -> str:
    """What a reader must know before acting on the laws; empty when there is nothing."""
    listed = notes(found["architectures"])
    listed += [(r["state"], r["run"], "the run has not finished") for r in found["runs"] if r["state"] != "done"]
    if not listed:
        return ""
    lines = "".join(
        f"<li><strong>{escape(concerned)}</strong>: {escape(text)} <code>{escape(name)}</code></li>"
        for name, concerned, text in listed
    )
    heading = '<h2 id="warnings-title">Before you act on this</h2>'
    return f'<aside aria-labelledby="warnings-title">{heading}<ul>{lines}</ul></aside>'


def laws_table(found: dict[str, Any]) -> str:
    """The coefficients with their intervals, each architecture's above the published ones."""
    bodies = []
    for item in found["architectures"]:
        name, fit = escape(item["name"]), item["fit"]
        if fit is None:
            rows = f'<tr><th scope="row">{name}</th><td class="reason" colspan="7">{escape(item["refused"])}</td></tr>'
        else:
            cells = "".join(_parameter(key, fit["parameters"][key]) for key in PARAMETERS)
            low, high = fit["compute_range"]
            rows = f'<tr><th scope="row">{name}</th>{cells}<td>{number(low)} to<br>{number(high)}</td></tr>'
        if item["group"] in PAPER_LAWS:
            law = PAPER_LAWS[item["group"]]
            published = "".join(f"<td>{_value(key, getattr(law, key))}</td>" for key in PARAMETERS)
            rows += f'<tr class="published"><th scope="row">published</th>{published}<td></td></tr>'
        bodies.append(f"<tbody>{rows}</tbody>")
    groups = "".join(f'<th scope="colgroup" colspan="2">{title}</th>' for _, title in LAWS)
    columns = '<th scope="col">coefficient</th><th scope="col">exponent</th>' * len(LAWS)
    return _table(
        "Each law is coefficient × C<sup>exponent</sup> with C in PFLOP/s-days; under each value its 95% interval over "
        "runs. A question mark: the interval leaves open the sign of an exponent, or a factor of ten. Published: "
        "Shen et al. 2024, 70M to 7B on another corpus and vocabulary, so exponents compare and coefficients do not.",
        f'<tr><th rowspan="2" scope="col">Architecture</th>{groups}<th rowspan="2" scope="col">fitted over C</th></tr>'
        f"<tr>{columns}</tr>",
        "".join(bodies),
        "Coefficients of the laws",
    )


def runs_table(runs: Sequence[dict[str, Any]]) -> str:
    """One line a run."""
    rows = "".join(
        f'<tr><th scope="row">{escape(run["run"])}</th><td class="text">{escape(run["state"])}</td>'
        + "".join(f"<td>{value}</td>" for value in _run_values(run))
        + "</tr>"
        for run in runs
    )
    names = ("Run", "state", "parameters", "tokens", "FLOPs", "validation loss", "bits per byte", "tokens/s")
    headings = [f'<th scope="col"{" class=text" if name == "state" else ""}>{name}</th>' for name in names]
    return _table(
        "Parameters without embeddings; loss in nats per token at the last checkpoint; tokens/s is a median.",
        f"<tr>{''.join(headings)}</tr>",
        f"<tbody>{rows}</tbody>",
        "Runs of the study",
    )


def samples(found: dict[str, Any]) -> str:
    """What the models write, the prompt in bold. The text comes from a model and is only ever text."""
    blocks = []
    for item in found["architectures"]:
        if sample := item["sample"]:
            source = f"{sample.get('run', '')}, step {sample.get('step', '?')}"
            prompt, text = str(sample.get("prompt", "")), str(sample.get("continuation", ""))
            blocks.append(
                f"<h3>{escape(item['name'])}<small>{escape(source)}</small></h3>"
                f"<pre><strong>{escape(printable(prompt))}</strong>{escape(printable(text))}</pre>"
            )
    if not blocks:
        return ""
    return (
        '<section aria-labelledby="samples-title"><h2 id="samples-title">Samples</h2>' + "".join(blocks) + "</section>"
    )


def method(found: dict[str, Any]) -> str:
    """How the laws were fitted, with the settings and what was left out."""
    fitted = [item for item in found["architectures"] if item["fit"]]
    if not fitted:
        return "<p>No law is fitted in this study yet.</p>"
    settings = escape(", ".join(f"{key} = {value}" for key, value in found["settings"].items()))
    details = "".join(_details(item) for item in fitted)
    return (
        "<p>At log-spaced compute values the sizes of an architecture are compared, and the lowest loss is refined by "
        "the parabola through the best size and its two neighbours in log N and log loss. Stretches where the smallest "
        "or largest size wins are dropped. L, N<sub>opt</sub> and D<sub>opt</sub> are then regressed on C, each on its "
        "own, by least squares in log-log space (Shen et al. 2024; Hoffmann et al. 2022, approach 1).</p>"
        "<p>Intervals come from refitting resampled runs: drawn with replacement within each size, and each drawn run "
        "shifted by the noise between seeds that drawing cannot show.</p>"
        f"<p>Settings: <code>{settings}</code></p>"
        f"<details><summary>Points used and dropped</summary><ul>{details}</ul></details>"
    )


def number(value: float) -> str:
    """A number in HTML: plain where that is short, otherwise with a power of ten; a real minus sign."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4g}".replace("-", "−")
    mantissa, power = f"{value:.2e}".split("e")
    return f"{mantissa} × 10<sup>{int(power)}</sup>".replace("-", "−")


def _value(name: str, value: float) -> str:
    return f"{value:.4f}".replace("-", "−") if name.endswith("exponent") else number(value)


def _parameter(name: str, row: dict[str, Any]) -> str:
    mark = "" if row["identified"] else " ?"
    interval = "no interval"
    if row["low"] is not None:
        interval = f"{_value(name, row['low'])} to {_value(name, row['high'])}"
    return f"<td>{_value(name, row['value'])}{mark}<small>{interval}</small></td>"


def _run_values(run: dict[str, Any]) -> list[str]:
    loss, bits, speed = run["validation_loss"], run["bits_per_byte"], run["tokens_per_s"]
    return [
        human(run["params"]),
        human(run["tokens"]),
        number(run["flops"]),
        MISSING if loss is None else f"{loss:.4f}",
        MISSING if bits is None else f"{bits:.4f}",
        MISSING if speed is None else human(speed),
    ]


def _details(item: dict[str, Any]) -> str:
    fit = item["fit"]
    dropped = ", ".join(f"{entry['rule']} {entry['count']}" for entry in fit["dropped"] if entry["count"]) or "nothing"
    boot = fit["bootstrap"]
    return (
        f"<li><strong>{escape(item['name'])}</strong>: {fit['points_used']} compute values used; "
        f"dropped: {escape(dropped)}. {boot['fitted']} of {boot['replicates']} replicates fitted; "
        f"{boot['distinct_resamples']} distinct resamples; "
        f"seed noise {boot['seed_noise']:.3g} ({escape(boot['seed_noise_source'])}).</li>"
    )


def _codes(values: Sequence[str]) -> str:
    return ", ".join(f"<code>{escape(value)}</code>" for value in values) or MISSING


def _table(caption: str, head: str, body: str, label: str) -> str:
    table = f"<table><caption><span>{caption}</span></caption><thead>{head}</thead>{body}</table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{table}</div>'
