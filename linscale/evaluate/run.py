"""The evaluation job: tasks on the checkpoints of runs, doing only what is missing.

A record says run, step, task and version; what has records of all its metrics is done. A run is held by its lock while
it is evaluated: of several processes on one study each takes the runs that the others do not hold, and a killed one
leaves whole records behind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from linscale import checkpoint
from linscale.config import UserError
from linscale.data.tokenizer import load_tokenizer
from linscale.evaluate.perplexity import autocast
from linscale.evaluate.task import Result, Task, tasks_of_run
from linscale.run_folder import (
    CONFIG,
    EVALUATIONS,
    RecordWriter,
    code_version,
    disk_errors,
    is_locked,
    latest_records,
    locked,
    read_json,
)

Steps = Sequence[int] | None
"""Checkpoints by their step; None: all of them."""
Progress = Callable[[str, int, int], None]


@dataclass
class Outcome:
    """What a job did."""

    done: int = 0
    "Pairs of a checkpoint and a task that it measured."
    known: int = 0
    "Pairs that had been measured before."
    left_out: dict[str, str] = field(default_factory=dict)
    "'run: task', or 'run', and why it was not measured."


def find_runs(path: Path) -> list[Path]:
    """The run at `path`, or the runs in it. Raises UserError when there are none."""
    if (path / CONFIG).exists():
        return [path]
    runs = sorted(config.parent for config in path.glob(f"*/{CONFIG}"))
    if not runs:
        raise UserError(f"{path}: neither a run folder nor a folder of runs (no {CONFIG} in it)")
    return runs


def evaluate(
    runs: Iterable[Path], tasks: Sequence[Task], *, last: bool = False, steps: Steps = None,
    progress: Progress = lambda text, done, total: None,
) -> Outcome:  # fmt: skip
    """Measure every task on the checkpoints of every run where it has not been: all, the `last` one, or some `steps`.

    `progress` is told the run, step and task that begin, how many are behind it and how many there are. Raises
    UserError when a checkpoint is damaged.
    """
    outcome, paths = Outcome(), {run: _checkpoints(run, last, steps) for run in runs}
    total = len(tasks) * sum(map(len, paths.values()))
    for run in sorted(paths, key=is_locked):  # those that another process holds may be free by then
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(run))
            except UserError as error:
                outcome.left_out[run.name] = str(error)
                continue
            _evaluate_run(run, paths[run], tasks, partial(_tell, progress, outcome, total), outcome)
    return outcome


def _checkpoints(run: Path, last: bool, steps: Steps) -> list[Path]:
    paths = checkpoint.list_checkpoints(run)
    return paths[-1:] if last else [path for path in paths if steps is None or checkpoint.step_of(path) in steps]


def _tell(progress: Progress, outcome: Outcome, total: int, text: str) -> None:
    progress(text, outcome.done + outcome.known, total)


def _evaluate_run(
    run: Path, paths: Sequence[Path], tasks: Sequence[Task], tell: Callable[[str], None], outcome: Outcome
) -> None:
    settings, tokenizer = read_json(run / CONFIG), load_tokenizer(str(run / checkpoint.TOKENIZER))
    vocabulary = settings["model"]["vocab_size"]
    if tokenizer.vocab_size > vocabulary:
        outcome.left_out[run.name] = f"its tokenizer has {tokenizer.vocab_size} tokens, its model {vocabulary}"
        return
    device = torch.device("cuda" if torch.cuda.is_available() and settings["device"] == "cuda" else "cpu")
    tasks = tasks_of_run(tasks, settings)
    known = _known(run)
    with disk_errors(run / EVALUATIONS), contextlib.closing(RecordWriter(run / EVALUATIONS)) as writer:
        for path in paths:
            step, model = checkpoint.step_of(path), None
            for task in tasks:
                version = task.version(tokenizer)
                if known.issuperset((step, task.name, version, metric) for metric in task.metrics):
                    outcome.known += 1
                    continue
                model = model or checkpoint.load_model(path).to(device).eval()
                if obstacle := task.obstacle(model, tokenizer):
                    outcome.left_out[f"{run.name}: {task.name}"] = obstacle
                    continue
                tell(f"{run.name}  step {step}  {task.name}")
                with torch.no_grad(), autocast(settings["precision"], device):
                    results = task.run(model, tokenizer)
                writer.write(*_records(settings, step, task.name, version, results))
                outcome.done += 1


def _known(run: Path) -> set[tuple[Any, ...]]:
    keys = ("step", "task", "task_version", "metric")
    return {tuple(record.get(key) for key in keys) for record in latest_records(run / EVALUATIONS, keys)}


def _records(
    settings: dict[str, Any], step: int, task: str, version: str, results: Iterable[Result]
) -> Iterator[dict[str, Any]]:
    tokens = step * settings["train"]["batch_tokens"]
    for result in results:
        yield {
            "run": settings["run"], "step": step, "tokens": tokens, "flops": tokens * settings["flops_per_token"],
            "task": task, "task_version": version, "metric": result.metric, "value": result.value, "se": result.se,
            "count": result.count, "code": code_version(),
            **({} if result.cells is None else {"cells": list(result.cells)}),
        }  # fmt: skip
