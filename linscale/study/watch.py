"""Showing a study at work: live bars on a terminal, plain lines with an ETA everywhere else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from linscale.config import clock, human
from linscale.study.plan import PlannedRun
from linscale.train.metrics import read_status

LINE_S = 10.0  # between two lines where the output is not a terminal


class StudyWatcher:
    """Follows the status of every run; time is weighed by each run's FLOPs at the speed seen so far."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._study = Path()
        self._runs: Sequence[PlannedRun] = ()
        self._statuses: list[dict[str, Any]] = []
        self._bars: dict[str, Any] = {}
        self._live: Live | None = None
        self._last_line = 0.0
        self._start, self._began, self._done_before = 0.0, 0.0, 0.0

    def stage(self, text: str) -> None:
        """Show that a stage begins; the bars of the one before stay as they are."""
        self.close()
        self.console.print(f"[bold]{text}[/bold] ...")

    def prepared(self, read: int, total: int) -> None:
        """Show how much text has been prepared, when that takes long."""
        self._line(f"  {human(read, 'B')} of {human(total, 'B')} read")

    def plan(self, study: Path, runs: Sequence[PlannedRun]) -> None:
        """Remember what there is to follow."""
        self._study, self._runs = study, runs
        self._read()
        self._start, self._began, self._done_before = time.monotonic(), time.time(), self._work_done()

    def progress(self) -> None:
        """Show every run that is under way, the whole, and the time left."""
        self._read()
        if not self.console.is_terminal:
            self._line("  " + self._overall() + "".join(f"\n    {self._run_text(*item)}" for item in self._running()))
            return
        if self._live is None:
            self._live = Live(console=self.console, refresh_per_second=4)
            self._live.start()
        self._live.update(self._table())

    def failed(self, run: str, error: str) -> None:
        """Show why a run was given up."""
        self.close()
        self.console.print(f"[red]failed[/red] {escape(run)}: {escape(error)}", soft_wrap=True, highlight=False)

    def close(self) -> None:
        """Leave the bars as they are."""
        if self._live is not None:
            self._read()
            self._live.update(self._table())
            self._live.stop()
            self._live = None

    def _read(self) -> None:
        self._statuses = [read_status(self._study / run.name) for run in self._runs]

    def _line(self, text: str) -> None:
        if time.monotonic() - self._last_line >= LINE_S:
            self._last_line = time.monotonic()
            self.console.print(text, highlight=False)

    def _table(self) -> Table:
        grid = Table.grid()
        bar = Progress(TextColumn("  {task.description}"), BarColumn(24), TextColumn("{task.percentage:3.0f}%"))
        bar.add_task(f"{self._overall():<44}", total=100, completed=round(100 * self._work_done() / self._work_total()))
        for run, status in self._running():
            bar.add_task(f"{self._run_text(run, status):<44}", total=status["steps"], completed=status["step"])
        grid.add_row(bar)
        return grid

    def _running(self) -> list[tuple[PlannedRun, dict[str, Any]]]:
        # A run that was killed earlier still says "running", but has not been heard of since this began.
        return [
            (run, status)
            for run, status in zip(self._runs, self._statuses, strict=True)
            if status.get("state") == "running" and (status.get("updated") or 0) >= self._began
        ]

    @staticmethod
    def _run_text(run: PlannedRun, status: dict[str, Any]) -> str:
        loss = "" if status.get("loss") is None else f"  loss {status['loss']:.3f}"
        speed = "" if not status.get("tokens_per_s") else f"  {human(status['tokens_per_s'])} tok/s"
        return f"{run.name}{loss}{speed}"

    def _overall(self) -> str:
        done = sum(status.get("state") == "done" for status in self._statuses)
        return f"{done} of {len(self._runs)} runs  {self._eta()}"

    def _eta(self) -> str:
        elapsed, done = time.monotonic() - self._start, self._work_done()
        here = done - self._done_before
        if here <= 0 or elapsed <= 0:
            return "ETA ..."
        return f"ETA {clock((self._work_total() - done) * elapsed / here)}"

    def _work_total(self) -> float:
        return sum(run.work for run in self._runs)

    def _work_done(self) -> float:
        total = 0.0
        for run, status in zip(self._runs, self._statuses, strict=True):
            total += run.work * status.get("step", 0) / max(status.get("steps") or 1, 1)
        return total
