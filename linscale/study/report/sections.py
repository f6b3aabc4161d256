"""The written parts of the report page: provenance, warnings, tables, samples, method. All text is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from linscale.config import human
from linscale.run_folder import code_version
from linscale.study.laws import PAPER_LAWS
from linscale.study.report.digest import LAWS, noise_source, printable, reference_texts, with_interval

TITLES = ("L(C)", "N<sub>opt</sub>(C)", "D<sub>opt</sub>(C)")
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
        ("Written by", f"<code>linscale {escape(code_version())}</code>"),
        ("Compute", "training FLOPs of the closed forms, embeddings excluded; 1 PFLOP/s-day = 8.64 × 10<sup>19</sup>"),
    ]
    return '<dl class="provenance">' + "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in rows) + "</dl>"


def lead(found: dict[str, Any]) -> str:
    """What was trained, in one sentence."""
    runs, architectures = found["runs"], [item["name"] for item in found["architectures"]]
    params = [run["params"] for run in runs]
    names = ", ".join(architectures[:-1]) + " and " + architectures[-1] if len(architectures) > 1 else architectures[0]
    return (
        f"{escape(names)}: {len(runs)} {'runs' if len(runs) > 1 else 'run'} of "
        f"{human(min(params))} to {human(max(params))} parameters, trained on up to "
        f"{human(max(run['tokens'] for run in runs))} tokens."
    )


def warnings(noted: Iterable[tuple[str, str, str]]) -> str:
    """What a reader must know before acting on the laws, as `digest.notes` has it; empty when there is nothing."""
    lines = "".join(
        f"<li>{escape(text[:1].upper() + text[1:])}: <strong>{escape(concerned)}</strong> "
        f"<code>{escape(name)}</code></li>"
        for name, concerned, text in noted
    )
    if not lines:
        return ""
    heading = '<h2 id="warnings-title">Before you act on this</h2>'
    return f'<aside aria-labelledby="warnings-title">{heading}<ul>{lines}</ul></aside>'


def laws(found: dict[str, Any]) -> str:
    """The laws around the reference compute; where that is not 1 PFLOP/s-day, the coefficients of fits.json too."""
    coefficients = _laws_table(found, at_reference=False)
    if found["reference_compute"] == 1:
        return coefficients
    details = f"<details><summary>Coefficients at 1 PFLOP/s-day</summary>{coefficients}</details>"
    return _laws_table(found, at_reference=True) + details


def _laws_table(found: dict[str, Any], *, at_reference: bool) -> str:
    """Factor and exponent of each law with their intervals, each architecture's above the published ones."""
    bodies = []
    for item in found["architectures"]:
        name, fit = escape(item["name"]), item["fit"]
        if fit is None:
            rows = f'<tr><th scope="row">{name}</th><td class="reason" colspan="7">{escape(item["refused"])}</td></tr>'
        else:
            cells = "".join(_law(item, *law, at_reference=at_reference) for law in LAWS)
            low, high = fit["compute_range"]
            rows = f'<tr><th scope="row">{name}</th>{cells}<td>{number(low, 2)} to<br>{number(high, 2)}</td></tr>'
        if item["group"] in PAPER_LAWS:
            cells = "".join(_published(item["group"], law, at_reference=at_reference) for law, _ in LAWS)
            rows += f'<tr class="published"><th scope="row">published</th>{cells}<td></td></tr>'
        bodies.append(f"<tbody>{rows}</tbody>")
    groups = "".join(f'<th scope="colgroup" colspan="2">{title}</th>' for title in TITLES)
    factor = "at C<sub>0</sub>" if at_reference else "coefficient"
    columns = f'<th scope="col">{factor}</th><th scope="col">exponent</th>' * len(LAWS)
    return table(
        _laws_caption(found, at_reference=at_reference),
        f'<tr><th rowspan="2" scope="col">Architecture</th>{groups}<th rowspan="2" scope="col">fitted over C</th></tr>'
        f"<tr>{columns}</tr>",
        "".join(bodies),
        "The laws" if at_reference else "Coefficients at 1 PFLOP/s-day",
    )


def _laws_caption(found: dict[str, Any], *, at_reference: bool) -> str:
    published = "Published: Shen et al. 2024, 70M to 7B on another corpus and vocabulary"
    intervals = f"Under each value its 95% interval, {noise_source(found)}"
    if not at_reference:
        return (
            f"Each law is coefficient × C<sup>exponent</sup>, C in PFLOP/s-days. {intervals}; a question mark: it "
            f"leaves open the sign of an exponent, or a factor of ten. {published}: only exponents compare."
        )
    return (
        f"Each law is its value at C<sub>0</sub> × (C / C<sub>0</sub>)<sup>exponent</sup>, "
        f"C<sub>0</sub> = {number(found['reference_compute'], 2)} PFLOP/s-days, amid what was fitted. {intervals}; "
        f"a question mark: it leaves open the sign of an exponent. {published}: only exponents compare."
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
    return table(
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
        "<p>Intervals come from refitting the study with its runs resampled: drawn with replacement within each size, "
        "and each drawn run shifted as a whole by seed noise. Where a size has one run, the draw changes nothing and "
        "the interval rests on that shift alone: its size is assumed, unless repeats of other sizes measure it.</p>"
        f"<p>Settings: <code>{settings}</code></p>"
        f"<details><summary>Points used and dropped</summary><ul>{details}</ul></details>"
    )


def number(value: float, digits: int = 3) -> str:
    """A number in HTML: plain where that is short, otherwise with a power of ten; a real minus sign."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{float(f'{value:.{digits}g}'):g}".replace("-", "−")
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    factor = "" if float(mantissa) == 1 else f"{float(mantissa):g} × "
    return f"{factor}10<sup>{int(power)}</sup>".replace("-", "−")


def _law(item: dict[str, Any], law: str, key: str, *, at_reference: bool) -> str:
    """Two cells: the factor, at the reference compute or at 1 PFLOP/s-day, and the exponent."""
    factor, exponent = (item["fit"]["parameters"][f"{law}_{part}"] for part in ("coefficient", "exponent"))
    if at_reference:
        texts, mark = reference_texts(item, key), ""
    elif factor["low"] is None:
        texts, mark = (number(factor["value"]), "no interval"), " ?"
    else:
        texts = number(factor["value"]), f"{number(factor['low'])} to {number(factor['high'])}"
        mark = "" if factor["identified"] else " ?"
    return _cell(texts, mark) + _cell(with_interval(exponent), "" if exponent["identified"] else " ?")


def _cell(texts: tuple[str, str], mark: str) -> str:
    value, interval = (text.replace("-", "−") for text in texts)
    return f"<td>{value}{mark}<small>{interval}</small></td>"


def _published(arch: str, law: str, *, at_reference: bool) -> str:
    coefficient, exponent = (getattr(PAPER_LAWS[arch], f"{law}_{part}") for part in ("coefficient", "exponent"))
    factor = "" if at_reference else number(coefficient, 5 if law == "l" else 3)
    return f"<td>{factor}</td><td>{exponent:.4f}</td>".replace("-", "−")


def _run_values(run: dict[str, Any]) -> list[str]:
    loss, bits, speed = run["validation_loss"], run["bits_per_byte"], run["tokens_per_s"]
    return [
        human(run["params"]),
        human(run["tokens"]),
        number(run["flops"]),
        MISSING if loss is None else f"{loss:.3f}",
        MISSING if bits is None else f"{bits:.3f}",
        MISSING if speed is None else human(speed),
    ]


def _details(item: dict[str, Any]) -> str:
    fit = item["fit"]
    dropped = ", ".join(f"{entry['rule']} {entry['count']}" for entry in fit["dropped"] if entry["count"]) or "nothing"
    boot = fit["bootstrap"]
    return (
        f"<li><strong>{escape(item['name'])}</strong>: {fit['points_used']} compute values used; "
        f"dropped: {escape(dropped)}. {boot['fitted']} of {boot['replicates']} replicates fitted; "
        f"{boot['distinct_resamples']} distinct draw(s) of runs; "
        f"seed noise {100 * boot['seed_noise']:.2g}% ({escape(boot['seed_noise_source'])}).</li>"
    )


def _codes(values: Sequence[str]) -> str:
    return ", ".join(f"<code>{escape(value)}</code>" for value in values) or MISSING


def table(caption: str, head: str, body: str, label: str) -> str:
    """A table in HTML that scrolls within itself where it is wider than the page; `label` is its name."""
    table = f"<table><caption><span>{caption}</span></caption><thead>{head}</thead>{body}</table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{table}</div>'
