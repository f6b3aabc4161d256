"""linscale train: one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from linscale.cli.output import Json, duration, print_json, print_table, stderr_console
from linscale.config import human, load_toml
from linscale.train.config import RunConfig
from linscale.train.trainer import train as train_run


def train(config: Annotated[Path, tyro.conf.Positional], *, out: Path | None = None, json: Json = False) -> None:
    """Train one model from a TOML file, or go on with it from its newest checkpoint.

    Args:
        config: The run: model, data and recipe; configs/train/small.toml is an example.
        out: The run folder. By default runs/<name>.
    """
    run: RunConfig = load_toml(config, RunConfig)
    folder = out or Path("runs") / run.name
    columns = (
        TextColumn("{task.fields[text]}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr_console()) as bars:
        bar = bars.add_task("train", total=run.train.steps, text=run.name)

        def show(status: dict[str, Any]) -> None:
            loss, speed = status.get("loss"), status.get("tokens_per_s")
            text = run.name + (f"  loss {loss:.3f}" if loss else "") + (f"  {human(speed)} tok/s" if speed else "")
            bars.update(bar, completed=status["step"], text=text)

        status = train_run(folder, run, on_step=show)
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


def _or_dash(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"
