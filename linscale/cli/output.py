"""How commands show things: tables for people, JSON for machines, both on standard output."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Any, Self

import tyro
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from linscale.config import clock

LINE_S = 10.0  # between two lines of progress where standard error is not a terminal
Json = Annotated[bool, tyro.conf.arg(name="json", help="Print JSON, for programs.")]


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output. Numbers that JSON does not have, such as NaN, are null."""
    print(json.dumps(_plain(value), indent=1))


def _plain(value: Any) -> Any:
    """A value in the types of JSON: what DuckDB answers may be a Decimal or a date."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float | Decimal):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Print a table; all columns but the first `left` are aligned to the right. No title line for an empty title."""
    table = Table(box=box.SIMPLE_HEAD, title=Text(title) if title else None, title_style="bold", padding=(0, 1))
    for number, column in enumerate(columns):  # Text: names that hold [brackets] or :colons: stay as they are
        table.add_column(Text(column), justify="left" if number < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    stdout_console().print(table)


def print_note(text: str) -> None:
    """Print a line that is neither a result nor an error, on standard error."""
    print(f"linscale: {text}", file=sys.stderr)


def stdout_console() -> Console:
    """For results. Not cut to 80 columns where the output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def stderr_console() -> Console:
    """For progress, so that results can be piped."""
    return Console(stderr=True)


class ProgressBar:
    """Progress with the time left on standard error: a bar on a terminal, elsewhere a line every ten seconds.

    Nothing is shown before the first update, so that an error that comes before stands alone.
    """

    def __init__(self) -> None:
        self._console = stderr_console()
        self._columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(24),
            TextColumn("{task.percentage:3.0f}%  {task.fields[left]}"),
        )
        self._bars: Progress | None = None
        self._first: tuple[float, float] | None = None  # when and where progress began in this process
        self._last_line = time.monotonic()
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def update(self, text: str, completed: float, total: float, left_s: float | None = None) -> None:
        """Show `completed` of `total`; `left_s`, the seconds left, is estimated since the first update if not given."""
        now = time.monotonic()
        if self._first is None:
            self._first = now, completed
        done = completed - self._first[1]
        if completed >= total:
            left_s = 0.0
        elif left_s is None and done > 0:
            left_s = (now - self._first[0]) * (total - completed) / done
        left = "ETA ..." if left_s is None else f"ETA {clock(left_s)}"
        if self._console.is_terminal:
            self._show(text, completed, total, left)
        elif not self._ended and (now - self._last_line >= LINE_S or completed >= total):
            self._last_line, self._ended = now, completed >= total
            share = completed / total if total else 1.0
            self._console.print(f"{text}  {share:.0%}  {left}", highlight=False, markup=False, soft_wrap=True)

    def _show(self, text: str, completed: float, total: float, left: str) -> None:
        if self._bars is None:
            self._bars = Progress(*self._columns, console=self._console)
            self._bars.start()
            self._bars.add_task(text, total=total, left=left)
        self._bars.update(self._bars.task_ids[0], description=text, completed=completed, total=total, left=left)


def duration(seconds: float) -> str:
    """Seconds for people: 95 -> '1 min 35 s', 9e9 -> '285 years'."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    for unit, length in (("years", 365.25 * 86400), ("days", 86400), ("h", 3600)):
        if seconds >= 2 * length or unit == "h":
            count = seconds / length
            return f"{count:,.0f} {unit}" if count >= 1000 else f"{count:.3g} {unit}"
    raise AssertionError


def file_size(size: float) -> str:
    """Bytes for people, in decimal units: 1234567 -> '1.23 MB'."""
    for unit, power in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= power:
            return f"{size / power:.3g} {unit}"
    return f"{size:.0f} B"
