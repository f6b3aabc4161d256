"""A teacher and what several recipes make of it, at equal tokens: trained, measured, one JSON; one command.

    python experiments/linearize/arms.py experiments/linearize/smollm2.toml TEACHER --data DATA --text TEXT --sets SETS
        [--tokens 100_000_000] [--only PATTERN] [--minutes 9] [--out runs] [--json OUT] [--list]

TEACHER is a Hugging Face folder, DATA what `linscale data prepare TEXT/train --tokenizer TEACHER` made of the text that
text.py wrote to TEXT, SETS what `linscale tasks prepare` made. Arms are trained one after the other by the code of
`linscale linearize` into <out>/<name>/<arm>, and measured when they are done. Killed, or stopped after `--minutes`,
the same command goes on; what is done in the JSON (by default experiments/results/<name>.json) is not done again,
even where its folder is gone; two calls with different `--only` can share a JSON, each on a GPU of its own
(CUDA_VISIBLE_DEVICES), or on one with `--speeds later`. `python experiments/tables.py PAGE` makes tables of it,
chart.py curves.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import filelock
import torch
from scores import SPEEDS, Measures, Measuring, Row, Sources, device

from linscale import checkpoint
from linscale.adapt.huggingface import import_folder
from linscale.adapt.supra import convert, read_teacher
from linscale.config import UserError, config, load_toml, parse, to_dict
from linscale.run_folder import CONFIG, EVALUATIONS, code_version, latest_records, read_json, write_json
from linscale.train.config import Name
from linscale.train.linearize import recipe_sensitivity, run_recipe
from linscale.train.metrics import read_status
from linscale.train.recipe import Recipe, load_recipe

RESULTS = Path(__file__).parent.parent / "results"
TEACHER, UNTRAINED = "teacher", "untrained"


@config
class Arm:
    """One conversion."""

    name: Name
    recipe: str
    "supra, t2r, distill, or a file."
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    "Over the recipe."
    most_sensitive: int | None = None
    "Keep softmax in so many layers: those that cost most where they alone are linear, as measured on another arm."
    measured_on: Name = "ours"
    "That arm, which must have learnt from the teacher's attention: its first stage is enough."


@config
class Experiment:
    """What a file holds."""

    name: Name
    arms: tuple[Arm, ...]
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    "Over the recipes of all arms."
    measures: Measures = Measures()


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Tables of tables, with what `above` says of both."""
    both = {key: merged(below[key], above[key]) for key in below.keys() & above.keys() if isinstance(below[key], dict)}
    return {**below, **above, **both}


def recipe_of(arm: Arm, experiment: Experiment, own: dict[str, Any]) -> Recipe:
    """The recipe that an arm names, with the experiment's changes, its own, and those of this call."""
    values = to_dict(load_recipe(arm.recipe))
    for changes in (experiment.changes, arm.changes, own):
        values = merged(values, changes)
    found: Recipe = parse(Recipe, values, source=f"arm {arm.name!r}")
    return found


class Bench:
    """One call: what is known, and until when there is time."""

    def __init__(self, options: argparse.Namespace, experiment: Experiment) -> None:
        self.options, self.experiment = options, experiment
        self.folder: Path = options.out / experiment.name
        self.json: Path = options.json or RESULTS / f"{experiment.name}.json"
        self.rows = self.known()
        self.deadline = time.monotonic() + 60 * options.minutes
        self.shown = 0.0

    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def done(self, arm: str) -> bool:
        return self.rows.get(arm, {}).get("state") == "done"

    def teacher(self) -> None:
        """Import and measure it; on a GPU in mixed precision, with the weights as they are, as the arms are."""
        run = self.folder / TEACHER
        self.imported(run)
        self.keep(TEACHER, {"tokens": 0}, run)

    def imported(self, run: Path) -> None:
        if not run.exists():
            import_folder(self.options.teacher, run)
        if torch.cuda.is_available():
            write_json(run / CONFIG, read_json(run / CONFIG) | {"precision": "bf16"})

    def arm(self, arm: Arm) -> None:
        """Train an arm as far as there is time, and measure it when it is trained."""
        kept = {} if arm.most_sensitive is None else {"softmax_layers": self.sensitive(arm)}
        recipe = recipe_of(arm, self.experiment, {"data": str(self.options.data), **self.own(), **kept})
        run = self.folder / arm.name
        status = run_recipe(recipe, self.options.teacher, run, on_step=self.show, stop=self.late)
        stages = [stage_of(run / f"{n}-{stage.name}", stage.name) for n, stage in enumerate(recipe.stages[:-1], 1)]
        stages = [stage for stage in (*stages, stage_of(run, recipe.stages[-1].name)) if stage]
        row: Row = {
            "recipe": arm.recipe, "tokens": sum(stage["tokens"] for stage in stages), "seed": recipe.seed,
            "length": recipe.train.get("length"), "stages": stages,
            "recipe_values": {**to_dict(recipe), "data": None},  # where it lies is this machine's alone
            "training_s": sum(stage["elapsed_s"] for stage in stages), "state": status["state"],
        }  # fmt: skip
        if status["state"] == "done":
            if any(each.most_sensitive and each.measured_on == arm.name for each in self.experiment.arms):
                row["sensitivity"] = self.sensitivity(arm)
            self.keep(arm.name, row, run)
        else:
            self.write(arm.name, row)

    def sensitive(self, arm: Arm) -> list[int]:
        """The layers that an arm keeps."""
        found = self.rows.get(arm.measured_on, {}).get("sensitivity")
        if found is None:
            try:
                found = self.sensitivity(next(each for each in self.experiment.arms if each.name == arm.measured_on))
            except UserError as error:
                raise UserError(
                    f"arm {arm.name!r}: keeps what {arm.measured_on!r} is most sensitive in: {error}"
                ) from None
        costly = sorted(found, key=lambda each: each[1], reverse=True)[: arm.most_sensitive]
        return sorted(layer for layer, _, _ in costly)

    def sensitivity(self, arm: Arm) -> list[Any]:
        """What each layer costs, by the first stage of an arm, which another call may be training on."""
        recipe = recipe_of(arm, self.experiment, {"data": str(self.options.data), **self.own()})
        found = recipe_sensitivity(recipe, self.folder / arm.name).layers
        return [[each.layer, each.increase, each.se] for each in found]

    def own(self) -> dict[str, Any]:
        return {} if self.options.tokens is None else {"tokens": self.options.tokens}

    def keep(self, arm: str, row: Row, run: Path) -> None:
        """Measure a run and write its row."""
        print(f"{arm}: measuring", flush=True)
        speeds = {} if self.options.speeds == "later" else {"speed": self.measuring.speeds(run)}
        self.write(arm, {**row, **self.measuring.row(run), **speeds, "state": "done"})

    @functools.cached_property
    def measuring(self) -> Measuring:
        return Measuring(self.experiment.measures, Sources(self.options.text, self.options.sets))

    def speeds(self, arm: str) -> None:
        """Measure the speeds of an arm that was measured without."""
        row, run = self.rows[arm], self.folder / arm
        if "speed" not in row and run.exists():
            self.write(arm, {**row, "speed": self.measuring.speeds(run)})

    def speeds_again(self, arm: str) -> None:
        """Measure them anew, of code that is faster or on another device; where the run is gone, on the conversion that
        it began with: no speed hangs on what weights hold."""
        row, run = self.rows[arm], self.folder / arm
        if not (run.exists() and checkpoint.newest(run)):
            run = self.folder / UNTRAINED / arm
            run.parent.mkdir(parents=True, exist_ok=True)
            if arm == TEACHER:
                self.imported(run)
            elif not run.exists():
                recipe: Recipe = parse(Recipe, row["recipe_values"], source=f"arm {arm!r}")
                teacher = read_teacher(self.options.teacher)
                convert(teacher, run, recipe.linear, recipe.kept(teacher.config.n_layers), seed=recipe.seed)
        (run / SPEEDS).unlink(missing_ok=True)
        self.write(arm, {**row, "speed": self.measuring.speeds(run), "speed_of": {"code": code_version(), **device()}})

    def write(self, arm: str, row: Row) -> None:
        """Put a row into the JSON, to which other calls may add theirs meanwhile."""
        self.json.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.json.with_name(f".{self.json.name}.lock")):
            self.rows = {**self.known(), arm: {"arm": arm, **row}}
            self._write()

    def known(self) -> dict[str, Row]:
        found = json.loads(self.json.read_text())["rows"] if self.json.exists() else []
        return {row["arm"]: row for row in found}

    def _write(self) -> None:
        order = [TEACHER, *(each.name for each in self.experiment.arms)]
        rows = sorted(
            self.rows.values(), key=lambda row: order.index(row["arm"]) if row["arm"] in order else len(order)
        )
        write_json(self.json, {"name": self.experiment.name, "rows": rows})

    def show(self, status: dict[str, Any]) -> None:
        """Where training stands, every 15 seconds."""
        if time.monotonic() - self.shown > 15:
            self.shown = time.monotonic()
            loss = "-" if status.get("loss") is None else f"{status['loss']:.4f}"
            speed = f"{status.get('tokens_per_s') or 0:,.0f} tokens/s"
            print(f"{status['stage']} {status['step']}/{status['steps']}  loss {loss}  {speed}", flush=True)


def stage_of(run: Path, name: str) -> Row | None:
    """What a stage came to; None where it has not begun."""
    status = read_status(run)
    if not status:
        return None
    found = [
        [record["step"], record["metric"], record["value"]]
        for record in latest_records(run / EVALUATIONS, ("step", "task", "metric"))
        if record["task"] in ("validation", "teacher")
        and not record["metric"].startswith("attention_error_")  # of single layers
    ]
    batch = read_json(run / "config.json")["train"]["batch_tokens"]
    return {
        "name": name, "tokens": status["step"] * batch, "elapsed_s": status["elapsed_s"], "validation": found,
    }  # fmt: skip


def main() -> None:
    options = parse_options()
    experiment: Experiment = load_toml(options.file, Experiment)
    bench = Bench(options, experiment)
    names = [name for name in (TEACHER, *(arm.name for arm in experiment.arms)) if re.search(options.only, name)]
    arms = {arm.name: arm for arm in experiment.arms}
    if options.list:
        for name in names:
            tokens = recipe_of(arms[name], experiment, bench.own()).tokens if name in arms else 0
            print(f"{name:<16}{tokens:>14,} tokens{'  done' if bench.done(name) else ''}")
        return
    for name in names:
        if bench.done(name) and options.speeds == "again":
            bench.speeds_again(name)
        elif bench.done(name) and options.speeds != "later":
            bench.speeds(name)
        elif options.speeds in ("only", "again"):
            continue
        elif not bench.done(name) and not bench.late():
            print(f"{name}:", flush=True)
            bench.arm(arms[name]) if name in arms else bench.teacher()
    done = sum(bench.done(name) for name in names)
    print(f"{done} of {len(names)} arms done; {bench.json}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("teacher", type=Path, help="a Hugging Face folder")
    for name in ("data", "text", "sets"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--tokens", type=int, help="of every arm, instead of what the recipes say")
    parser.add_argument("--only", default="", metavar="PATTERN", help="a regular expression: arms that it matches")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop training after so many, saved")
    help_of_speeds = (
        "later: leave them to a call with nothing beside it. only: of what is done, and train nothing. again: the "
        "same, also of what has them"
    )
    parser.add_argument("--speeds", choices=("now", "later", "only", "again"), default="now", help=help_of_speeds)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--list", action="store_true", help="name the arms, and train none")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"arms.py: {error}")
