"""What a run of an experiment came to: a row of the JSON, from its folder."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch

from linscale import checkpoint
from linscale.config import UserError
from linscale.data.copying import Copying
from linscale.evaluate.copying import CopyingTask
from linscale.layers import LeftState
from linscale.models import LanguageModel
from linscale.models.count import count_parameters, flops_per_token
from linscale.run_folder import latest_records, read_json, write_json
from linscale.train.config import RunConfig
from linscale.train.curriculum import LOOKS
from linscale.train.metrics import read_status

Row = dict[str, Any]
LENGTH_SEQUENCES = 64
AT_ONCE = 1 << 22  # tokens


def row_of(path: Path, run: RunConfig, lengths: tuple[int, ...]) -> Row | None:
    """The row of a run folder; None where there is none yet."""
    status = read_status(path)
    if not status:
        return None
    settings = read_json(path / "config.json")
    row: Row = {name: status[name] for name in ("state", "step", "steps", "elapsed_s", "error")}
    row |= {"arch": run.model.arch, "params": count_parameters(run.model).total}
    row |= {"sequences": run.train.sequences, "length": run.train.length}
    row["noise"] = None if run.data.task is None else run.data.task.noise
    row["flops_per_token"] = flops_per_token(run.model, "prefill", run.train.length)
    row |= {name: settings[name] for name in ("precision", "torch", "code")}
    row["device"] = torch.cuda.get_device_name() if settings["device"] == "cuda" else "cpu"
    rates = [
        r["value"] for r in latest_records(path / "metrics.jsonl", ("step", "metric")) if r["metric"] == "tokens_per_s"
    ]
    row["tokens_per_s"] = statistics.median(rates) if rates else None
    row["validation"] = validation(path)
    if (path / LOOKS).exists():
        looks = latest_records(path / LOOKS, keys=("step",))
        row["looks"] = [[look["step"], look["difficulty"], round(look["loss"], 5)] for look in looks]
    if status["state"] == "done":
        row |= of_last_checkpoint(path, run, lengths)
    return row


def validation(path: Path) -> list[Row]:
    """One entry a checkpoint: step, and its metrics with their errors."""
    points: dict[int, Row] = {}
    for record in latest_records(path / "evaluations.jsonl", keys=("step", "metric")):
        if record["task"] == "validation":
            point = points.setdefault(record["step"], {"step": record["step"]})
            point |= {record["metric"]: record["value"], f"{record['metric']}_se": record["se"]}
    return [points[step] for step in sorted(points)]


def of_last_checkpoint(path: Path, run: RunConfig, lengths: tuple[int, ...]) -> Row:
    """Learned alpha, and what longer sequences give; kept in the folder, as it takes a while."""
    kept = path / "last.json"
    if kept.exists():
        found: Row = read_json(kept)
        return found
    newest = checkpoint.newest(path)
    assert newest is not None
    model = checkpoint.load_model(newest)
    found = {"alpha": alphas(model)}
    if run.data.task is not None:
        found["lengths"] = {str(noise): at_length(model, run, noise) for noise in lengths}
    write_json(kept, found)
    return found


def alphas(model: LanguageModel) -> list[Row]:
    """Of every layer that has one: its mean and range over channels or heads; of gated ones with the gate at rest."""
    found = []
    for module in model.modules():
        if isinstance(module, LeftState) and module.alpha is not None:
            if module.form == "learned":
                values = module.alpha.detach().clamp(0, 1)
            else:
                values = 0.5 * module.alpha.detach().sigmoid()
            found.append({"mean": values.mean().item(), "low": values.min().item(), "high": values.max().item()})
            if module.norm is not None:
                found[-1]["gain"] = module.norm.weight.detach().abs().mean().item()
    return found


def at_length(model: LanguageModel, run: RunConfig, noise: int) -> Row:
    """Loss and accuracy with so much noise, or why there are none."""
    assert run.data.task is not None
    device = "cuda" if torch.cuda.is_available() and run.train.device != "cpu" else "cpu"
    data = Copying(run.data.task, run.train.seed)
    precision = "bf16" if device == "cuda" and run.train.precision != "fp32" else "fp32"
    task = CopyingTask(data, noise, LENGTH_SEQUENCES, precision, batch_tokens=AT_ONCE)
    try:
        return {result.metric: result.value for result in task.run(model.to(device))}
    except UserError as error:
        return {"refused": str(error)}
    except torch.OutOfMemoryError:
        return {"refused": "out of memory"}
