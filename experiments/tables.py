"""Tables of experiments, in Markdown, put where a page asks for them.

    python experiments/tables.py docs/results/recurrent-transformer.md [--results experiments/results]

Between `<!-- table NAME KIND -->` and `<!-- end -->` of the page stands the table of that KIND from NAME.json, written
anew at each call; all other text stays. Where there is no such file, or no row in it, the page says so. Several files
are one table, NAME+NAME; `<!-- table NAME KIND of PATTERN -->` has the arms alone that a regular expression, without
blanks, finds something in.

    loss, accuracy   by arm, over seeds: the best checkpoint and the last one
    copying          accuracy at the end, and sequences until the whole length and until 99% of looks' loss
    lengths          accuracy by tokens of noise
    alpha            what was learned
    speed            of training
    goals, quality, zero-shot, needle, passkey, recall, positions, parts, writing, training
                     of models that were linearized: see linearize/page.py
    law              of NAME.json, a copy of the fits.json of a study with `law = "pac"`: exponents, and where they lie
    smallest         of the same: the smallest size that is good enough for each amount of text

Numbers over several seeds are means with the half width of their 95% interval (Student's t); those of each seed where
there are two, or where the interval is as wide as the mean. One number is that of one seed, or of all. Runs that were
stopped behind half their steps count as they stood, and the column of seeds tells how far they came: "3 (to 96%)".
Alpha and accuracies at other lengths are those of finished runs.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from linearize.page import KINDS as LINEARIZED
from scipy import stats

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]
Table = list[Sequence[str]]
MASTERED = 0.02  # nats of a payload token: where 99% and more are right


def mean(values: Iterable[float | None], form: str = ".4f") -> str:
    """Mean ± half width of the 95% interval of the mean, over three seeds or more. The values themselves of two,
    whose interval is six times as wide as they are apart, and where it is as wide as the mean."""
    found = [value for value in values if value is not None]
    if not found:
        return "-"
    if len(set(found)) == 1:
        return format(found[0], form)
    if len(found) > 2 and all(map(math.isfinite, found)):
        half = stats.t.ppf(0.975, len(found) - 1) * statistics.stdev(found) / math.sqrt(len(found))
        if half < abs(statistics.mean(found)) / 2:
            return f"{statistics.mean(found):{form}} ± {half:{form}}"
    return " / ".join(format(value, form) for value in found)


def by_arm(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows of each arm: finished ones, and those stopped behind half their steps. To leave these out would favour arms
    some of whose runs end early because they have learnt the task."""
    arms: dict[str, list[Row]] = {}
    for row in rows:
        if row["state"] == "done" or (row["validation"] and row["step"] >= row["steps"] / 2):
            arms.setdefault(row["arm"], []).append(row)
    return arms


def seeds(rows: list[Row]) -> str:
    """How many, and how far those came that were stopped."""
    stopped = [f"{row['step'] / row['steps']:.0%}" for row in rows if row["state"] != "done"]
    return str(len(rows)) + (f" (to {', '.join(stopped)})" if stopped else "")


def best(row: Row, metric: str) -> float:
    """Of all checkpoints."""
    values = [point[metric] for point in row["validation"]]
    return max(values) if metric == "accuracy" else min(values)


def loss(rows: list[Row]) -> Table:
    head = ("arm", "parameters", "MFLOPs a token", "seeds", "best validation loss", "last")
    return [head, *(
        (arm, f"{each[0]['params']:,}", f"{each[0]['flops_per_token'] / 1e6:.1f}", seeds(each),
         mean(best(row, "loss") for row in each), mean(row["validation"][-1]["loss"] for row in each))
        for arm, each in by_arm(rows).items()
    )]  # fmt: skip


def accuracy(rows: list[Row]) -> Table:
    head = ("arm", "parameters", "MFLOPs a token", "seeds", "best accuracy", "last", "best validation loss")
    return [head, *(
        (arm, f"{each[0]['params']:,}", f"{each[0]['flops_per_token'] / 1e6:.2f}", seeds(each),
         mean((best(row, "accuracy") for row in each), ".2%"),
         mean((row["validation"][-1]["accuracy"] for row in each), ".2%"), mean(best(row, "loss") for row in each))
        for arm, each in by_arm(rows).items()
    )]  # fmt: skip


def copying(rows: list[Row]) -> Table:
    head = (
        "arm",
        "parameters",
        "seeds",
        "accuracy at the end",
        "best",
        "sequences",
        "until full length",
        "until mastered",
    )
    return [head, *(
        (arm, f"{each[0]['params']:,}", seeds(each),
         mean((row["validation"][-1]["accuracy"] for row in each), ".2%"),
         mean((best(row, "accuracy") for row in each), ".2%"),
         mean((row["step"] * row["sequences"] for row in each), ",.0f"),
         _reached(each, math.inf), _reached(each, MASTERED))
        for arm, each in by_arm(rows).items()
    )]  # fmt: skip


def _reached(rows: list[Row], below: float) -> str:
    """Sequences before a look at the whole length found a loss below this one, and in how many of the runs."""
    counts = []
    for row in rows:
        looks = row.get("looks", ())
        steps = [step for step, difficulty, loss in looks if difficulty >= row["noise"] and loss < below]
        counts += [steps[0] * row["sequences"]] if steps else []
    return mean(counts, ",.0f") + (f" ({len(counts)} of {len(rows)})" if len(counts) < len(rows) else "")


def lengths(rows: list[Row]) -> Table:
    arms = by_arm(rows)
    noises = sorted({int(noise) for each in arms.values() for row in each for noise in row.get("lengths", ())})
    table: Table = [("arm", "as trained", *(f"{noise:,}" for noise in noises))]
    for arm, each in arms.items():
        cells = [mean((row["validation"][-1]["accuracy"] for row in each), ".2%")]
        for noise in noises:
            found = [row["lengths"].get(str(noise), {}) for row in each if "lengths" in row]
            right = [one["accuracy"] for one in found if "accuracy" in one]
            cells.append(mean(right, ".2%") if right else next((_short(one["refused"]) for one in found if one), "-"))
        table.append((arm, *cells))
    return table


def _short(refused: str) -> str:
    """The first clause of an error, without what stands in brackets."""
    return re.sub(r" \(.*?\)", "", refused).split(",")[0].split(";")[0]


def alpha(rows: list[Row]) -> Table:
    table: Table = [("arm", "layer", "alpha, mean over channels or heads", "lowest", "highest", "gain of the norm")]
    for arm, each in by_arm(rows).items():
        known = [row["alpha"] for row in each if "alpha" in row]  # of finished ones
        for layer in range(max(map(len, known), default=0)):
            found = [each_alpha[layer] for each_alpha in known]
            names = ("mean", "low", "high", "gain")
            table.append((arm, str(layer), *(mean((one.get(name) for one in found), ".3f") for name in names)))
    return table


def speed(rows: list[Row]) -> Table:
    head = ("arm", "device", "tokens/s, runs side by side", "seconds a run")
    return [head, *(
        (arm, each[0]["device"], mean((row["tokens_per_s"] for row in each), ",.0f"),
         mean((row["elapsed_s"] for row in each), ",.0f"))
        for arm, each in by_arm(rows).items()
    )]  # fmt: skip


def law(groups: list[Row]) -> Table:
    table: Table = [
        (
            "",
            "gamma",
            "95% interval",
            "holds 0.44, 0.72",
            "holds 1",
            "amounts of text",
            "one of them left out",
            "at half and twice the tolerance",
        )
    ]
    for group in groups:
        gamma = group["parameters"]["exponent"]
        low, high = gamma["low"], gamma["high"]
        inside = {each["exponent"]: "yes" if each["inside"] else "no" for each in group["compared"]}
        others = [each["exponent"] for each in group["sensitivity"]]
        table.append((
            group["group"], f"{gamma['value']:.2f}", "-" if low is None else f"{low:.2f} to {high:.2f}",
            "-" if low is None else f"{inside[0.44]}, {inside[0.72]}", "-" if low is None else inside[1.0],
            str(len(group["minima"]["tokens"])), " to ".join(f"{each:.2f}" for each in _without_one(group["minima"])),
            ", ".join("-" if value is None else f"{value:.2f}" for value in (others[0], others[-1])),
        ))  # fmt: skip
    return table


def _without_one(minima: dict[str, list[float]]) -> tuple[float, float]:
    """The lowest and the highest exponent with one amount of text left out."""
    points = [(math.log(d), math.log(n)) for d, n in zip(minima["tokens"], minima["params"], strict=True)]
    slopes = [
        statistics.linear_regression(*zip(*(points[:left] + points[left + 1 :]), strict=True)).slope
        for left in range(len(points))
    ]
    return min(slopes), max(slopes)


def smallest(groups: list[Row]) -> Table:
    table: Table = [("", "text, tokens", "smallest size that is good enough", "its loss", "lowest loss")]
    for group in groups:
        found = group["minima"]
        table += [
            (group["group"], f"{tokens:,.0f}", f"{params:,.0f}", f"{loss:.3f}", f"{least:.3f}")
            for tokens, params, loss, least in zip(
                found["tokens"], found["params"], found["loss"], found["best_loss"], strict=True
            )
        ]
    return table


KINDS: dict[str, Callable[[list[Row]], Table]] = {
    "loss": loss, "accuracy": accuracy, "copying": copying, "lengths": lengths, "alpha": alpha, "speed": speed,
    "law": law, "smallest": smallest, **LINEARIZED,
}  # fmt: skip
GROUPS = ("law", "smallest")  # of a fit, not of an experiment


def markdown(table: Table) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


def filled(page: str, results: Path) -> str:
    """The page with its tables as the results are now."""

    def replace(place: re.Match[str]) -> str:
        asked, names, kind, pattern = place[1], place[2], place[3], place[4] or ""
        part = "groups" if kind in GROUPS else "rows"
        rows, missing = [], []
        for name in names.split("+"):
            path = results / f"{name}.json"
            found = json.loads(path.read_text())[part] if path.exists() else []
            rows += [row for row in found if re.search(pattern, row.get("arm", ""))]
            if not found:
                missing.append(f"No results of {name} yet.")
        table = KINDS[kind](rows) if rows else []
        shown = [markdown(table)] if len(table) > 1 else []
        text = "\n\n".join(shown + missing) or "No such results yet."
        return f"<!-- {asked} -->\n\n{text}\n\n<!-- end -->"

    place = rf"<!-- (table ([\w.+-]+) ({'|'.join(KINDS)})(?: of (\S+))?) -->.*?<!-- end -->"
    return re.sub(place, replace, page, flags=re.S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not options.page.is_file():
        parser.error(f"{options.page}: no such file; expected a page with places for tables")
    options.page.write_text(filled(options.page.read_text(encoding="utf-8"), options.results), encoding="utf-8")


if __name__ == "__main__":
    main()
