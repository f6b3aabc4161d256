"""A table of points in memory: what the importers make, joined, loaded into DuckDB and written to a file."""

from __future__ import annotations

import csv
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linscale.config import UserError

if TYPE_CHECKING:
    import duckdb

Row = Mapping[str, Any]
SUFFIXES = (".csv", ".parquet", ".jsonl")


@dataclass(frozen=True)
class Table:
    """Rows by column; a column that a row lacks is empty there."""

    rows: tuple[Row, ...]
    kind: str
    """What the source is, in words."""
    notes: tuple[str, ...] = ()
    """What a reader must know: what was left out, what the source does not say."""

    @property
    def columns(self) -> list[str]:
        """Every column, in the order of first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))


def lacking(rows: Sequence[Row], names: Sequence[str]) -> tuple[str, ...]:
    """A note of the columns that no row has a value for."""
    empty = [name for name in names if all(row.get(name) is None for row in rows)]
    return (f"not in the source, and left empty: {', '.join(empty)}",) if empty else ()


def join(tables: Mapping[str, Table], on: Sequence[str]) -> Table:
    """Several sources as one table: one below the other, or with `on` rows that agree in those columns side by side.

    Every row says its `source`, unless rows are joined. Raises UserError where two sources say different things in one
    cell, or one lacks a column of `on`.
    """
    notes = tuple(f"{name}: {note}" for name, table in tables.items() for note in table.notes)
    if not on:
        single = len(tables) == 1
        rows = [dict(row) if single else {"source": name, **row} for name, t in tables.items() for row in t.rows]
        return Table(tuple(rows), "table", notes)
    joined: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, table in tables.items():
        missing = [column for column in on if column not in table.columns]
        if missing:
            raise UserError(f"on = {','.join(on)}: {name} has no {missing[0]}; it has {', '.join(table.columns[:20])}")
        for number, row in enumerate(table.rows, start=1):
            key = tuple(row.get(column) for column in on)
            there = joined.setdefault(key, {})
            for column, value in row.items():
                if value is not None and there.get(column) not in (None, value):
                    raise UserError(
                        f"{name}: row {number} says {column} = {value}, but {there[column]} is there already for "
                        f"{', '.join(f'{a} {b}' for a, b in zip(on, key, strict=True))}; join on more columns"
                    )
                if value is not None or column not in there:
                    there[column] = value
    return Table(tuple(joined.values()), "table", notes)


def load(table: Table, connection: duckdb.DuckDBPyConnection) -> None:
    """Make it the DuckDB table `points`, with row numbers from 1 in `_row`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        with open(file, "w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(_plain(row, table.columns)) + "\n" for row in table.rows)
        connection.execute(
            "create table points as select row_number() over () as _row, * from "
            f"read_json('{quoted(file)}', format = 'newline_delimited', sample_size = -1)"
        )


def write(table: Table, out: Path) -> None:
    """Write .csv, .parquet or .jsonl. Raises UserError for another suffix or a folder that is not there."""
    if out.suffix not in SUFFIXES:
        raise UserError(f"out = {out}: unknown kind of file; expected {', '.join(SUFFIXES)}")
    if not out.parent.is_dir():
        raise UserError(f"out = {out}: no such folder; make {out.parent} first")
    columns = table.columns
    if out.suffix == ".parquet":
        import duckdb

        connection = duckdb.connect(":memory:")
        load(table, connection)
        connection.execute(f"copy (select * exclude (_row) from points order by _row) to '{quoted(out)}'")
        return
    with open(out, "w", encoding="utf-8", newline="") as file:
        if out.suffix == ".jsonl":
            file.writelines(json.dumps(_plain(row, columns)) + "\n" for row in table.rows)
            return
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(row.get(name)) for name in columns] for row in table.rows)


def quoted(path: Path) -> str:
    """A path inside of single quotes in SQL."""
    return str(path).replace("'", "''")


def _plain(row: Row, columns: Sequence[str]) -> dict[str, Any]:
    return {name: _finite(row.get(name)) for name in columns}


def _finite(value: Any) -> Any:
    """JSON has no NaN: such a value is the text that says so, which no law takes for a number."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, dict | list) else value
