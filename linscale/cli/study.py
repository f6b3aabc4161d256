"""linscale study: plan, run, watch and report a ladder."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from linscale.cli.bill import price, print_bill
from linscale.cli.executor import open_executor, processes
from linscale.cli.fit_output import print_fit
from linscale.cli.output import Json, print_json, print_table, stderr_console, stdout_console
from linscale.config import UserError, human
from linscale.distributed import Terminated, cores, limit_threads

if TYPE_CHECKING:
    from linscale.study.ladder import Outcome
    from linscale.study.plan import StudyConfig

StudyFile = Annotated[Path, tyro.conf.Positional]


def plan(study: StudyFile, *, workers: int | None = None, json: Json = False) -> None:
    """Print the bill of a study: runs, parameters, tokens, FLOPs, disk and time. Trains nothing and writes nothing.

    The time is estimated from a probe: models small enough are tried for one step each, others are priced by the
    machine's matrix rate at the utilisation of those tried (or at 40%). Where a run needs a gigabyte or more, the
    memory of each GPU is shown too, for 1 to 1024 of them (torchrun; --json has it for every run).

    Args:
        study: The study file, e.g. configs/study/demo.toml.
        workers: Runs trained at a time; by default one for each GPU, or each core without one.
    """
    from linscale.study.plan import load_study, planned_runs
    from linscale.study.probe import Probe

    config = load_study(study)
    count = processes(workers, config.train.device)
    runs = planned_runs(config, vocab_size=_vocab_size(config), data_path=config.data.path or "-")
    at_a_time = min(count, len(runs))
    bill = price(config, runs, Probe(threads=max(1, cores() // at_a_time)), at_a_time)
    if json:
        print_json(bill)
        return
    print_bill(bill)


def run(
    study: StudyFile,
    *,
    out: Path = Path("runs"),
    workers: int | None = None,
    executor: Literal["local", "ray"] = "local",
    address: str | None = None,
    gpus_per_run: float | None = None,
    cpus_per_run: int | None = None,
    json: Json = False,
) -> int:
    """Train what is missing of a study, evaluate every checkpoint, fit the laws and write the report.

    Killed at any moment and called again it continues; finished and called again it does nothing. SIGTERM saves the
    step that each run is at and ends the command with status 0.

    Args:
        study: The study file, e.g. configs/study/demo.toml.
        out: Where studies live; this one in <out>/<name>. With ray, on storage that all nodes share.
        workers: With local, runs trained at a time; by default one for each GPU, or each core without one.
        executor: Where runs are trained: in processes of this machine, or as tasks of a Ray cluster that is there.
        address: With ray, HOST:PORT of the cluster; by default RAY_ADDRESS, or the cluster of this machine.
        gpus_per_run: With ray, GPUs of a run: a share of one, or several of a node; by default 1 where there are any.
        cpus_per_run: With ray, cores of a run and its number of threads; by default 1.
    """
    from linscale.study.ladder import run_study
    from linscale.study.plan import load_study, planned_runs
    from linscale.study.watch import StudyWatcher

    config = load_study(study)
    runs = planned_runs(config, vocab_size=config.model.vocab_size or 256, data_path="-")
    limit_threads(cores())
    cluster = {"address": address, "gpus_per_run": gpus_per_run, "cpus_per_run": cpus_per_run}
    trainer = open_executor(executor, len(runs), workers, config.train.device, cluster)
    try:
        with trainer as opened, contextlib.closing(StudyWatcher(stderr_console())) as watcher:
            outcome = run_study(config, out, opened, watcher)
    except Terminated:
        print(
            f"linscale: {out / config.name}: stopped by SIGTERM and saved; run the same command again to go on",
            file=sys.stderr,
        )
        if json:
            print_json({"study": str(out / config.name), "state": "stopped"})
        return 0
    return _conclude(outcome, json)


def status(study: StudyFile, *, out: Path = Path("runs"), json: Json = False) -> None:
    """Show where every run of a study stands.

    Args:
        study: The study file.
        out: Where studies live.
    """
    from linscale.study.plan import load_study, planned_runs
    from linscale.study.results import read_summaries

    config = load_study(study)
    folder = out / config.name
    known = {}
    with contextlib.suppress(UserError):
        known = {summary.run: asdict(summary) for summary in read_summaries(folder)}
    planned = planned_runs(config, vocab_size=config.model.vocab_size or 256, data_path="-")
    missing = {"state": "not started", "step": 0, "validation_loss": None, "bits_per_byte": None, "tokens_per_s": None}
    rows = [known.get(item.name, {"run": item.name, **missing, "steps": item.config.train.steps}) for item in planned]
    if json:
        print_json(rows)
        return
    columns = ("run", "state", "step", "validation loss", "bits/byte", "tokens/s")
    print_table(f"{folder}", columns, [_status_row(row) for row in rows], left=2)


def report(study: StudyFile, *, out: Path = Path("runs"), json: Json = False) -> int:
    """Fit the laws and write the report again from what is trained so far.

    Args:
        study: The study file.
        out: Where studies live.
    """
    from linscale.study.ladder import Outcome, finish_study
    from linscale.study.plan import load_study
    from linscale.study.watch import StudyWatcher

    config = load_study(study)
    outcome = Outcome(out / config.name)
    with contextlib.closing(StudyWatcher(stderr_console())) as watcher:
        finish_study(config, outcome.study, watcher, outcome)
    return _conclude(outcome, json)


def _conclude(outcome: Outcome, json: bool) -> int:
    """Print what a study found, and the names of runs that failed."""
    from linscale.study.ladder import FITS, REPORT
    from linscale.study.prediction.fit_file import read_content
    from linscale.study.report import print_summary, summary

    page = (outcome.study / REPORT).resolve()
    found = summary(outcome.study)
    if json:
        print_json(found | {"report": str(page), "failed": outcome.failed, "changed": outcome.changed})
    else:
        console = stdout_console()
        if found["law"] == "pac":
            print_fit(read_content(outcome.study / FITS))
        print_summary(outcome.study, console)
        if not outcome.changed:
            console.print("\nNothing to do: every run is trained and reported.")
        console.print(f"\nReport: {page}", soft_wrap=True)
    if outcome.failed:
        print(f"linscale: not trained: {', '.join(outcome.failed)}; see above", file=sys.stderr)
    return 1 if outcome.failed else 0


def _status_row(row: dict[str, Any]) -> tuple[str, ...]:
    numbers = [row["validation_loss"], row["bits_per_byte"]]
    shown = ["-" if number is None else f"{number:.3f}" for number in numbers]
    speed = "-" if row["tokens_per_s"] is None else human(row["tokens_per_s"])
    return row["run"], row["state"], f"{row['step']}/{row['steps'] or '?'}", *shown, speed


def _vocab_size(config: StudyConfig) -> int:
    """The vocabulary of a study whose data may not be there yet."""
    from linscale.data import TokenDataset, load_tokenizer
    from linscale.data.tokenizer import bpe_size

    if config.model.vocab_size is not None:
        return config.model.vocab_size
    if config.data.path is not None:
        return TokenDataset.open(config.data.path).vocab_size
    return bpe_size(config.data.tokenizer) or load_tokenizer(config.data.tokenizer).vocab_size
