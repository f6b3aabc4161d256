"""SQL over run folders: the files are the database, DuckDB the engine. Reads alone; no torch.

    runs         one row a run: folder, run, study, size, arch, params (N), total_params, device, precision, state,
                 step, steps
    metrics      what training recorded: folder, run, study, size, arch, params, step, tokens, flops, metric, value
    evaluations  the same of evaluations, and task, task_version, se, count, cells

Of records with the same key the later one is shown, as everywhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linscale.config import UserError
from linscale.run_folder import CONFIG, EVALUATIONS, METRICS, STATUS

if TYPE_CHECKING:
    import duckdb

RECORD = {"run": "VARCHAR", "step": "BIGINT", "tokens": "BIGINT", "flops": "DOUBLE", "metric": "VARCHAR",
          "value": "DOUBLE", "code": "VARCHAR"}  # fmt: skip
EVALUATION = RECORD | {
    "task": "VARCHAR",
    "task_version": "VARCHAR",
    "se": "DOUBLE",
    "count": "BIGINT",
    "cells": "DOUBLE[]",
}
RUN = {"folder": "VARCHAR", "run": "VARCHAR", "study": "VARCHAR", "size": "VARCHAR", "arch": "VARCHAR",
       "params": "BIGINT", "total_params": "BIGINT", "device": "VARCHAR", "precision": "VARCHAR", "state": "VARCHAR",
       "step": "BIGINT", "steps": "BIGINT"}  # fmt: skip


def query(folder: Path, sql: str) -> duckdb.DuckDBPyRelation:
    """The answer to a query over the runs at or below `folder`, up to two folders down.

    Raises UserError when there are no runs, or with DuckDB's own words when the query is wrong.
    """
    import duckdb

    runs = sorted({file.parent for depth in (CONFIG, f"*/{CONFIG}", f"*/*/{CONFIG}") for file in folder.glob(depth)})
    if not runs:
        raise UserError(f"{folder}: no runs in it (no {CONFIG}, up to two folders down)")
    connection = duckdb.connect(":memory:")
    connection.execute(f"create table runs ({', '.join(f'{name} {kind}' for name, kind in RUN.items())})")
    places = ", ".join("?" * len(RUN))
    connection.executemany(f"insert into runs values ({places})", [list(_run(run).values()) for run in runs])
    _records(connection, "metrics", [run / METRICS for run in runs], RECORD, "metric")
    _records(connection, "evaluations", [run / EVALUATIONS for run in runs], EVALUATION, "task, task_version, metric")
    try:
        answer = connection.sql(sql)
    except duckdb.Error as error:
        raise UserError(f"query: {str(error).splitlines()[0]}; tables are runs, metrics, evaluations") from None
    if answer is None:
        raise UserError(f"query: {sql!r} asks for nothing; expected select ... from runs, metrics or evaluations")
    return answer


def _run(run: Path) -> dict[str, Any]:
    config, status = _read(run / CONFIG), _read(run / STATUS)
    params = config.get("params") or {}
    values = {name: config.get(name) for name in ("run", "study", "size", "device", "precision")}
    values |= {name: status.get(name) for name in ("state", "step", "steps")}
    values |= {"folder": str(run), "arch": (config.get("model") or {}).get("arch")}
    values |= {"params": params.get("non_embedding"), "total_params": params.get("total")}
    return {name: values[name] for name in RUN}


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none or it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _records(
    connection: duckdb.DuckDBPyConnection, name: str, files: list[Path], columns: dict[str, str], key: str
) -> None:
    """The view `name` of the records in `files`, with what their runs are."""
    found = [str(file) for file in files if file.exists() and file.stat().st_size]
    shown = ", ".join(f"r.{column}" for column in columns)
    if not found:
        kinds = {"folder": "VARCHAR", "study": "VARCHAR", "size": "VARCHAR", "arch": "VARCHAR", "params": "BIGINT"}
        connection.execute(f"create table {name} ({', '.join(f'{c} {kind}' for c, kind in (kinds | columns).items())})")
        return
    listed = ", ".join("'" + file.replace("'", "''") + "'" for file in found)
    kinds_listed = ", ".join(f"{column}: '{kind}'" for column, kind in columns.items())
    connection.execute(f"""
        create view {name} as
        with lines as (
            select *, row_number() over () as line
            from read_json([{listed}], format = 'newline_delimited', ignore_errors = true, filename = true,
                           columns = {{{kinds_listed}}})
        ), latest as (
            select * from lines where step is not null
            qualify row_number() over (partition by filename, step, {key} order by line desc) = 1
        )
        select runs.folder, runs.study, runs.size, runs.arch, runs.params, {shown}
        from latest r join runs on coalesce(nullif(parse_dirpath(r.filename), ''), '.') = runs.folder
        order by line
    """)
