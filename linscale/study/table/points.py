"""A table of runs, one row a point, from CSV, Parquet or JSON lines: what `linscale fit` reads.

Columns are told by role: n parameters, d tokens, c FLOPs, loss in nats per token, and run and budget to resample by.
Rows are numbered from 1, without the header. DuckDB reads, and its SQL selects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from linscale.config import UserError

if TYPE_CHECKING:
    import duckdb

Array = np.ndarray
READERS = {".csv": "read_csv", ".parquet": "read_parquet", ".jsonl": "read_json"}
USUAL = {
    "n": "params",
    "d": "tokens",
    "c": "flops",
    "loss": "loss",
    "unique": "unique_tokens",
    "bpb": "bits_per_byte",
    "error": "error",
    "accuracy": "accuracy",
    "weight": "weight",
    "run": "run",
    "budget": "budget",
    "seed": "seed",
    "schedule": "schedule",
}
"""The roles, and the column that each is read from where nothing else is said."""
NUMBERS = ("n", "d", "c", "loss", "unique", "bpb", "error", "accuracy", "weight")
FROM_ZERO = ("error", "accuracy")
"""Of them, those that may be 0."""
GAPS = ("error",)
"""Of them, those that a row may lack: nan there."""
DEFINITIONS = {"6nd": ("c", ("n", "d")), "c/6n": ("d", ("c", "n")), "c/6d": ("n", ("c", "d"))}
"""Definitions that may stand in the place of a column: the role they give, and those they take."""
ROWS_SHOWN = 5


@dataclass(frozen=True)
class Points:
    """The rows that were selected, and those that were not."""

    numbers: Mapping[str, Array]
    """By role, each (m,), finite and positive, but for what FROM_ZERO and GAPS say."""
    labels: Mapping[str, Array]
    """By role, "run" and "budget" where there is such a column: (m,) texts."""
    rows: Array
    """(m,) numbers of the rows in the file."""
    groups: Array
    """(m,) texts: the values of the columns grouped by, joined by "/"; "all" without."""
    columns: Mapping[str, str]
    """By role, the column or the definition that was used."""
    dropped: tuple[tuple[int, str], ...]
    """Rows left out, with the rule."""


def parse_columns(text: str) -> dict[str, str]:
    """ "n=params,c=6nd" as a dictionary. Raises UserError for an unknown role or a definition of another role."""
    columns = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        role, equals, name = (piece.strip() for piece in part.partition("="))
        if not equals or not name or role not in USUAL:
            raise UserError(f"columns = {part!r}: expected ROLE=COLUMN with a role of {', '.join(USUAL)}")
        if name in DEFINITIONS and DEFINITIONS[name][0] != role:
            raise UserError(f"columns = {part!r}: {name} is a definition of {DEFINITIONS[name][0]}")
        columns[role] = name
    return columns


def read_points(
    path: Path,
    *,
    columns: Mapping[str, str],
    needed: tuple[str, ...],
    optional: tuple[str, ...] = (),
    group: tuple[str, ...] = (),
    where: str = "",
) -> Points:
    """Read a table. `needed` roles must be there; those of `optional` and of `columns` are read where they are.

    A column that only carries the usual name of an optional role, and holds no number at all, is not taken for it.

    Raises UserError for a file or a condition that DuckDB cannot read, and, naming rows, for what is not a positive
    number in a column that is needed.
    """
    connection = _open(path)
    names = [row[0] for row in connection.execute("describe points").fetchall() if row[0] != "_row"]
    chosen = _choose(path, names, columns, needed, optional)
    for role in set(optional) & set(chosen) - set(columns):
        if not connection.execute(f"select count(try_cast({_quoted(chosen[role])} as double)) from points").fetchall()[
            0
        ][0]:
            del chosen[role]
    for name in group:
        _known(path, names, name, "group")
    dropped = _select(connection, where)
    rows = np.array([row[0] for row in connection.execute("select _row from points order by _row").fetchall()])
    if not rows.size:
        raise UserError(f"{path}: no rows" + (f" where {where}" if where else ""))
    numbers = {
        role: _numbers(connection, path, name, role)
        for role, name in chosen.items()
        if role in NUMBERS and name not in DEFINITIONS
    }
    for role, name in chosen.items():
        if name in DEFINITIONS:
            numbers[role] = _derived(name, numbers)
    labels = {role: _texts(connection, (name,)) for role, name in chosen.items() if role not in NUMBERS}
    groups = _texts(connection, group) if group else np.full(rows.size, "all")
    return Points(numbers, labels, rows, groups, chosen, tuple((row, f"where: {where}") for row in dropped))


def _open(path: Path) -> duckdb.DuckDBPyConnection:
    import duckdb

    if path.suffix not in READERS:
        raise UserError(f"{path}: unknown kind of file; expected {', '.join(READERS)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a table with one row a point")
    connection = duckdb.connect(":memory:")
    quoted = str(path).replace("'", "''")
    try:
        connection.execute(
            f"create table points as select row_number() over () as _row, * from {READERS[path.suffix]}('{quoted}')"
        )
    except duckdb.Error as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from None
    return connection


def _choose(
    path: Path, names: list[str], columns: Mapping[str, str], needed: tuple[str, ...], optional: tuple[str, ...]
) -> dict[str, str]:
    """The column or definition of every role that is needed or there."""
    chosen = {role: name for role, name in USUAL.items() if name in names} | dict(columns)
    for role, name in columns.items():
        if name in DEFINITIONS:
            missing = [each for each in DEFINITIONS[name][1] if chosen.get(each, name) in DEFINITIONS]
            if missing:
                raise UserError(
                    f"columns: {role} = {name} needs {missing[0]}; name its column, as in {missing[0]}=NAME"
                )
        else:
            _known(path, names, name, f"columns: {role}")
    for role in needed:
        if role not in chosen:
            given = [text for text, (gives, _) in DEFINITIONS.items() if gives == role]
            hint = f", or --columns {role}={given[0]}" if given else ""
            raise UserError(
                f"{path}: no column for {role}; name it with --columns {role}=NAME{hint} (the file has {_list(names)})"
            )
    used = set(needed).union(*(DEFINITIONS[name][1] for name in chosen.values() if name in DEFINITIONS))
    wanted = used | set(columns) | set(optional) | {role for role in chosen if role not in NUMBERS}
    return {role: name for role, name in chosen.items() if role in wanted}


def _known(path: Path, names: list[str], name: str, place: str) -> None:
    if name not in names:
        raise UserError(f"{place} = {name}: {path} has no such column; expected one of {_list(names)}")


def _list(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _select(connection: duckdb.DuckDBPyConnection, where: str) -> list[int]:
    """Delete the rows that `where` does not hold for; returns their numbers."""
    import duckdb

    if not where:
        return []
    try:
        gone = connection.execute(f"select _row from points where not coalesce(({where}), false) order by _row")
        rows = [row[0] for row in gone.fetchall()]
    except duckdb.Error as error:
        raise UserError(f"where = {where!r}: {str(error).splitlines()[0]}") from None
    connection.execute("delete from points where _row in (select unnest(?))", [rows])
    return rows


def _numbers(connection: duckdb.DuckDBPyConnection, path: Path, name: str, role: str) -> Array:
    column = _quoted(name)
    pairs: list[tuple[Any, ...]] = connection.execute(
        f"select _row, {column}, try_cast({column} as double) from points order by _row"
    ).fetchall()
    wrong = [(row, raw) for row, raw, value in pairs if not _right(raw, value, role)]
    if wrong:
        shown = ", ".join(f"row {row} ({'empty' if raw is None else raw})" for row, raw in wrong[:ROWS_SHOWN])
        more = f" and {len(wrong) - ROWS_SHOWN} more" if len(wrong) > ROWS_SHOWN else ""
        what = "a number from 0" if role in FROM_ZERO else "a positive number"
        raise UserError(f"{path}: {name} is not {what} in {shown}{more}; leave such rows out with --where")
    return np.array([np.nan if value is None else value for _, _, value in pairs], dtype=float)


def _right(raw: Any, value: float | None, role: str) -> bool:
    if role in GAPS and (raw is None or raw == ""):
        return True
    return value is not None and (0 < value < float("inf") or (role in FROM_ZERO and value == 0))


def _derived(definition: str, numbers: Mapping[str, Array]) -> Array:
    if definition == "6nd":
        return 6 * numbers["n"] * numbers["d"]
    return numbers["c"] / (6 * numbers[definition[-1]])


def _texts(connection: duckdb.DuckDBPyConnection, names: tuple[str, ...]) -> Array:
    parts = ", ".join(f"coalesce(cast({_quoted(name)} as varchar), 'null')" for name in names)
    rows = connection.execute(f"select {parts} from points order by _row").fetchall()
    return np.array(["/".join(row) for row in rows])


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
