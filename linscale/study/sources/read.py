"""Any source of points as a DuckDB table: files of rows are read by DuckDB, what other tools leave by the importers.

a file    .csv .tsv .parquet .jsonl, exports of W&B among them; trainer_state.json; results_*.json of lm-eval;
          a list of objects in .json; run-*.wandb
a folder  of linscale's runs or one of them; of transformers' checkpoints; of lm-eval's results; of W&B's runs
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linscale.config import UserError
from linscale.run_folder import read_json
from linscale.study.sources.table import Table, load, quoted

if TYPE_CHECKING:
    import duckdb

READERS = {
    ".csv": "read_csv('{}', header = true, sample_size = -1)",
    ".tsv": "read_csv('{}', header = true, sample_size = -1)",
    ".parquet": "read_parquet('{}')",
    ".jsonl": "read_json('{}', format = 'newline_delimited', sample_size = -1)",
    ".ndjson": "read_json('{}', format = 'newline_delimited', sample_size = -1)",
}
DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas", ":": "colons"}


@dataclass(frozen=True)
class Source:
    """A source, read."""

    path: Path
    connection: duckdb.DuckDBPyConnection
    """With the table `points`: the columns, and `_row`, numbers of the rows from 1. It can read no other file."""
    names: list[str]
    kind: str
    notes: tuple[str, ...]


def open_source(path: Path) -> Source:
    """Read a file or a folder. Raises UserError for what is not there, is empty, damaged, or of an unknown kind."""
    import duckdb

    connection = duckdb.connect(":memory:")
    table = _imported(path)
    try:
        if table is None:
            _open_file(connection, path)
            names = _names(connection)
            table = _from_export(connection, names, path)
        if table is not None:
            if not table.rows:
                raise UserError(f"{path}: {table.kind} without a row: nothing was recorded yet")
            connection.execute("drop table if exists points")
            load(table, connection)
    except duckdb.Error as error:
        raise UserError(f"{path}: {_problem(path, error)}") from None
    for old, new in ({} if table else _renamed(_names(connection))).items():
        connection.execute(f"alter table points rename column {identifier(old)} to {identifier(new)}")
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")
    kind, notes = (table.kind, table.notes) if table else (f"{path.suffix[1:]} file", ())
    return Source(path, connection, _names(connection), kind, notes)


def read_table(path: Path) -> Table:
    """A source as a table in memory."""
    source = open_source(path)
    return Table(tuple(_rows(source.connection, source.names)), source.kind, source.notes)


def identifier(name: str) -> str:
    """A column's name in SQL, whatever it holds."""
    return '"' + name.replace('"', '""') + '"'


def _imported(path: Path) -> Table | None:
    """What an importer makes of a path; None for a file of rows."""
    from linscale.study.sources import harness_results, runs, trainer_state, wandb_runs

    if path.is_dir():
        if folders := runs.find(path):
            return runs.read(folders)
        for importer in (trainer_state, harness_results, wandb_runs):
            if files := importer.find(path):
                return importer.read(files)
        raise UserError(
            f"{path}: no run of linscale that was evaluated, trainer_state.json, results_*.json of lm-eval or "
            "run-*.wandb in it; expected one of these, or a file with one row a point"
        )
    if path.suffix == ".wandb" and path.is_file():
        return wandb_runs.read([path])
    if path.suffix != ".json" or not path.is_file():
        return None
    content = read_json(path)
    if isinstance(content, dict) and "log_history" in content:
        return trainer_state.read([path])
    if harness_results.is_results(content):
        return harness_results.read([path])
    if path.name == wandb_runs.SUMMARY:
        return wandb_runs.read([path])
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        return Table(tuple(content), "json file")
    raise UserError(f"{path}: expected a list of objects, a trainer_state.json, or a results file of lm-eval")


def _from_export(connection: duckdb.DuckDBPyConnection, names: Sequence[str], path: Path) -> Table | None:
    """The table that an export of W&B stands for where its rows are not points."""
    from linscale.study.sources import wandb_runs

    if wandb_runs.is_nested(names):
        return wandb_runs.from_nested(_rows(connection, names))
    if wandb_runs.is_chart(names):
        return wandb_runs.from_chart(_rows(connection, names))
    return None


def _renamed(names: Sequence[str]) -> Mapping[str, str]:
    from linscale.study.sources import wandb_runs

    return wandb_runs.renamed(names)


def _open_file(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path}: no such file; expected a table with one row a point, or a folder of runs")
    if path.suffix not in READERS:
        raise UserError(f"{path}: unknown kind of file; expected {', '.join(READERS)}, .json or a folder")
    with open(path, "rb") as file:  # says in the system's words what may not be read
        start = file.read(1 << 16)
    if not start.strip():
        raise UserError(f"{path}: the file is empty; expected a header and one row a point")
    reader = READERS[path.suffix].format(quoted(path))
    connection.execute(f"create table points as select row_number() over () as _row, * from {reader}")
    names = _names(connection)
    wrong = [words for mark, words in DELIMITERS.items() if len(names) == 1 and mark in names[0]]
    if wrong:
        raise UserError(
            f"{path}: one column, {names[0]!r}: its cells may be parted by {wrong[0]}, not alike in all rows"
        )


def _names(connection: duckdb.DuckDBPyConnection) -> list[str]:
    return [row[0] for row in connection.execute("describe points").fetchall() if row[0] != "_row"]


def _rows(connection: duckdb.DuckDBPyConnection, names: Sequence[str]) -> list[dict[str, Any]]:
    chosen = ", ".join(map(identifier, names))
    rows = connection.execute(f"select {chosen} from points order by _row").fetchall()
    return [dict(zip(names, row, strict=True)) for row in rows]


def _problem(path: Path, error: Exception) -> str:
    """What is wrong with a file that DuckDB did not read, in one line."""
    if path.suffix != ".parquet" and path.is_file():
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError:
                    return f"line {number} is not UTF-8 text; save the file as UTF-8"
    return " ".join(str(error).split("\n\n")[0].split())[:300]
