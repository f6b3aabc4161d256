"""linscale points: what a source of points holds, and several of them as one table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from linscale.cli.output import Json, print_json, print_note, print_table
from linscale.config import UserError

ROWS_SHOWN, COLUMNS_SHOWN = 10, 12


def points(
    sources: Annotated[tuple[Path, ...], tyro.conf.Positional],
    *,
    out: Path | None = None,
    on: str = "",
    json: Json = False,
) -> None:
    """Show what `linscale fit` reads from a source, and write it as a table to look at, correct and fit.

    A source is a .csv, .tsv, .parquet, .jsonl or .json file of rows, an export of W&B among them; a folder of
    linscale's runs or one run; a folder of transformers' checkpoints or a trainer_state.json; results of lm-eval, a
    file or the folder of --output_path; a local folder of W&B runs. What a source does not say is left empty.

    Args:
        sources: Files and folders. Several are put one below the other, each row with its source.
        out: A file to write: .csv, .parquet or .jsonl.
        on: Columns to join several sources by, as in run,step: rows that agree in them become one.
    """
    from linscale.study.sources.read import read_table
    from linscale.study.sources.table import join, write

    if not sources:
        raise UserError("sources: name at least one file or folder")
    tables = {str(source): read_table(source) for source in sources}
    for name, each in tables.items():
        print_note(f"{name}: {each.kind}, {len(each.rows)} rows, {len(each.columns)} columns")
    table = join(tables, tuple(name.strip() for name in on.split(",") if name.strip()))
    for note in table.notes:
        print_note(note)
    if out is not None:
        write(table, out)
        print_note(f"wrote {out}: {len(table.rows)} rows, {len(table.columns)} columns")
    if json:
        print_json([{name: row.get(name) for name in table.columns} for row in table.rows])
    elif out is None:
        _show(table.columns, table.rows)


def _show(columns: list[str], rows: tuple[Any, ...]) -> None:
    """The first rows and columns, and the names of all columns."""
    shown = columns[:COLUMNS_SHOWN]
    print_table("", shown, [tuple(_cell(row.get(name)) for name in shown) for row in rows[:ROWS_SHOWN]])
    if len(rows) > ROWS_SHOWN:
        sys.stdout.write(f"and {len(rows) - ROWS_SHOWN} more rows; --out FILE writes all\n")
    if len(columns) > COLUMNS_SHOWN:
        sys.stdout.write(f"more columns: {', '.join(columns[COLUMNS_SHOWN:])}\n")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:40]
