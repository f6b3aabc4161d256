"""What a run says about itself while it trains: metrics.jsonl, status.json, throughput and time left."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from linscale.config import UserError
from linscale.run_folder import METRICS, STATUS, RecordWriter, code_version, read_json, read_records, write_json
from linscale.train.tracking import Tracker

SKIPPED = "skipped"  # the metric of a step whose loss or gradient was not finite; it has no other but its learning rate
INTERVAL_S = 1.0  # between two updates of status.json, and the longest wait for a reading of a fast run


class Pending(NamedTuple):
    """A step whose metrics are on their way from the device."""

    step: int
    lr: float
    values: torch.Tensor
    "Loss and gradient norm, on the CPU once `event` is over."
    event: torch.cuda.Event | None


class TooManySkippedError(Exception):
    """More steps in a row than `max_skipped` were left out; the last of them, and what was not finite in it."""

    def __init__(self, step: int, count: int, what: str) -> None:
        super().__init__(f"step {step}: {what} is not finite")
        self.step, self.count, self.what = step, count, what


class RunLog:
    """Collects the metrics of each step on the device, and writes them whenever it reads the device."""

    def __init__(
        self, run: Path, settings: Mapping[str, Any], checkpoints: list[int], start: int, *,
        limit: float | None = None, trackers: Sequence[Tracker] = (), writes: bool = True,
    ) -> None:  # fmt: skip
        """`settings` is the content of config.json, `start` the step from which this process goes on.

        `checkpoints` are the run's checkpoint steps, the last of them its last step. `limit` is the tokens/s at which
        the model would use the device in full. `trackers` get what is recorded, and are closed with this. Without
        `writes` it counts as it would, and leaves the folder to the rank that writes.
        """
        self._limit, self._trackers = limit, trackers
        self._run, self._settings, self._start = run, settings, start
        self._checkpoints = [step for step in checkpoints if step > start]
        self._batch_tokens, self._log_every = settings["train"]["batch_tokens"], settings["train"]["log_every"]
        self._writer = RecordWriter(run / METRICS) if writes else None
        self._pending: list[Pending] = []
        self._skipped = skipped_steps(run, start)
        self._began = self._reading_began = time.monotonic()
        self._training_s = self._checkpoint_s = 0.0
        self._status_written = -math.inf
        earlier = read_status(run)
        self._earlier_s = float(earlier.get("elapsed_s") or 0.0)
        self.status: dict[str, Any] = {
            "state": "running",
            "step": start,
            "steps": checkpoints[-1],
            "tokens": start * self._batch_tokens,
            "tokens_per_s": None,
            "mfu": None,
            "loss": earlier.get("loss") if earlier.get("step") == start else None,
            "skipped": len(self._skipped),
            "elapsed_s": self._earlier_s,
            "eta_s": None,
            "pid": os.getpid(),
            "updated": None,
            "error": None,
        }
        self._write_status()

    def add(self, step: int, lr: float, loss: torch.Tensor, grad_norm: torch.Tensor) -> None:
        """Note a step's metrics without waiting for the device: `loss` and `grad_norm` are scalars on it."""
        values, event = torch.stack((loss, grad_norm)), None
        if values.is_cuda:
            host = torch.empty(2, dtype=values.dtype, pin_memory=True)
            values = host.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append(Pending(step, lr, values, event))

    def due(self) -> bool:
        """Whether it is time to read the device."""
        return len(self._pending) >= self._log_every or time.monotonic() - self._reading_began >= INTERVAL_S

    def flush(self, *, everything: bool = True) -> None:
        """Record pending steps, and update the status.

        Unless `everything` is asked for, the newest step of a GPU is left for later, so that the GPU has work while its
        host waits for the steps before.

        Raises TooManySkippedError at a step whose loss or gradient is not finite when those of the `max_skipped` steps
        before it were not either; it and those before it are recorded.
        """
        behind = self._pending and self._pending[-1].event is not None and not everything
        read, self._pending = (self._pending[:-1], self._pending[-1:]) if behind else (self._pending, [])
        if not read:
            return
        if read[-1].event is not None:
            read[-1].event.synchronize()
        now = time.monotonic()
        seconds = max(now - self._reading_began, 1e-9)
        rate = len(read) * self._batch_tokens / seconds
        for step, lr, values, _ in read:
            loss, grad_norm = values.tolist()
            if math.isfinite(loss) and math.isfinite(grad_norm):
                self._record(step, {"loss": loss, "grad_norm": grad_norm, "learning_rate": lr, "tokens_per_s": rate})
                self.status["loss"] = loss
            else:
                self._record(step, {SKIPPED: 1.0, "learning_rate": lr})
                self._skip(step, f"loss = {loss}" if not math.isfinite(loss) else f"grad_norm = {grad_norm}")
        self._training_s += seconds
        self.status |= {"step": step, "tokens": step * self._batch_tokens, "tokens_per_s": rate}
        self.status["mfu"] = rate / self._limit if self._limit else None
        if now - self._status_written >= INTERVAL_S:
            self._write_status()
        self._reading_began = now

    def checkpoint_done(self, step: int, validation: Mapping[str, float]) -> None:
        """A checkpoint is saved and evaluated: the time since the last reading was its, not that of training."""
        for tracker in self._trackers:
            tracker.log(step, {f"validation/{name}": value for name, value in validation.items()})
        now = time.monotonic()
        self._checkpoint_s += now - self._reading_began
        self._reading_began = now

    def finish(self) -> None:
        """The run is complete."""
        self.status |= {"state": "done", "eta_s": 0.0}
        self._write_status()

    def stop(self) -> None:
        """The run was asked to stop, and can go on from the checkpoint of its last step."""
        self.status |= {"state": "stopped", "eta_s": None}
        self._write_status()

    def fail(self, message: str) -> None:
        """The run stopped; where even that cannot be written, the reason still reaches the caller."""
        self.status |= {"state": "failed", "error": message}
        with contextlib.suppress(OSError):
            self._write_status()

    def close(self) -> None:
        """Close metrics.jsonl and the trackers."""
        if self._writer:
            self._writer.close()
        for tracker in self._trackers:
            tracker.close(self.status["state"])

    def _skip(self, step: int, what: str) -> None:
        self._skipped.add(step)
        self.status["skipped"] = len(self._skipped)
        count = 1
        while step - count in self._skipped:
            count += 1
        if count > self._settings["train"]["max_skipped"]:
            raise TooManySkippedError(step, count, what)

    def _record(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._writer is None:
            return
        tokens = step * self._batch_tokens
        flops = tokens * self._settings["flops_per_token"]
        head = {"run": self._settings["run"], "step": step, "tokens": tokens, "flops": flops}
        code = code_version()
        self._writer.write(*({**head, "metric": name, "value": value, "code": code} for name, value in metrics.items()))
        for tracker in self._trackers:
            tracker.log(step, {**metrics, "tokens": tokens})

    def _write_status(self) -> None:
        elapsed = self._earlier_s + time.monotonic() - self._began
        self.status |= {"elapsed_s": round(elapsed, 2), "updated": round(time.time(), 2)}
        if self.status["state"] == "running":
            self.status["eta_s"] = self._eta()
        if self._writer:
            write_json(self._run / STATUS, self.status)
        self._status_written = time.monotonic()

    def _eta(self) -> float | None:
        """Seconds left: steps and checkpoints to come at the mean time of those this process has done."""
        step = self.status["step"]
        if step == self._start:
            return None
        saved = sum(at < step for at in self._checkpoints)
        training = (self.status["steps"] - step) * self._training_s / (step - self._start)
        saving = (len(self._checkpoints) - saved) * self._checkpoint_s / saved if saved else 0.0
        return round(training + saving, 1)


def skipped_steps(run: Path, last: int) -> set[int]:
    """The steps up to `last` that were left out, as the run's metrics have them."""
    skipped: set[int] = set()
    for record in read_records(run / METRICS) if last else ():
        if record["step"] > last:
            continue
        if record["metric"] == SKIPPED:
            skipped.add(record["step"])
        elif record["metric"] == "loss":  # trained again after a kill, and then all was well
            skipped.discard(record["step"])
    return skipped


def read_status(run: Path) -> dict[str, Any]:
    """The content of status.json; empty when there is none or it is damaged, as it says nothing that must be kept."""
    numbers = ("step", "steps", "elapsed_s", "updated")
    with contextlib.suppress(UserError):
        status = read_json(run / STATUS)
        if isinstance(status, dict) and all(isinstance(status.get(key, 0), (int, float)) for key in numbers):
            return status
    return {}
