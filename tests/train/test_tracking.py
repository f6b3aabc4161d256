"""Trackers hold what the run folder holds, also after a crash; the tools' own readers say so."""

import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from linscale.config import UserError
from linscale.run_folder import latest_records
from linscale.train import tracking
from linscale.train.config import RunConfig
from linscale.train.trainer import train

Make = Callable[..., RunConfig]
METRICS = ["loss", "grad_norm", "learning_rate", "tokens_per_s"]


def recorded(run: Path, file: str, metric: str) -> dict[int, float]:
    records = latest_records(run / file, ("step", "metric"))
    return {record["step"]: pytest.approx(record["value"]) for record in records if record["metric"] == metric}


class CrashError(Exception):
    pass


def crash(status: dict[str, Any]) -> None:
    if status["step"] >= 5:
        raise CrashError


@pytest.mark.slow
def test_tensorboard_has_the_curves_and_nothing_twice_after_a_crash(make: Make, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run, config = tmp_path / "run", make(trackers=["tensorboard"], log_every=1)
    with pytest.raises(CrashError):
        train(run, config, on_step=crash)
    train(run, config)
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for metric in METRICS[:3]:
        found = {event.step: event.value for event in events.Scalars(metric)}
        assert found == recorded(run, "metrics.jsonl", metric)
        assert len(events.Scalars(metric)) == 10
    for metric in ("loss", "bits_per_byte"):
        found = {event.step: event.value for event in events.Scalars(f"validation/{metric}")}
        assert found == recorded(run, "evaluations.jsonl", metric)


def log_records(content: bytes, block: int = 32768, header: int = 7) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, behind the seven bytes with which Weights & Biases opens one."""
    at, parts = 7, b""
    while at + header <= len(content):
        if block - at % block < header:  # the rest of a block is padding
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        if at + header + length > len(content):
            return  # it is still being written
        parts += content[at + header : at + header + length]
        at += header + length
        if kind in (1, 4):  # whole, or the last of several pieces
            yield parts
            parts = b""


def read_records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file, as far as it is written."""
    from wandb.proto import wandb_internal_pb2 as messages

    for data in log_records(file.read_bytes()):
        record = messages.Record()
        record.ParseFromString(data)
        yield record


@pytest.mark.slow
def test_weights_and_biases_offline_has_the_curves_and_the_config(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    train(run, make(trackers=["wandb"]))
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    kinds, until = set(), time.monotonic() + 60
    while "exit" not in kinds:  # the service of wandb writes the end of the file after finish() has come back
        assert time.monotonic() < until, f"the last record is missing of {sorted(kinds)}"
        time.sleep(0.1)
        kinds = {record.WhichOneof("record_type") for record in read_records(file)}
    rows: list[dict[str, str]] = []
    config: dict[str, str] = {}
    for record in read_records(file):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            keys = (".".join(item.nested_key) or item.key for item in record.history.item)
            rows.append(dict(zip(keys, (item.value_json for item in record.history.item), strict=True)))
        elif kind == "run":
            config |= {item.key: item.value_json for item in record.run.config.update}
    for metric in METRICS:
        found = {int(row["step"]): float(row[metric]) for row in rows if metric in row}
        assert found == recorded(run, "metrics.jsonl", metric)
    found = {int(row["step"]): float(row["validation/loss"]) for row in rows if "validation/loss" in row}
    assert found == recorded(run, "evaluations.jsonl", "loss")
    assert config["run"] == '"tiny"'


def test_a_tool_that_is_not_installed_is_named_before_anything_is_trained(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"train.trackers = \['wandb'\]: the package wandb is not installed; install it"
    ):
        train(tmp_path / "run", make(trackers=["wandb"]))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_may_change_its_trackers(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Notes:
        def __init__(self, run: Path, settings: Any, start: int) -> None:
            self.steps: list[int] = []
            kept.append(self)

        def log(self, step: int, metrics: Any) -> None:
            self.steps += [step] if "loss" in metrics else []

        def close(self, state: str) -> None:
            self.state = state

    kept: list[Notes] = []
    monkeypatch.setattr(tracking, "TensorBoard", Notes)
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(CrashError):
        train(tmp_path / "run", make(log_every=1), on_step=crash)
    train(tmp_path / "run", make(trackers=["tensorboard"]))
    (notes,) = kept
    assert (notes.steps, notes.state) == ([5, 6, 7, 8, 9, 10], "done")
