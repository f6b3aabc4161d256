"""The evaluation job: tasks on the checkpoints of runs, doing only what is missing.

A record says run, step, task and version; what has records of all its metrics is done. A checkpoint is claimed while it
is measured: several processes on one study share it, and one that is killed leaves whole records and no claim behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from linscale import checkpoint
from linscale.config import UserError
from linscale.data.shards import TokenDataset
from linscale.data.tokenizer import Tokenizer, load_tokenizer
from linscale.evaluate.perplexity import Validation
from linscale.evaluate.records import Evaluations
from linscale.evaluate.task import Task, autocast, tasks_of_run
from linscale.run_folder import CONFIG, read_json

Steps = Sequence[int] | None
"""Checkpoints by their step; None: all of them."""
Progress = Callable[[str, int, int], None]
POLL_S = 1.0  # between two looks at what other processes measure


@dataclass
class Outcome:
    """What a job did."""

    done: int = 0
    "Pairs of a checkpoint and a task that it measured."
    known: int = 0
    "Pairs that had been measured before, or were by another process meanwhile."
    left_out: dict[str, str] = field(default_factory=dict)
    "'run: task', 'run: step N', or 'run', and why it was not measured."


@dataclass
class Measured:
    """One run as the job sees it."""

    settings: dict[str, Any]
    tokenizer: Tokenizer
    tasks: list[tuple[Task, str]]
    "With their versions."
    records: Evaluations
    device: torch.device

    def missing(self, step: int) -> list[tuple[Task, str]]:
        """The tasks that are not recorded at a step."""
        return [(task, version) for task, version in self.tasks if not self.records.has(step, task, version)]


def find_runs(path: Path) -> list[Path]:
    """The run at `path`, or the runs in it. Raises UserError when there are none."""
    if (path / CONFIG).exists():
        return [path]
    if path.is_file():
        raise UserError(f"{path}: is a file; expected a run folder or a folder of runs, such as runs/{path.stem}")
    runs = sorted(config.parent for config in path.glob(f"*/{CONFIG}"))
    if not runs:
        raise UserError(f"{path}: neither a run folder nor a folder of runs (no {CONFIG} in it)")
    return runs


def evaluate(
    runs: Iterable[Path], tasks: Sequence[Task], *, last: bool = False, steps: Steps = None,
    progress: Progress = lambda text, done, total: None,
) -> Outcome:  # fmt: skip
    """Measure every task on the checkpoints of every run where it has not been: all, the `last` one, or some `steps`.

    Comes back when all is recorded: what other processes have claimed is waited for, and taken over from one that dies.
    `progress` is told the run, step and task that begin, how many are behind it and how many there are. What cannot be
    measured, such as a damaged checkpoint, is left out with the reason.
    """
    job = Job(Outcome(), progress)
    paths = [(run, path) for run in runs for path in _checkpoints(run, last, steps)]
    if not paths:
        wanted = "of any step" if steps is None else f"of step {', '.join(map(str, steps))}"
        raise UserError(f"no checkpoint {wanted}; expected steps of checkpoints, as `linscale runs` shows, or all")
    opened = [(job.open(run, tasks), path) for run, path in paths]
    pending = [(run, path) for run, path in opened if run]
    job.total = len(tasks) * len(pending)
    while pending:
        claimed_elsewhere = [(run, path) for run, path in pending if not job.measure(run, path)]
        if len(claimed_elsewhere) == len(pending):
            progress(f"waiting for {len(pending)} checkpoints that other processes measure", job.behind, job.total)
            time.sleep(POLL_S)
        pending = claimed_elsewhere
    return job.outcome


def _checkpoints(run: Path, last: bool, steps: Steps) -> list[Path]:
    paths = checkpoint.list_checkpoints(run)
    return paths[-1:] if last else [path for path in paths if steps is None or checkpoint.step_of(path) in steps]


class Job:
    """What is behind a job, and how it measures one checkpoint."""

    def __init__(self, outcome: Outcome, progress: Progress) -> None:
        self.outcome, self.progress, self.total = outcome, progress, 0
        self._opened: dict[Path, Measured | None] = {}

    @property
    def behind(self) -> int:
        """Pairs of a checkpoint and a task."""
        return self.outcome.done + self.outcome.known

    def open(self, run: Path, tasks: Sequence[Task]) -> Measured | None:
        """The run, with what tasks are for it; None, and why in the outcome, where it cannot be measured."""
        if run not in self._opened:
            self._opened[run] = self._open(run, tasks)
        return self._opened[run]

    def _open(self, run: Path, tasks: Sequence[Task]) -> Measured | None:
        if not (run / checkpoint.TOKENIZER).is_file():
            self.outcome.left_out[run.name] = "it has no tokenizer: its data were no text"
            return None
        settings, tokenizer = read_json(run / CONFIG), load_tokenizer(str(run / checkpoint.TOKENIZER))
        vocabulary = settings["model"]["vocab_size"]
        if tokenizer.vocab_size > vocabulary:
            self.outcome.left_out[run.name] = f"its tokenizer has {tokenizer.vocab_size} tokens, its model {vocabulary}"
            return None
        device = torch.device("cuda" if torch.cuda.is_available() and settings["device"] == "cuda" else "cpu")
        versions = [(task, task.version(tokenizer)) for task in tasks_of_run(tasks, settings)]
        return Measured(settings, tokenizer, versions, Evaluations(run, settings), device)

    def measure(self, run: Measured, path: Path) -> bool:
        """Measure what is missing of a checkpoint; whether it is done with, or else claimed by another process."""
        step = checkpoint.step_of(path)
        if not run.missing(step):
            self.outcome.known += len(run.tasks)
            return True
        with run.records.claimed(step) as mine:
            if mine:
                missing = run.missing(step)  # looked up again: another process may have been quicker
                self.outcome.known += len(run.tasks) - len(missing)
                self._measure(run, path, step, missing)
            return mine

    def _measure(self, run: Measured, path: Path, step: int, missing: Sequence[tuple[Task, str]]) -> None:
        if not missing:
            return
        try:
            model = checkpoint.load_model(path).to(run.device).eval()
        except UserError as damage:
            self.outcome.left_out[f"{run.records.run.name}: step {step}"] = str(damage)
            return
        for task, version in missing:
            if obstacle := task.obstacle(model, run.tokenizer):
                self.outcome.left_out[f"{run.records.run.name}: {task.name}"] = obstacle
                continue
            self.progress(f"{run.records.run.name}  step {step}  {task.name}", self.behind, self.total)
            try:
                with torch.no_grad(), autocast(run.settings["precision"], run.device):
                    results = task.run(model, run.tokenizer)
            except UserError as refused:  # such as texts longer than a table of positions
                self.outcome.left_out[f"{run.records.run.name}: {task.name}"] = str(refused)
                continue
            run.records.add(step, task, version, results)
            self.outcome.done += 1


def evaluate_validation(run: Path, dataset: TokenDataset | None = None) -> int:
    """Make the validation records that a run's checkpoints lack; returns how many it evaluated.

    `dataset` is the run's data where the caller has it open; by default the folder that the run was trained from.
    Raises UserError when the folder is not a run, its data is gone or has changed, or a checkpoint is damaged.
    """
    settings = read_json(run / CONFIG)
    if "path" not in settings["data"]:
        raise UserError(
            f"{run}: was trained on a task or on classes, not on text; its validation is recorded as it trains"
        )
    dataset = dataset or TokenDataset.open(Path(settings["data"]["path"]))
    if dataset.fingerprint != settings["data"]["fingerprint"]:
        raise UserError(
            f"{dataset.folder}: holds data {dataset.fingerprint}, "
            f"but {run} was trained on {settings['data']['fingerprint']}; restore that data"
        )
    outcome = evaluate([run], [Validation(dataset, settings)])
    for why in outcome.left_out.values():
        raise UserError(why)
    return outcome.done
