"""What a study's run folders hold, as curves to fit and as one line a run to show."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from linscale.config import UserError
from linscale.run_folder import CONFIG, EVALUATIONS, METRICS, STATUS, is_locked, latest_records, read_json

Loss = Literal["validation", "train"]


@dataclass(frozen=True)
class Curve:
    """The loss of one run as it trains; n points in the order of tokens, all finite and positive."""

    run: str
    arch: str
    size: str
    params: float
    """Non-embedding parameters N, by the paper's formula."""
    flops_per_token: float
    """Training FLOPs per token without the embeddings, by the closed form."""
    tokens: np.ndarray
    """(n,) tokens seen."""
    flops: np.ndarray
    """(n,) FLOPs spent."""
    loss: np.ndarray
    """(n,) nats per token."""


@dataclass(frozen=True)
class RunSummary:
    """Where one run stands; None for what has not been measured."""

    run: str
    arch: str
    size: str
    state: str
    params: float
    flops_per_token: float
    step: int
    steps: int | None
    tokens: float
    flops: float
    validation_loss: float | None
    """Nats per token at the last checkpoint evaluated."""
    bits_per_byte: float | None
    """Validation bits per byte at the last checkpoint evaluated."""
    tokens_per_s: float | None
    """Median over the run's records."""


@dataclass(frozen=True)
class RunState:
    """What one run is doing, as its status file says; None for what it does not say."""

    folder: str
    run: str
    study: str | None
    arch: str
    params: int
    """Every parameter."""
    state: str
    """running, done, stopped (killed, or by SIGTERM), failed, or not started."""
    step: int
    steps: int | None
    loss: float | None
    """Training loss of the last step, nats per token."""
    validation_loss: float | None
    """At the last checkpoint evaluated, nats per token."""
    skipped: int
    """Steps left out because they were not finite."""
    tokens_per_s: float | None
    mfu: float | None
    """Share of the device's matrix rate that went into the model."""
    eta_s: float | None
    """Seconds left of a run that is running."""
    updated: float | None
    """When the status was written, seconds since 1970."""
    error: str | None


@dataclass(frozen=True)
class Provenance:
    """What the numbers of a study came from; more than one value where runs differ."""

    study: str
    code: tuple[str, ...]
    data: tuple[str, ...]
    device: tuple[str, ...]
    protocol: tuple[str, ...]
    """Versions of the validation task."""


def run_folders(study: Path) -> list[Path]:
    """The runs of a study, by name: folders with a config.json that names a run. UserError when there is none."""
    if not study.is_dir():
        raise UserError(f"{study}: no such folder; expected a study's folder of runs")
    runs = [
        folder for folder in sorted(study.iterdir()) if (folder / CONFIG).is_file() and "run" in read_config(folder)
    ]
    if not runs:
        raise UserError(
            f"{study}: holds no runs; expected folders with a {CONFIG}, as `linscale study run` writes them"
        )
    return runs


def read_config(folder: Path) -> Mapping[str, Any]:
    """The config.json of a run. Raises UserError when it is damaged, or lacks what every run is placed by."""
    values = read_json(folder / CONFIG)
    if not isinstance(values, dict):
        raise UserError(f"{folder / CONFIG}: expected an object that describes a run; restore or delete the folder")
    if "run" not in values:
        return values
    for path in (("model", "arch"), ("params", "non_embedding"), ("flops_per_token",)):
        item: Any = values
        for key in path:
            item = item.get(key) if isinstance(item, dict) else None
        if item is None or (path[-1] != "arch" and not (_finite(item) and item > 0)):
            raise UserError(f"{folder / CONFIG}: '{'.'.join(path)}' = {item!r} is missing or not a positive number")
    return values


def read_study(study: Path, *, loss: Loss = "validation") -> list[Curve]:
    """The curve of every run that has one, by architecture and parameters.

    `loss` picks the validation loss of the checkpoints or the training loss of the steps. Values that are not finite
    (a run that diverged) are left out. Raises UserError when no run of the study has such a loss yet.
    """
    curves = [curve for folder in run_folders(study) if (curve := read_curve(folder, loss=loss)) is not None]
    if not curves:
        raise UserError(f"{study}: no run has a {loss} loss yet; run the study first")
    return sorted(curves, key=lambda curve: (curve.arch, curve.params, curve.run))


def read_curve(folder: Path, *, loss: Loss) -> Curve | None:
    """The curve of one run folder; None when it has no finite loss."""
    if loss == "validation":
        records = _validation_records(folder)
    else:
        records = latest_records(folder / METRICS, keys=("step", "metric"))
    points = {float(r["tokens"]): r for r in records if r.get("metric") == "loss" and _finite(r.get("value"))}
    points = {tokens: record for tokens, record in points.items() if tokens > 0 and record["value"] > 0}
    if not points:
        return None
    values = read_config(folder)
    tokens = np.array(sorted(points))
    flops_per_token = float(values["flops_per_token"])
    return Curve(
        run=str(values["run"]),
        arch=str(values["model"]["arch"]),
        size=str(values.get("size") or values["run"]),
        params=float(values["params"]["non_embedding"]),
        flops_per_token=flops_per_token,
        tokens=tokens,
        flops=tokens * flops_per_token,
        loss=np.array([float(points[t]["value"]) for t in tokens]),
    )


def read_summaries(study: Path) -> list[RunSummary]:
    """One line a run, by architecture and parameters."""
    return sorted((_summary(folder) for folder in run_folders(study)), key=lambda s: (s.arch, s.params, s.run))


def read_states(root: Path) -> list[RunState]:
    """Every run at or below `root`, at most two folders deep, those heard of last first; running ones before all.

    Raises UserError when there is no such folder. What is not a run, or damaged, is passed over.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected a folder of runs or of studies")
    folders = [path.parent for pattern in ("", "*/", "*/*/") for path in root.glob(pattern + CONFIG)]
    states = []
    for folder in folders:
        with contextlib.suppress(UserError, KeyError, TypeError, ValueError):
            states.append(_run_state(folder))
    return sorted(states, key=lambda state: (state.state != "running", -(state.updated or 0), state.folder))


def read_provenance(study: Path) -> Provenance:
    """Study name, and the distinct code versions, data fingerprints, devices and validation protocols of its runs."""
    folders = run_folders(study)
    configs = [read_config(folder) for folder in folders]
    records = [record for folder in folders for record in _validation_records(folder)]
    return Provenance(
        study=next((str(c["study"]) for c in configs if c.get("study")), study.resolve().name),
        code=_distinct(c.get("code") for c in configs),
        data=_distinct((c.get("data") or {}).get("fingerprint") for c in configs),
        device=_distinct(c.get("device") for c in configs),
        protocol=_distinct(r.get("task_version") for r in records),
    )


def smoothed(tokens: np.ndarray, loss: np.ndarray, fraction: float) -> np.ndarray:
    """Mean over a window of `fraction` of the run's tokens, narrowed evenly at both ends so that it stays centred."""
    reach = np.minimum(fraction / 2 * tokens[-1], np.minimum(tokens - tokens[0], tokens[-1] - tokens))
    first = np.searchsorted(tokens, tokens - reach, side="left")
    last = np.searchsorted(tokens, tokens + reach, side="right")
    total = np.concatenate([[0.0], np.cumsum(loss)])
    return (total[last] - total[first]) / (last - first)


def interpolated(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Cubic Hermite interpolation with the slopes of local parabolas; nan outside of x.

    Between checkpoints a straight line lies above a convex curve, by different amounts for neighbouring sizes.
    """
    slope = np.gradient(y, x)
    left = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    step = x[left + 1] - x[left]
    t = (at - x[left]) / step
    value = (1 + 2 * t) * (1 - t) ** 2 * y[left] + t**2 * (3 - 2 * t) * y[left + 1]
    value += step * t * (1 - t) * ((1 - t) * slope[left] - t * slope[left + 1])
    inside = (at >= x[0] - 1e-9) & (at <= x[-1] + 1e-9)
    return np.where(inside, value, np.nan)


def _summary(folder: Path) -> RunSummary:
    values = read_config(folder)
    status = _status(folder)
    curve = read_curve(folder, loss="validation")
    speeds = [
        float(r["value"])
        for r in latest_records(folder / METRICS, keys=("step", "metric"))
        if r.get("metric") == "tokens_per_s" and _finite(r.get("value"))
    ]
    tokens = float(status.get("tokens") or (curve.tokens[-1] if curve else 0))
    flops_per_token = float(values["flops_per_token"])
    return RunSummary(
        run=str(values["run"]),
        arch=str(values["model"]["arch"]),
        size=str(values.get("size") or values["run"]),
        state=status["state"],
        params=float(values["params"]["non_embedding"]),
        flops_per_token=flops_per_token,
        step=int(status.get("step") or 0),
        steps=status.get("steps"),
        tokens=tokens,
        flops=tokens * flops_per_token,
        validation_loss=_last(folder, "loss"),
        bits_per_byte=_last(folder, "bits_per_byte"),
        tokens_per_s=float(np.median(speeds)) if speeds else None,
    )


def _run_state(folder: Path) -> RunState:
    values = read_config(folder)
    status = _status(folder)
    return RunState(
        folder=str(folder),
        run=str(values["run"]),
        study=values.get("study"),
        arch=str(values["model"]["arch"]),
        params=int(values["params"]["total"]),
        state=status["state"],
        step=int(status.get("step") or 0),
        steps=status.get("steps"),
        loss=status.get("loss"),
        validation_loss=_last(folder, "loss"),
        skipped=int(status.get("skipped") or 0),
        tokens_per_s=status.get("tokens_per_s"),
        mfu=status.get("mfu"),
        eta_s=status.get("eta_s") if status["state"] == "running" else None,
        updated=status.get("updated"),
        error=status.get("error"),
    )


def _status(folder: Path) -> dict[str, Any]:
    """The content of status.json with its state as it is: a "running" that nobody writes was left by a kill."""
    status: dict[str, Any] = read_json(folder / STATUS) if (folder / STATUS).is_file() else {}
    killed = status.get("state") == "running" and not is_locked(folder)
    return {**status, "state": "stopped" if killed else str(status.get("state", "not started"))}


def _validation_records(folder: Path) -> list[dict[str, Any]]:
    """A checkpoint may have a hundred times as many records of other tasks."""
    records = latest_records(folder / EVALUATIONS, containing='"validation"')
    return [record for record in records if record.get("task") == "validation"]


def _last(folder: Path, metric: str) -> float | None:
    records = [r for r in _validation_records(folder) if r.get("metric") == metric and _finite(r.get("value"))]
    return float(max(records, key=lambda r: r["step"])["value"]) if records else None


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _distinct(values: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(value) for value in values if value))
