"""linscale train: one run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from linscale.cli.output import Json, ProgressBar, duration, print_json, print_table
from linscale.cli.ranks import joined
from linscale.config import human, load_toml
from linscale.distributed import Ranks, sigterm_noted
from linscale.train.config import RunConfig
from linscale.train.trainer import train as train_run


def train(config: Annotated[Path, tyro.conf.Positional], *, out: Path | None = None, json: Json = False) -> None:
    """Train one model from a TOML file, or go on with it from its newest checkpoint.

    SIGTERM saves the step that is being done and ends the command with status 0.

    On N GPUs:  torchrun --nproc-per-node N -m linscale train CONFIG
    Weights, gradients and optimizer are sharded over all ranks (FSDP2), and the batch is split between them; with
    train.sequence_parallel each sequence is, too. A run goes on with any other number of ranks.

    Args:
        config: The run: model, data and recipe; configs/train/small.toml is an example.
        out: The run folder. By default runs/<name>.
    """
    run: RunConfig = load_toml(config, RunConfig)
    folder = out or Path("runs") / run.name
    with joined(run.train) as ranks:
        status = _train(run, folder, ranks)
    if not ranks.first:
        return
    if status["state"] == "stopped":
        place = f"{folder}: stopped by SIGTERM and saved at step {status['step']} of {status['steps']}"
        print(f"linscale: {place}; run the same command again to go on", file=sys.stderr)
    if json:
        print_json({"folder": str(folder), **status})
        return
    row = (
        str(folder),
        str(status["step"]),
        human(status["tokens"]),
        _or_dash(status["loss"]),
        duration(status["elapsed_s"]),
    )
    print_table("Trained", ("run", "steps", "tokens", "loss", "time"), [row])


def _train(run: RunConfig, folder: Path, ranks: Ranks) -> dict[str, Any]:
    if not ranks.first:
        with sigterm_noted() as stop:
            return train_run(folder, run, stop=stop, ranks=ranks)
    with ProgressBar() as bar, sigterm_noted() as stop:

        def show(status: dict[str, Any]) -> None:
            loss, speed = status.get("loss"), status.get("tokens_per_s")
            text = run.name + (f"  loss {loss:.3f}" if loss else "") + (f"  {human(speed)} tok/s" if speed else "")
            text += f"  {status['mfu']:.0%} MFU" if status["mfu"] else ""
            bar.update(text, status["step"], status["steps"], status["eta_s"])

        return train_run(folder, run, on_step=show, stop=stop, ranks=ranks)


def _or_dash(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"
