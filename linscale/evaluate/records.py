"""evaluations.jsonl of a run: what is in it, and how several processes add to it without doing anything twice.

A process claims a checkpoint before it measures it and looks again at what is recorded: of several on one study each
does what no other one does. A claim is a lock of one byte, which the system lets go when the process ends, however.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from linscale.config import UserError
from linscale.data.tokenizer import Tokenizer
from linscale.evaluate.task import Result, Task
from linscale.run_folder import EVALUATION_KEYS, EVALUATIONS, RecordWriter, code_version, disk_errors, parse_record

CLAIMS, APPENDING = ".evaluating", ".evaluations.lock"
APPEND_WAIT_S = 60.0


class Evaluations:
    """The records of one run. `settings` is the content of its config.json."""

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        self.run, self.settings = run, settings
        self._found: set[tuple[Any, ...]] = set()
        self._read = 0  # bytes of the file behind `_found`, whole lines

    def has(self, step: int, task: Task, version: str) -> bool:
        """Whether all metrics of a task are recorded, by whichever process."""
        self._refresh()
        return self._found.issuperset((step, task.name, version, metric) for metric in task.metrics)

    def missing(self, steps: Iterable[int], task: Task, tokenizer: Tokenizer) -> list[int]:
        """Those of `steps` at which a metric of the task is not recorded."""
        version = task.version(tokenizer)
        return [step for step in steps if not self.has(step, task, version)]

    def add(self, step: int, task: Task, version: str, results: Sequence[Result]) -> None:
        """Append the records of a task. Raises UserError when the file cannot be written."""
        with disk_errors(self.run / EVALUATIONS):
            try:
                with (
                    filelock.FileLock(self.run / APPENDING, timeout=APPEND_WAIT_S),
                    contextlib.closing(RecordWriter(self.run / EVALUATIONS)) as writer,
                ):
                    writer.write(*self._records(step, task.name, version, results))
            except filelock.Timeout:
                raise UserError(
                    f"{self.run / APPENDING}: another process has held it for {APPEND_WAIT_S:.0f} s; stop that process"
                ) from None

    @contextlib.contextmanager
    def claimed(self, step: int) -> Iterator[bool]:
        """Claim a checkpoint: whether no other process has it. This process can hold one claim on a run at a time."""
        with disk_errors(self.run / CLAIMS), open(self.run / CLAIMS, "ab") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, step)
                mine = True
            except (BlockingIOError, PermissionError):  # either says that it is taken
                mine = False
            yield mine

    def _refresh(self) -> None:
        """Read what was appended since the last time."""
        path = self.run / EVALUATIONS
        if not path.exists() or os.path.getsize(path) == self._read:
            return
        with open(path, "rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                if record := parse_record(line):
                    self._found.add(tuple(record.get(key) for key in EVALUATION_KEYS))

    def _records(self, step: int, task: str, version: str, results: Iterable[Result]) -> Iterator[dict[str, Any]]:
        tokens = step * self.settings["train"]["batch_tokens"]
        flops = tokens * self.settings["flops_per_token"]
        for result in results:
            yield {
                "run": self.settings["run"], "step": step, "tokens": tokens, "flops": flops,
                "task": task, "task_version": version, "metric": result.metric, "value": result.value,
                "se": result.se, "count": result.count, "code": code_version(),
                **({} if result.cells is None else {"cells": list(result.cells)}),
            }  # fmt: skip
