"""An experiment: models that differ in more than a study's sizes, on the same data, over seeds; one command.

    python experiments/run.py experiments/recurrent/shakespeare.toml [--only PATTERN] [--seeds 0,1] [--workers 4]
        [--minutes 9] [--out runs] [--json OUT] [--list]

A study is every architecture at every size by one recipe. Here an arm is one model with what it changes of the shared
recipe: [[arms]] with a `name`, a [arms.model] over the shared [model], and a [arms.train] over the shared [train]; the
rest of a file is as in a train file, with `seeds`. Arms are trained seed by seed, `--workers` at a time on the device,
by the package's trainer, into run folders <out>/<name>/<arm>-s<seed>. Killed, or stopped after `--minutes`, the same
command goes on. What was found is a row of the JSON (by default experiments/results/<name>.json) for each arm and
seed; one that is done there is not trained again, even where its folder is gone. `tables.py` makes tables of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from measures import Row, row_of

from linscale.config import UserError, config, load_toml, parse
from linscale.models.count import count_parameters
from linscale.study.executors import LocalExecutor
from linscale.train.config import DataConfig, Name, RunConfig

RESULTS = Path(__file__).parent / "results"


@config
class Arm:
    """One model of an experiment."""

    name: Name
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    "Over the shared model."
    train: dict[str, Any] = dataclasses.field(default_factory=dict)
    "Over the shared recipe."
    seeds: tuple[int, ...] | None = None
    "Instead of the experiment's."


@config
class Experiment:
    """What a file holds."""

    name: Name
    data: DataConfig
    train: dict[str, Any]
    arms: tuple[Arm, ...]
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    lengths: tuple[int, ...] = ()
    "Of copying: tokens of noise at which the last checkpoint is measured, besides that of the task."


class OutOfTimeError(Exception):
    """The minutes are over; what is under way has been saved."""


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Tables of tables, with what `above` says of both."""
    both = {key: merged(below[key], above[key]) for key in below.keys() & above.keys() if isinstance(below[key], dict)}
    return {**below, **above, **both}


def runs_of(experiment: Experiment, overrides: dict[str, Any]) -> Iterator[tuple[str, int, RunConfig]]:
    """Arm, seed and config of every run: all arms with the first seed, then with the next."""
    count = max(len(arm.seeds or experiment.seeds) for arm in experiment.arms)
    for number in range(count):
        for arm in experiment.arms:
            seeds = arm.seeds or experiment.seeds
            if number < len(seeds):
                train = {**merged(experiment.train, arm.train), "seed": seeds[number], **overrides}
                values = {"name": f"{arm.name}-s{seeds[number]}", "study": experiment.name, "size": arm.name}
                values |= {"model": merged(experiment.model, arm.model), "train": train}
                values["data"] = {key: value for key, value in _plain(experiment.data).items() if value is not None}
                yield arm.name, seeds[number], parse(RunConfig, values, source=f"arm {arm.name!r}")


def _plain(data: DataConfig) -> dict[str, Any]:
    return dataclasses.asdict(data)  # type: ignore[call-overload, no-any-return]


def main() -> None:
    options = parse_options()
    experiment: Experiment = load_toml(options.file, Experiment)
    overrides = {name: getattr(options, name) for name in ("capture", "compile", "device") if getattr(options, name)}
    chosen = [
        run
        for run in runs_of(experiment, overrides)
        if re.search(options.only, run[0]) and (options.seeds is None or run[1] in options.seeds)
    ]
    if options.list:
        for arm, seed, run in chosen:
            total = count_parameters(run.model).total
            print(
                f"{arm:<24} seed {seed}  {total:>10,} parameters  {run.train.steps:>6} steps of {run.train.sequences}"
            )
        return
    out = options.json or RESULTS / f"{experiment.name}.json"
    rows = read_rows(out)
    missing = [run for run in chosen if (rows.get(run[:2]) or {}).get("state") != "done"]
    folder = options.out / experiment.name
    paths = {folder / run.name: run for _, _, run in missing}
    try:
        train_all(paths, options)
    finally:
        for arm, seed, run in missing:
            found = row_of(folder / run.name, run, experiment.lengths)
            if found is not None:
                rows[arm, seed] = {"arm": arm, "seed": seed, **found}
                write_rows(out, experiment, rows)
    done = sum((rows.get(run[:2]) or {}).get("state") == "done" for run in chosen)
    print(f"{done} of {len(chosen)} runs done; {out}")


def train_all(paths: dict[Path, RunConfig], options: argparse.Namespace) -> None:
    """Train what is missing, as far as time allows."""
    began, shown = time.monotonic(), [0.0]

    def poll() -> None:
        now = time.monotonic() - began
        if now > 60 * options.minutes:
            raise OutOfTimeError
        if now - shown[0] > 15:
            shown[0] = now
            print(f"{now:5.0f} s  {'  '.join(progress(paths))}", flush=True)

    try:
        errors = LocalExecutor(options.workers).run(paths, poll)
    except OutOfTimeError:
        print(f"stopped after {options.minutes} minutes; the same command goes on", flush=True)
        return
    for path, error in errors.items():
        print(f"{path.name}: {error}", file=sys.stderr)


def progress(paths: dict[Path, RunConfig]) -> Iterator[str]:
    """Of every run that is under way."""
    for path in paths:
        if (path / "status.json").exists():
            status = json.loads((path / "status.json").read_text())
            if status["state"] == "running":
                loss = "-" if status["loss"] is None else f"{status['loss']:.3f}"
                yield f"{path.name} {status['step']}/{status['steps']} loss {loss}"


def read_rows(out: Path) -> dict[tuple[str, int], Row]:
    """The rows of an earlier call, by arm and seed."""
    found = json.loads(out.read_text())["rows"] if out.exists() else []
    return {(row["arm"], row["seed"]): row for row in found}


def write_rows(out: Path, experiment: Experiment, rows: dict[tuple[str, int], Row]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    order = [arm.name for arm in experiment.arms]
    known = sorted(rows.values(), key=lambda row: (order.index(row["arm"]) if row["arm"] in order else 99, row["seed"]))
    out.write_text(json.dumps({"name": experiment.name, "rows": known}, indent=1) + "\n")


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
    return text


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--only", default="", type=_pattern, metavar="PATTERN", help="a regular expression: arms that it matches"
    )
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], help="such as 0,1")
    parser.add_argument("--workers", type=int, default=4 if torch.cuda.is_available() else 1, help="runs at once")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many, saved")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--capture", choices=("on", "off"), help="instead of what the file says")
    parser.add_argument("--compile", choices=("auto", "on", "off"), help="instead of what the file says")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="instead of what the file says")
    parser.add_argument("--list", action="store_true", help="name the runs, and train none")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"run.py: {error}")
