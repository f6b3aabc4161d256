"""linscale's run folders as a table: one row a checkpoint that was validated, with what else was measured on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from linscale.run_folder import CONFIG, EVALUATIONS, latest_records
from linscale.study.evaluations import evaluations_of
from linscale.study.results import read_config
from linscale.study.sources.table import Table

MODEL = ("d_model", "n_layers", "head_dim", "d_ff", "vocab_size", "softmax_every")


def find(folder: Path) -> list[Path]:
    """The run folders that `folder` is or holds, at most two folders down."""
    places = (file.parent for depth in ("", "*/", "*/*/") for file in sorted(folder.glob(depth + CONFIG)))
    return [place for place in places if (place / EVALUATIONS).is_file() and "run" in read_config(place)]


def read(folders: list[Path]) -> Table:
    """Every checkpoint: params are N without embeddings by the paper's formula and flops by its closed form.

    `final` says whether it is the run's last planned step. Values of tasks are columns task.metric, with
    task.metric_stderr, in one version a task.
    """
    configs = {folder: read_config(folder) for folder in folders}
    studies = {config.get("study") for config in configs.values()}
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    protocols = set()
    for folder, config in configs.items():
        for record in latest_records(folder / EVALUATIONS):
            name = str(config["run"])
            if len(studies) > 1:
                name = f"{config.get('study') or folder.parent.name}/{name}"
            row = rows.setdefault((str(folder), int(record["step"])), _row(name, config, record))
            if record.get("task") == "validation":
                protocols.add(str(record.get("task_version")))
                row[str(record["metric"])] = record["value"]
    notes = [f"{len(protocols)} protocols of validation: their losses are not comparable"] * (len(protocols) > 1)
    for study in dict.fromkeys(folder.parent for folder in folders):  # within one, names of runs differ
        places = {str(config["run"]): str(folder) for folder, config in configs.items() if folder.parent == study}
        measured = evaluations_of([folder for folder in folders if folder.parent == study])
        notes += measured.left_out
        for value in measured.values:
            found = rows.get((places[value.run.name], value.step))
            if found is not None and not value.is_detail:
                found[f"{value.task}.{value.metric}"] = value.value
                found[f"{value.task}.{value.metric}_stderr"] = value.se
    return Table(tuple(rows.values()), f"{len(folders)} run folder(s)", tuple(notes))


def _row(run: str, config: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """What the run and the step say, before anything measured."""
    model, train, step, tokens = config["model"], config.get("train") or {}, int(record["step"]), record["tokens"]
    steps = train["tokens"] // train["batch_tokens"] if {"tokens", "batch_tokens"} <= set(train) else None
    return {
        "run": run,
        "arch": model["arch"],
        "size": config.get("size") or config["run"],
        "seed": train.get("seed"),
        "schedule": train.get("schedule"),
        "final": None if steps is None else step >= steps,
        "params": config["params"]["non_embedding"],
        "total_params": config["params"].get("total"),
        "step": step,
        "tokens": tokens,
        "flops": tokens * config["flops_per_token"],
        "loss": None,
        "bits_per_byte": None,
        **{name: model.get(name) for name in MODEL},
        "length": train.get("length"),
        "unique_tokens": train.get("unique_tokens"),
    }
