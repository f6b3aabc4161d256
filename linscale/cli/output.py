"""How commands show things: tables for people, JSON for machines, both on standard output."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

Json = Annotated[bool, tyro.conf.arg(name="json", help="Print JSON instead of a table.")]


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    print(json.dumps(value, indent=1))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Print a table; all columns but the first `left` are aligned to the right."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_style="bold", padding=(0, 1))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    stdout_console().print(table)


def stdout_console() -> Console:
    """For results. Not cut to 80 columns where the output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def stderr_console() -> Console:
    """For progress, so that results can be piped."""
    return Console(stderr=True)


def duration(seconds: float) -> str:
    """Seconds for people: 95 -> '1 min 35 s', 9e9 -> '285 years'."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    for unit, length in (("years", 365.25 * 86400), ("days", 86400), ("h", 3600)):
        if seconds >= 2 * length or unit == "h":
            return f"{seconds / length:.3g} {unit}"
    raise AssertionError


def file_size(size: float) -> str:
    """Bytes for people, in decimal units: 1234567 -> '1.23 MB'."""
    for unit, power in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= power:
            return f"{size / power:.3g} {unit}"
    return f"{size:.0f} B"
