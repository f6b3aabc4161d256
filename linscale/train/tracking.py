"""Trackers: what a run records, shown as it happens by a tool that its user knows.

    trackers = ["tensorboard"]   curves in <run>/tensorboard
    trackers = ["wandb"]         a run of Weights & Biases, its files in <run>/wandb; WANDB_MODE=offline sends nothing

The run folder stays what counts: a tracker has copies, and a run that goes on writes some of them again.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from linscale.config import UserError, fingerprint


class Tracker(Protocol):
    """Gets a run's metrics as they are read from the device."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of a step, by the names of metrics.jsonl; those of evaluations.jsonl as `validation/<name>`."""

    def close(self, state: str) -> None:
        """Nothing comes after this; `state` is that of the run."""


def open_trackers(names: Sequence[str], run: Path, settings: Mapping[str, Any], start: int) -> list[Tracker]:
    """The trackers of a run that goes on from step `start`. `settings` is the content of its config.json.

    Raises UserError when one of them is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"train.trackers = {list(names)}: the package {name} is not installed; "
                "install it (pip install 'linscale[track]'), or leave it out"
            )
    kinds: dict[str, type[TensorBoard | WeightsAndBiases]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
    return [kinds[name](run, settings, start) for name in names]


class TensorBoard:
    """Event files; those of steps that are trained again are hidden by TensorBoard."""

    def __init__(self, run: Path, settings: Mapping[str, Any], start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1, flush_secs=10)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See Tracker."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self, state: str) -> None:
        """See Tracker."""
        self._writer.close()


class WeightsAndBiases:
    """A run in the project of its study (or "linscale"); the same folder goes on with the same one."""

    def __init__(self, run: Path, settings: Mapping[str, Any], start: int) -> None:
        import wandb

        try:
            self._run = wandb.init(
                project=settings["study"] or "linscale",
                name=settings["run"],
                id=fingerprint([run.resolve().as_posix(), settings["fingerprint"]]),
                config=dict(settings),
                dir=run,
                resume="allow",
                reinit="create_new",
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise UserError(
                f"train.trackers: Weights & Biases cannot begin a run ({error}); "
                "log in (wandb login), or set WANDB_MODE=offline"
            ) from None
        self._run.define_metric("*", step_metric="step")  # its own count cannot go back to a checkpoint

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See Tracker."""
        self._run.log({"step": step, **metrics})

    def close(self, state: str) -> None:
        """See Tracker."""
        self._run.finish(exit_code=int(state == "failed"))
