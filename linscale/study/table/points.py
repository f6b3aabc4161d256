"""Points of a source, one row a run or checkpoint: what `linscale fit` reads.

Columns are told by role (`columns.USUAL`): n parameters, d tokens, c FLOPs, loss in nats per token, labels such as run
and budget to resample by, and the shapes that definitions of FLOPs and parameters are computed from. Rows are numbered
from 1, without the header. DuckDB reads, and its SQL selects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from linscale.config import UserError
from linscale.study.sources.read import Source, identifier, open_source
from linscale.study.table.columns import LABELS, Chooser, is_definition, order, parse_columns, require
from linscale.study.table.definitions import DEFINITIONS, formulas

if TYPE_CHECKING:
    import duckdb

__all__ = ["ROWS_SHOWN", "Points", "parse_columns", "read_points"]

Array = np.ndarray
CHECKED = ("n", "d", "c", "bpb", "vocab_size")
"""Roles that checks of the points read where they are whole, though no law asks for them."""
FROM_ZERO = ("error", "accuracy", "softmax_every")
"""Numbers that may be 0."""
GAPS = ("error",)
"""Of them, those that a row may lack: nan there."""
ROWS_SHOWN = 5


@dataclass(frozen=True)
class Points:
    """The rows that were selected, and those that were not."""

    numbers: Mapping[str, Array]
    """By role, each (m,), finite and positive but for FROM_ZERO and GAPS: what was asked for, and what checks read."""
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
    notes: tuple[str, ...] = ()
    """What the importer of the source says of it."""

    @property
    def definitions(self) -> dict[str, str]:
        """By role, the formula of every definition that was used."""
        return formulas(self.columns)


def read_points(
    source: Path | Source,
    *,
    columns: Mapping[str, str],
    needed: tuple[str, ...],
    optional: tuple[str, ...] = (),
    group: tuple[str, ...] = (),
    where: str = "",
) -> Points:
    """Read a source, by its path or open. `needed` roles must be there; those of `optional` and labels are read where
    they are.

    A column that only carries the usual name of an optional role, and holds no number at all, is not taken for it.

    Raises UserError for a source or a condition that cannot be read, and, naming rows, for what is not a positive
    number in a column that is needed.
    """
    source = open_source(source) if isinstance(source, Path) else source
    path = source.path
    chooser = Chooser(str(path), source.names, columns)
    held = tuple(role for role in optional if role in columns or _holds_numbers(source, chooser.find(role)))
    chosen = chooser.choose((*needed, *held), columns)
    for name in group:
        require(str(path), source.names, name, "group")
    dropped = _select(source.connection, where)
    rows = _column(source.connection, "_row")
    if not rows.size:
        raise UserError(f"{path}: no rows" + (f" where {where}" if where else " below its header"))
    numbers = _all_numbers(source, chosen)
    for role in CHECKED:
        column = chooser.find(role)
        if role not in numbers and column is not None:
            values = _values(source.connection, column)
            if _positive(values).all():
                numbers[role] = values
    labels = {role: _texts(source.connection, (name,)) for role, name in chosen.items() if role in LABELS}
    groups = _texts(source.connection, group) if group else np.full(rows.size, "all")
    left_out = tuple((int(row), f"where: {where}") for row in dropped)
    return Points(numbers, labels, rows, groups, chosen, left_out, source.notes)


def _all_numbers(source: Source, chosen: Mapping[str, str]) -> dict[str, Array]:
    """Columns of numbers, and what definitions make of them, by role."""
    numbers: dict[str, Array] = {}
    if "arch" in chosen:
        numbers["arch"] = _texts(source.connection, (chosen["arch"],))
    for role, name in order(chosen):
        if is_definition(role, name):
            numbers[role] = _derived(role, name, numbers)
        else:
            numbers[role] = _numbers(source, name, role)
    return {role: values for role, values in numbers.items() if role != "arch"}


def _derived(role: str, name: str, numbers: Mapping[str, Array]) -> Array:
    """The values of a definition from those of the first of its ways that is there."""
    definition = DEFINITIONS[role][name]
    way = next(way for way in definition.ways if all(part in numbers for part in way))
    read = {part: numbers[part] for part in (*way, *definition.optional) if part in numbers}
    return definition.compute(read)


def _select(connection: duckdb.DuckDBPyConnection, where: str) -> Array:
    """Make the view `selected` of the rows that `where` holds for; returns the numbers of the others."""
    import duckdb

    if not where:
        connection.execute("create or replace temp view selected as select * from points")
        return np.empty(0, dtype=int)
    held = f"coalesce((\n{where}\n), false)"
    query = f"select _row from points where not {held} order by _row"
    try:
        if len(connection.extract_statements(query)) != 1:
            raise UserError(f'where = {where!r}: expected one condition, as in "loss < 6", not several statements')
        rows: Array = connection.execute(query).fetchnumpy()["_row"]
        connection.execute(f"create or replace temp view selected as select * from points where {held}")
    except duckdb.Error as error:
        raise UserError(f"where = {where!r}: {' '.join(str(error).split('LINE')[0].split())}") from None
    return rows


def _numbers(source: Source, name: str, role: str) -> Array:
    values = _values(source.connection, name)
    right = _positive(values) | ((role in FROM_ZERO) & (values == 0))
    if role in GAPS:
        right |= _empty(source.connection, name)
    wrong = np.flatnonzero(~right)
    if wrong.size:
        what = "a number from 0" if role in FROM_ZERO else "a positive number"
        shown = _shown(source.connection, name, wrong)
        raise UserError(f"{source.path}: {name} is not {what} in {shown}; leave such rows out with --where")
    return values


def _holds_numbers(source: Source, name: str | None) -> bool:
    query = "select count(try_cast({} as double)) from points"
    return name is not None and source.connection.execute(query.format(identifier(name))).fetchall()[0][0] > 0


def _empty(connection: duckdb.DuckDBPyConnection, name: str) -> Array:
    """(m,) whether a column holds nothing."""
    column = identifier(name)
    query = f"select {column} is null or cast({column} as varchar) = '' as empty from selected order by _row"
    return np.asarray(connection.execute(query).fetchnumpy()["empty"], dtype=bool)


def _shown(connection: duckdb.DuckDBPyConnection, name: str, wrong: Array) -> str:
    """The first of some rows, by position, with what they hold."""
    some = ", ".join(map(str, _column(connection, "_row")[wrong[:ROWS_SHOWN]]))
    query = f"select _row, {identifier(name)} from selected where _row in ({some}) order by _row"
    pairs = connection.execute(query).fetchall()
    shown = ", ".join(f"row {row} ({'empty' if raw is None else str(raw)[:40]})" for row, raw in pairs)
    return shown + (f" and {len(wrong) - ROWS_SHOWN} more" if len(wrong) > ROWS_SHOWN else "")


def _values(connection: duckdb.DuckDBPyConnection, name: str) -> Array:
    """A column (m,) as numbers, nan where it holds none."""
    query = (
        f"select coalesce(try_cast({identifier(name)} as double), 'nan'::double) as value from selected order by _row"
    )
    return np.asarray(connection.execute(query).fetchnumpy()["value"], dtype=float)


def _positive(values: Array) -> Array:
    return np.asarray((values > 0) & np.isfinite(values))


def _column(connection: duckdb.DuckDBPyConnection, name: str) -> Array:
    return np.asarray(connection.execute(f"select {name} from selected order by _row").fetchnumpy()[name])


def _texts(connection: duckdb.DuckDBPyConnection, names: tuple[str, ...]) -> Array:
    parts = " || '/' || ".join(f"coalesce(cast({identifier(name)} as varchar), 'null')" for name in names)
    values = connection.execute(f"select {parts} as text from selected order by _row").fetchnumpy()["text"]
    return np.asarray(values).astype(str)
