"""Weights & Biases as a table: a local folder of runs, one row a step that was logged, and the forms of its exports.

Of a run's config, nested keys are joined by dots, and a column is called after the key alone unless a metric has that
name: then it is config.KEY. What W&B writes for itself, which begins with "_", is left out but for _step and _runtime.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from linscale.config import UserError
from linscale.run_folder import read_json
from linscale.study.sources.table import Row, Table
from linscale.study.sources.wandb_log import Log, read_log

SUMMARY = "wandb-summary.json"
OWN = ("_step", "_runtime")
PREFIXES = ("config.", "config/", "summary.", "summary/")
EXTREMES = ("__MIN", "__MAX")


def find(path: Path) -> list[Path]:
    """The logs that `path` is or holds, at most three folders down; where a run has none, its summary."""
    if path.is_file():
        return [path] if path.suffix == ".wandb" else []
    depths = ("", "*/", "*/*/", "*/*/*/")
    logs = {file.resolve(): file for depth in depths for file in sorted(path.glob(depth + "run-*.wandb"))}
    there = {log.parent for log in logs}
    summaries = {file.resolve(): file for depth in depths for file in sorted(path.glob(depth + SUMMARY))}
    return [*logs.values(), *(file for real, file in summaries.items() if real.parent.parent not in there)]


def read(files: list[Path]) -> Table:
    """Every logged step of every run with its config; `final` marks the last. UserError for a damaged file."""
    logs = [read_log(file) if file.suffix == ".wandb" else _summary(file) for file in files]
    metrics = {name for log in logs for entry in log.history for name in entry}
    rows: list[Row] = []
    for log in logs:
        config = named_apart(flat(log.config), metrics)
        for number, entry in enumerate(log.history, start=1):
            kept = {name: value for name, value in flat(entry).items() if not name.startswith("_") or name in OWN}
            rows.append({"run": log.name or log.run_id, "final": number == len(log.history)} | kept | config)
    bare = [log.name or log.run_id for log in logs if not log.history]
    notes = ["final marks the last step that a run logged, finished or not"]
    notes += [f"no steps in the log of {', '.join(bare[:5])}"] * bool(bare)
    short = [file for file in files if file.name == SUMMARY]
    notes += [f"of {len(short)} run(s) only the summary is there: the last value of each metric"] * bool(short)
    return Table(tuple(rows), f"{len(logs)} local run(s) of W&B", tuple(notes))


def renamed(names: Sequence[str]) -> dict[str, str]:
    """Columns of an exported table that get another name: Name is the run, and config. and summary. are left off."""
    if not ({"Name", "State"} <= set(names) or "_step" in names):
        return {}
    new: dict[str, str] = {}
    taken = set(names)
    for name in names:
        prefix = next((each for each in PREFIXES if name.startswith(each)), "")
        bare = "run" if name == "Name" else name[len(prefix) :]
        if bare != name and bare not in taken:
            new[name] = bare
            taken.add(bare)
    return new


def is_nested(names: Sequence[str]) -> bool:
    """Whether a table has a run's whole config and summary in one cell each, as W&B's documented loop writes them."""
    return {"summary", "config"} <= set(names)


def from_nested(rows: Sequence[Row]) -> Table:
    """One row a run from such a table. Raises UserError for a cell that is no dictionary."""
    found = []
    for number, row in enumerate(rows, start=1):
        summary, config = (flat(_dictionary(row[name], f"{name} of row {number}")) for name in ("summary", "config"))
        kept = {name: value for name, value in summary.items() if not name.startswith("_") or name in OWN}
        others = {name: value for name, value in row.items() if name not in ("summary", "config", "name", "Unnamed: 0")}
        found.append({"run": row.get("name")} | others | kept | named_apart(config, set(kept)))
    return Table(tuple(found), "export of W&B runs", ("one row a run: the last value of each metric",))


def is_chart(names: Sequence[str]) -> bool:
    """Whether a table is a chart's export: a column a run and metric, with those of its extremes."""
    return any(name.endswith(EXTREMES[0]) and " - " in name for name in names)


def from_chart(rows: Sequence[Row]) -> Table:
    """One row a run and step from a table with columns "RUN - METRIC"."""
    names = list(rows[0]) if rows else []
    series = [name for name in names if " - " in name and not name.endswith(EXTREMES)]
    shared = [name for name in names if " - " not in name]
    found: list[Row] = []
    for name in dict.fromkeys(each.rpartition(" - ")[0] for each in series):
        mine = {each: each.rpartition(" - ")[2] for each in series if each.rpartition(" - ")[0] == name}
        for row in rows:
            values = {metric: row[column] for column, metric in mine.items() if row[column] is not None}
            if any(not metric.startswith("_") for metric in values):
                found.append({"run": name} | {each: row[each] for each in shared} | values)
    return Table(tuple(found), "export of a W&B chart", ("a chart's export is sampled: it may leave out last steps",))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by dots; lists stay as they are."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def named_apart(config: Mapping[str, Any], metrics: set[str]) -> dict[str, Any]:
    """A flat config with "config." before names that metrics have, and without what W&B writes for itself."""
    return {
        f"config.{name}" if name in metrics or name in ("run", "final") else name: value
        for name, value in config.items()
        if not name.startswith("_")
    }


def _dictionary(cell: Any, place: str) -> Mapping[str, Any]:
    """A cell with a dictionary, as JSON or as Python prints it."""
    if isinstance(cell, dict):
        return cell
    for read_cell in (json.loads, ast.literal_eval):
        try:
            value = read_cell(str(cell))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, dict):
            return value
    raise UserError(f"{place}: {str(cell)[:40]!r} is no dictionary; expected what wandb.Api() gives, as JSON or Python")


def _summary(file: Path) -> Log:
    """A run's summary as a log with one entry, and its config.yaml."""
    summary = read_json(file)
    if not isinstance(summary, dict):
        raise UserError(f"{file}: expected an object with the last value of each metric")
    place = file.parent.parent if file.parent.name == "files" else file.parent
    return Log(name=place.resolve().name, config=_config(file.with_name("config.yaml")), history=[summary])


def _config(file: Path) -> dict[str, Any]:
    """The config in W&B's YAML, {key: {value: ...}}; nothing where there is none."""
    if not file.is_file():
        return {}
    try:
        import yaml
    except ImportError:
        raise UserError(f"{file}: reading YAML needs a package; install it (pip install pyyaml)") from None
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: damaged YAML ({str(error).splitlines()[0]})") from None
    return {name: item["value"] for name, item in content.items() if isinstance(item, dict) and "value" in item}
