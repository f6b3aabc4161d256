"""Tables of the linearization experiment, for experiments/tables.py: KINDS."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Row = dict[str, Any]
Table = list[Sequence[str]]
CSR = {
    "boolq": "acc", "piqa": "acc", "hellaswag": "acc_norm", "winogrande": "acc", "arc_easy": "acc",
    "arc_challenge": "acc_norm", "openbookqa": "acc_norm",
}  # fmt: skip
TEACHER, OURS, SPARSE, SUPRA, T2R = "teacher", "ours", "hybrid-8", "supra", "t2r"
WIKITEXT, NOVELS, HELD = "text-wikitext2_raw_test", "text-novels", "text-held"
NEEDLES = ("needle-easy", "needle-standard")
PARTS = {"": "few-", "linear layers alone": "without-softmax-", "softmax layers alone": "without-linear-",
         "no mixer": "without-mixers-"}  # fmt: skip


def value(row: Row, task: str, metric: str) -> float | None:
    """A number of a row; None where it was not measured."""
    found = row["tasks"].get(task, {}).get(metric)
    return None if found is None else float(found[0])


def error(row: Row, task: str, metric: str) -> float:
    found = row["tasks"].get(task, {}).get(metric)
    return 0.0 if found is None or found[1] is None else float(found[1])


def csr(row: Row, prefix: str = "") -> float | None:
    """The mean of the seven; None where one is missing."""
    values = [value(row, prefix + task, metric) for task, metric in CSR.items()]
    return None if None in values else sum(values) / len(values)  # type: ignore[arg-type]


def csr_error(row: Row) -> float:
    return math.sqrt(sum(error(row, task, metric) ** 2 for task, metric in CSR.items())) / len(CSR)


def perplexity(row: Row, task: str, metric: str = "loss") -> float | None:
    nats = value(row, task, metric)
    return None if nats is None else math.exp(min(nats, 700.0))


def by_length(row: Row, task: str) -> dict[int, float]:
    """Accuracy of a needle by tokens of the prompt."""
    found = {
        int(match[1]): metric for metric in row["tasks"].get(task, {}) if (match := re.fullmatch(r"acc_(\d+)", metric))
    }
    return {length: float(row["tasks"][task][metric][0]) for length, metric in sorted(found.items())}


def needle(row: Row, most: int) -> float | None:
    """Mean accuracy of the easy needle up to a length; the other one is beyond the teacher too."""
    values = [each for length, each in by_length(row, NEEDLES[0]).items() if length <= most]
    return sum(values) / len(values) if values else None


def text(number: float | None, form: str = ".3f") -> str:
    return "-" if number is None else format(number, form)


def share(number: float | None, whole: float | None) -> str:
    return "-" if number is None or not whole else f"{number / whole:.1%}"


def quality(rows: list[Row]) -> Table:
    head = (
        "arm", "softmax layers", "tokens", "held-out loss", "WikiText-2 perplexity", "of the teacher's",
        "LAMBADA perplexity", "LAMBADA accuracy", "CSR", "of the teacher's",
    )  # fmt: skip
    base = teacher(rows)
    table: Table = [head]
    for row in rows:
        wiki, mean = perplexity(row, WIKITEXT), csr(row)
        of_wiki = None if base is None or wiki is None else wiki / (perplexity(base, WIKITEXT) or math.nan)
        table.append((
            row["arm"], f"{row['softmax_layers']} of {row['layers']}", f"{row.get('tokens', 0):,}",
            text(value(row, HELD, "loss")), text(wiki, ".2f"), "-" if of_wiki is None else f"{of_wiki:.2f}x",
            text(perplexity(row, "lambada_openai"), ".1f"), text(value(row, "lambada_openai", "acc"), ".1%"),
            "-" if mean is None else f"{mean:.4f} ± {1.96 * csr_error(row):.4f}",
            share(mean, None if base is None else csr(base)),
        ))  # fmt: skip
    return table


def teacher(rows: list[Row]) -> Row | None:
    return next((row for row in rows if row["arm"] == TEACHER), None)


def zero_shot(rows: list[Row]) -> Table:
    table: Table = [("arm", *CSR)]
    return table + [(row["arm"], *(text(value(row, task, CSR[task]), ".1%") for task in CSR)) for row in rows]


def needles(rows: list[Row]) -> Table:
    return _by_length(rows, {task.removeprefix("needle-"): task for task in NEEDLES}, by_length)


def passkeys(rows: list[Row]) -> Table:
    def found(row: Row, task: str) -> dict[int, float]:
        names = {name: re.fullmatch(rf"{task}-(\d+)", name) for name in row["tasks"]}
        lengths = sorted((int(match[1]), name) for name, match in names.items() if match)
        return {length: float(row["tasks"][name]["accuracy"][0]) for length, name in lengths}

    return _by_length(rows, {"pass key": "recall-passkey"}, found)


def _by_length(rows: list[Row], tasks: dict[str, str], found: Callable[[Row, str], dict[int, float]]) -> Table:
    lengths = sorted({length for row in rows for task in tasks.values() for length in found(row, task)})
    table: Table = [("arm", "", *(f"{length:,}" for length in lengths))]
    for name, task in tasks.items():
        for row in rows:
            cells = found(row, task)
            table.append((row["arm"], name, *(text(cells.get(length), ".0%") for length in lengths)))
    return table


def recall(rows: list[Row]) -> Table:
    found = {name for row in rows for name in row["tasks"] if re.fullmatch(r"recall-(?!passkey)[a-z]+-\d+", name)}
    names = sorted(found, key=lambda name: (name.split("-")[1], int(name.split("-")[2])))
    table: Table = [("arm", *(name.removeprefix("recall-").replace("-", " ") for name in names))]
    return table + [(row["arm"], *(text(value(row, name, "accuracy"), ".0%") for name in names)) for row in rows]


def positions(rows: list[Row]) -> Table:
    places = sorted({place for row in rows for place, _ in curve(row)})
    table: Table = [("arm", *(f"from {place:,}" for place in places))]
    return table + [(row["arm"], *(text(dict(curve(row)).get(place), ".1f") for place in places)) for row in rows]


def curve(row: Row, least: int = 64) -> list[tuple[int, float]]:
    """Perplexity of novels at the places N to 2N - 1, for the N from `least` on; without the last N, of which a window
    ends after a token or few."""
    found = sorted((int(match[1]), metric) for metric in row["tasks"].get(NOVELS, {})
                   if (match := re.fullmatch(r"loss_from_(\d+)", metric)))  # fmt: skip
    return [(place, perplexity(row, NOVELS, metric) or math.nan) for place, metric in found[:-1] if place >= least]


def parts(rows: list[Row]) -> Table:
    table: Table = [("arm", "what is left", "CSR of the first questions", "WikiText-2 perplexity")]
    for row in rows:
        for name, prefix in PARTS.items():
            mean = csr(row, prefix) or (csr(row) if prefix == "few-" else None)  # where whole sets are no larger
            wiki = perplexity(row, WIKITEXT if prefix == "few-" else prefix + WIKITEXT)
            if mean is not None:
                table.append((row["arm"], name or "all of it", f"{mean:.4f}", text(wiki, ".2f")))
    return table


def writing(rows: list[Row]) -> Table:
    """Milliseconds a token of one text by the tokens before it, with its state; tokens a second of many at once."""
    marks = sorted(
        {each["tokens"] for row in rows for each in row.get("speed", ()) if "tokens" in each and "state_bytes" in each}
    )
    many = sorted({each["slots"] for row in rows for each in row.get("speed", ()) if each.get("slots", 1) > 1})
    head = [f"ms a token behind {mark:,}" for mark in marks] + [f"state at {mark:,}" for mark in marks]
    table: Table = [("arm", *head, *(f"tokens/s of {slots} texts" for slots in many), "device", "code")]
    for row in rows:
        alone = {each["tokens"]: each for each in row.get("speed", ()) if "state_bytes" in each}
        at_once = {each["slots"]: each for each in row.get("speed", ()) if each.get("draw") == "greedy"}
        table.append((
            row["arm"], *(text(alone.get(mark, {}).get("ms"), ".2f") for mark in marks),
            *(f"{alone[mark]['state_bytes'] / 1e6:,.1f} MB" if mark in alone else "-" for mark in marks),
            *(text(at_once.get(slots, {}).get("tokens_per_s"), ",.0f") for slots in many),
            *((row.get("speed_of") or row)[key] if "speed" in row else "-" for key in ("device", "code")),
        ))  # fmt: skip
    return table


def training(rows: list[Row]) -> Table:
    head = (
        "arm", "recipe", "tokens", "validation loss", "training, s", "tokens/s", "evaluation, s", "device", "seed",
    )  # fmt: skip
    table: Table = [head]
    for row in rows:
        seconds = row.get("training_s")
        table.append((
            row["arm"], row.get("recipe") or "-", f"{row.get('tokens', 0):,}", text(validation(row)),
            text(seconds, ",.0f"), text(row["tokens"] / seconds if seconds else None, ",.0f"),
            text(row.get("evaluation_s"), ",.0f"), row["device"], str(row.get("seed", "-")),
        ))  # fmt: skip
    return table


def goals(rows: list[Row]) -> Table:
    arms = {row["arm"]: row for row in rows}
    base = arms.get(TEACHER)
    table: Table = [("goal", "wanted", "found", "")]
    for name, wanted, found in _measured(arms, base) if base else ():
        met = "-" if found is None else "met" if (found <= -wanted if wanted < 0 else found >= wanted) else "missed"
        sign = "at most" if wanted < 0 else "at least"
        table.append((name, f"{sign} {abs(wanted):.2f}", text(found), met))
    return table


def _measured(arms: dict[str, Row], base: Row) -> Iterator[tuple[str, float, float | None]]:
    """Name, bound (negative: an upper one) and ratio of every goal."""

    def ratio(arm: str, measure: Callable[[Row], float | None], other: Row | None = base) -> float | None:
        if arm not in arms or other is None:
            return None
        found, whole = measure(arms[arm]), measure(other)
        return None if found is None or not whole else found / whole

    def within(row: Row) -> float | None:
        return needle(row, min(each.get("length") or 2048 for each in arms.values() if each["arm"] != TEACHER))

    yield f"{OURS}: CSR over the teacher's", 0.95, ratio(OURS, csr)
    yield f"{OURS}: WikiText-2 perplexity over the teacher's", -1.25, ratio(OURS, lambda row: perplexity(row, WIKITEXT))
    yield f"{SPARSE}: CSR over the teacher's", 0.98, ratio(SPARSE, csr)
    yield f"{SPARSE}: needle within the training length, over the teacher's", 0.90, ratio(SPARSE, within)
    yield f"{SUPRA}: CSR over that of {T2R}", 1.0, ratio(SUPRA, csr, arms.get(T2R))


def validation(row: Row) -> float | None:
    """Loss at the end of training."""
    losses = [each[2] for stage in row.get("stages", ())[-1:] for each in stage["validation"] if each[1] == "loss"]
    return losses[-1] if losses else None


KINDS: dict[str, Callable[[list[Row]], Table]] = {
    "goals": goals, "quality": quality, "zero-shot": zero_shot, "needle": needles, "passkey": passkeys,
    "recall": recall, "positions": positions, "parts": parts, "writing": writing, "training": training,
}  # fmt: skip
