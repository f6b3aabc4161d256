"""Parquet: one text column, a few rows at a time. DuckDB reads files of this machine, and pyarrow those behind URLs:
DuckDB would read a Python file from several threads at once, with seeks and reads in between each other's.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from typing import Any

from linscale.config import UserError
from linscale.data.sources import LocalFile, Source, UnavailableInputError

ROWS = 64


def parquet_texts(source: Source, text_field: str) -> Iterator[tuple[str | None, int]]:
    """What the column holds, row by row, each with the number of rows of the file.

    Raises UserError for a damaged file, for a missing column (naming those there are) and one that is not of text.
    """
    return _local(source, text_field) if isinstance(source, LocalFile) else _remote(source, text_field)


def _local(source: Source, text_field: str) -> Iterator[tuple[str | None, int]]:
    import duckdb  # takes a tenth of a second to import, and only this reader needs it

    table, path = "read_parquet(?)", [glob.escape(source.location)]
    try:
        with duckdb.connect(":memory:", config={"threads": 1}) as connection:
            columns = {row[0]: row[1] for row in connection.execute(f"describe from {table}", path).fetchall()}
            _require_text(source, text_field, columns, ("VARCHAR",))
            total = connection.execute("select sum(num_rows) from parquet_file_metadata(?)", path).fetchall()[0][0]
            column = '"' + text_field.replace('"', '""') + '"'
            cursor = connection.execute(f"select {column} from {table}", path)
            while rows := cursor.fetchmany(ROWS):
                for (text,) in rows:
                    yield text, total
    except duckdb.Error as error:
        raise _damaged(source, error) from None


def _remote(source: Source, text_field: str) -> Iterator[tuple[str | None, int]]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        remedy = "needs the package pyarrow: pip install 'linscale[data]'"
        raise UnavailableInputError(f"{source.name}: {remedy}") from None
    try:
        with source.open() as file, ParquetFile(file) as table:
            columns = {field.name: str(field.type) for field in table.schema_arrow}
            _require_text(source, text_field, columns, ("string", "large_string", "string_view"))
            total = table.metadata.num_rows
            for batch in table.iter_batches(batch_size=ROWS, columns=[text_field], use_threads=False):
                for text in batch.column(0).to_pylist():
                    yield text, total
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(source, error) from None


def _require_text(source: Source, text_field: str, columns: dict[str, Any], kinds: tuple[str, ...]) -> None:
    if columns.get(text_field) not in kinds:
        found = ", ".join(f"{name} {kind}" for name, kind in columns.items())
        raise UserError(f"{source.name}: no text column '{text_field}' (found {found}); set text_field")


def _damaged(source: Source, error: Exception) -> UserError:
    return UserError(f"{source.name}: damaged Parquet file ({str(error).splitlines()[0]})")
