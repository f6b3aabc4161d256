"""linscale results: SQL over run folders."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from linscale.cli.output import Json, print_json, print_table
from linscale.config import UserError


def results(
    query: Annotated[str, tyro.conf.Positional],
    *,
    folder: Path = Path("runs"),
    format: Literal["table", "csv", "parquet"] = "table",
    out: Path | None = None,
    json: Json = False,
) -> None:
    """Ask run folders a question in SQL (DuckDB), as in: select arch, size, min(value) from evaluations group by all

    Tables: runs (folder, run, study, size, arch, params, total_params, device, precision, state, step, steps); metrics
    (step, tokens, flops, metric, value, and folder to params of runs); evaluations (the same, and task, task_version,
    se, count, cells).

    Args:
        query: The question.
        folder: A run, a study, or a folder of studies.
        format: How the answer is written; parquet needs --out.
        out: A file to write instead of standard output.
    """
    import duckdb

    from linscale.study.query import query as ask

    if format == "parquet" and out is None:
        raise UserError("format = parquet: needs a file; name one with --out")
    if out is not None and not out.parent.is_dir():
        raise UserError(f"out = {out}: no such folder; make {out.parent} first")
    answer = ask(folder, query)
    try:
        if format != "table" and out is not None:
            (answer.write_parquet if format == "parquet" else answer.write_csv)(str(out))
            return
        rows = answer.fetchall()
    except duckdb.Error as error:  # of a query that is well formed, but fails on what it meets
        raise UserError(f"query: {str(error).splitlines()[0]}") from None
    if format == "csv":
        _write_csv(answer.columns, rows)
    elif json:
        print_json([dict(zip(answer.columns, row, strict=True)) for row in rows])
    elif out is not None:
        raise UserError("format = table: is for reading; --out needs --format csv or parquet")
    else:
        print_table(str(folder), answer.columns, [tuple(map(_cell, row)) for row in rows], left=_texts(rows))


def _write_csv(columns: list[str], rows: list[tuple[Any, ...]]) -> None:
    import csv

    csv.writer(sys.stdout).writerows([columns, *rows])


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _texts(rows: list[tuple[Any, ...]]) -> int:
    """How many of the first columns hold text."""
    count = 0
    for value in rows[0] if rows else ():
        if not isinstance(value, str):
            break
        count += 1
    return count
