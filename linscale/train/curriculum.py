"""A curriculum: what is trained on gets twice as hard whenever the model has mastered it, and the rate follows.

    difficulty   `start` at first; doubled, up to the task's own, by a look that finds a loss below `threshold`
    rate         lr · (1 - slow · difficulty / full), and at full difficulty · the least 1 - exp(-loss) found so far

(Kausik, "Recurrent Transformers", 2025, and its code.) A look happens between two steps, at multiples of `look_every`;
what it found stands in curriculum.jsonl of the run folder, and the stage of a step is what the looks before it make of
it. So a run that is resumed goes on at the stage where it was.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from linscale.config import config
from linscale.distributed import Ranks
from linscale.run_folder import RecordWriter, latest_records

LOOKS = "curriculum.jsonl"


@config
class Curriculum:
    """How the difficulty of a generated task grows."""

    start: PositiveInt = 32
    "Difficulty of the first steps, in tokens of noise."
    threshold: PositiveFloat = 0.3
    "Validation loss, nats of a scored token, below which it doubles."
    look_every: PositiveInt = 100
    "Steps between two looks at the validation loss."
    sequences: PositiveInt = 512
    "Fresh sequences of a look, at the present difficulty."
    slow: Annotated[float, Field(ge=0, lt=1)] = 0.5
    "The learning rate is multiplied by 1 - slow · difficulty / full difficulty."
    follow_loss: bool = True
    "Whether, at full difficulty, it is multiplied by the least 1 - exp(-loss) of all looks there, too."
    stop_below: PositiveFloat | None = None
    "Validation loss at full difficulty below which training ends, saved and done, however many tokens are left."


@dataclass(frozen=True)
class Stage:
    """Where a curriculum stands."""

    difficulty: int
    follow: float = 1.0
    """What the losses at full difficulty multiply the rate by."""
    over: bool = False
    """Whether training is at its end."""


class Course:
    """The curriculum of a run in the folder `run`, up to a difficulty of `full`."""

    def __init__(self, curriculum: Curriculum, full: int, run: Path, ranks: Ranks) -> None:
        self.curriculum, self.full, self.run, self.ranks = curriculum, full, run, ranks

    def stage(self, step: int, loss: Callable[[int, int], float]) -> Stage:
        """The stage of the steps behind `step`. Where a look there is due and not recorded, `loss` gives what it finds
        in the model as it is, by (step, difficulty).

        All ranks call it.
        """
        found = self.ranks.lead(lambda: self._found(step))
        stage = Stage(min(self.curriculum.start, self.full))
        for look in range(self.curriculum.look_every, step + 1, self.curriculum.look_every):
            if look not in found:
                found[look] = self.ranks.share(loss(look, stage.difficulty))
                self._record(look, stage, found[look])
            stage = self.after(stage, found[look])
        return stage

    def after(self, stage: Stage, loss: float) -> Stage:
        """The stage behind a look that found `loss`."""
        if stage.difficulty == self.full:
            follow = min(stage.follow, 1 - math.exp(-loss)) if self.curriculum.follow_loss else 1.0
            stop = self.curriculum.stop_below
            return replace(stage, follow=follow, over=stage.over or (stop is not None and loss < stop))
        if not loss < self.curriculum.threshold:
            return stage
        return Stage(min(2 * stage.difficulty, self.full))

    def rate(self, stage: Stage) -> float:
        """What the learning rate is multiplied by."""
        return (1 - self.curriculum.slow * stage.difficulty / self.full) * stage.follow

    def steps(self, first: int, last: int) -> list[range]:
        """Steps `first` to `last` in runs between two looks."""
        every, bounds = self.curriculum.look_every, [first]
        bounds += range((first - 1) // every * every + every + 1, last + 1, every)
        return [range(at, min(end, last + 1)) for at, end in zip(bounds, [*bounds[1:], last + 1], strict=True)]

    def _found(self, step: int) -> dict[int, float]:
        """The losses of the looks up to `step`, as far as they are recorded."""
        records = latest_records(self.run / LOOKS, keys=("step",))
        return {record["step"]: record["loss"] for record in records if record["step"] <= step}

    def _record(self, look: int, stage: Stage, loss: float) -> None:
        if self.ranks.first:
            with contextlib.closing(RecordWriter(self.run / LOOKS)) as writer:
                writer.write({"step": look, "difficulty": stage.difficulty, "loss": loss, "rate": self.rate(stage)})
