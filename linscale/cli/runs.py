"""linscale runs: what is running, done and failed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from linscale.cli.output import Json, print_json, print_table
from linscale.config import clock, human

if TYPE_CHECKING:
    from linscale.study.results import RunState


def runs(folder: Annotated[Path, tyro.conf.Positional] = Path("runs"), *, json: Json = False) -> None:
    """Show every run in a folder of runs or of studies: those that are running, then the others, the latest first.

    A run whose process was killed counts as stopped; the command that began it goes on with it.

    Args:
        folder: Where the runs are.
    """
    from linscale.study.results import read_states

    states = read_states(folder)
    if json:
        print_json([asdict(state) for state in states])
        return
    columns = ("run", "state", "model", "step", "loss", "validation", "skipped", "tokens/s", "MFU", "ETA")
    print_table(str(folder), columns, [_row(state, folder) for state in states], left=3)
    for state in states:
        if state.error:
            print(f"{state.folder}: {state.error}")


def _row(state: RunState, root: Path) -> tuple[str, ...]:
    place = Path(state.folder).relative_to(root)
    return (
        state.run if place == Path() else str(place),
        state.state,
        f"{state.arch} {human(state.params)}",
        f"{state.step}/{state.steps or '?'}",
        "-" if state.loss is None else f"{state.loss:.3f}",
        "-" if state.validation_loss is None else f"{state.validation_loss:.3f}",
        str(state.skipped),
        "-" if state.tokens_per_s is None else human(state.tokens_per_s),
        "-" if state.mfu is None else f"{state.mfu:.0%}",
        "-" if state.eta_s is None else clock(state.eta_s),
    )
