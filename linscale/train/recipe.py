"""How a softmax transformer becomes a linearized one: what its layers turn into, and the stages of training.

    [linear]      what stands in the place of softmax attention
    [train]       what the stages share, fields of the `train` of any run
    [[stages]]    one run each, which begins with the weights of the one before

A recipe's tokens are those of all its stages together: recipes are compared at equal tokens by one number.
"""

from __future__ import annotations

import dataclasses
from importlib import resources
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic

from linscale.config import UserError, config, load_toml, parse, to_dict
from linscale.models.linear_mixer import LinearMixer
from linscale.train.config import Name, Natural, Positive, TrainConfig
from linscale.train.teacher_config import TeacherConfig

NAMES = ("supra", "t2r", "distill")
"""The recipes that come with linscale."""
OWN = ("tokens", "warmup_tokens", "start", "teacher")
"""Fields of `train` that follow from a recipe."""


@config
class StageConfig:
    """A stage: one run of the trainer."""

    name: Name
    """Name of the stage, and of its folder."""
    loss: Literal["text", "attention", "logits"] = "text"
    """text: cross-entropy. attention, logits: how far from the frozen teacher, see `train.teacher.loss`."""
    share: Annotated[float, pydantic.Field(gt=0.0)] = 1.0
    """Of the recipe's tokens, in proportion to those of the other stages."""
    warmup: Annotated[float, pydantic.Field(ge=0.0, lt=1.0)] = 0.02
    """The part of the stage over which the learning rate rises."""
    compare: Literal["added", "attended"] = "added"
    """Of `train.teacher`."""
    text_weight: Annotated[float, pydantic.Field(ge=0.0)] = 0.0
    """Of `train.teacher`."""
    train: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of `train` that are the stage's own."""


@config
class Recipe:
    """What `linscale linearize` does to a teacher."""

    linear: LinearMixer
    """Linear attention in the place of softmax."""
    softmax_every: Natural = 0
    """A hybrid: m > 0 keeps softmax attention in layers m, 2m, 3m, ..."""
    softmax_layers: tuple[Natural, ...] = ()
    """Layers that keep it, counted from 0, beside those."""
    tokens: Positive
    """Tokens of all stages together."""
    data: str | None = None
    """Folder made by `linscale data prepare` with the teacher's tokenizer."""
    seed: Natural = 0
    """Seed of the new weights and of the order of the data; each stage has an order of its own."""
    train: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of `train` in all stages."""
    stages: Annotated[tuple[StageConfig, ...], pydantic.Field(min_length=1)]
    """In their order."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages = {names}: expected names that differ")
        stages = ((f"stage {each.name!r}: train", each.train) for each in self.stages)
        for table, fields in (("train", self.train), *stages):
            if own := [field for field in OWN if field in fields]:
                raise ValueError(f"{table}.{own[0]} = {fields[own[0]]!r}: follows from tokens, share, warmup and loss")
        return self

    def kept(self, n_layers: int) -> tuple[int, ...]:
        """The layers of a model that stay softmax attention, counted from 0."""
        every = range(self.softmax_every - 1, n_layers, self.softmax_every) if self.softmax_every else ()
        return tuple(sorted({*every, *self.softmax_layers}))

    def stage_config(self, number: int, start: Path, teacher: Path) -> TrainConfig:
        """`train` of a stage, which begins with the checkpoint of `start`. Raises UserError for bad fields."""
        stage = self.stages[number]
        values = {"seed": self.seed + number, **self.train, **stage.train, "start": str(start)}
        batch = values.get("batch_tokens")
        if not isinstance(batch, int) or batch < 1:
            raise UserError(f"train.batch_tokens = {batch!r}: expected the tokens of a step, a whole number above 0")
        values["tokens"] = tokens = self._ends()[number + 1] // batch * batch - self._ends()[number] // batch * batch
        if tokens < batch:
            raise UserError(
                f"tokens = {self.tokens}: stage {stage.name!r}, {stage.share} of them in proportion, gets less than "
                f"one step of train.batch_tokens = {batch}; give the recipe more tokens"
            )
        values["warmup_tokens"] = int(stage.warmup * tokens)
        if stage.loss != "text":
            told = {name: getattr(stage, name) for name in ("loss", "compare", "text_weight")}
            checked = parse(TeacherConfig, {"folder": str(teacher), **told}, source=f"stage {stage.name!r}")
            values["teacher"] = to_dict(checked)
        elif stage.compare != "added" or stage.text_weight:
            raise UserError(f"stage {stage.name!r}: compare and text_weight are for a loss with a teacher, not 'text'")
        found: TrainConfig = parse(TrainConfig, values, source=f"stage {stage.name!r}: train")
        return found

    def _ends(self) -> list[int]:
        """Tokens before each stage, and behind the last."""
        shares = [0.0, *accumulate(stage.share for stage in self.stages)]
        return [round(self.tokens * share / shares[-1]) for share in shares]


def load_recipe(name: str) -> Recipe:
    """A recipe of NAMES, or of a TOML file. Raises UserError where it is neither, or not a recipe."""
    if name not in NAMES:
        if not Path(name).is_file():
            raise UserError(f"recipe = {name!r}: no such file; expected one of {', '.join(NAMES)}, or a TOML file")
        found: Recipe = load_toml(name, Recipe)
        return found
    with resources.as_file(resources.files("linscale.train") / "recipes" / f"{name}.toml") as path:
        own: Recipe = load_toml(path, Recipe)
        return own
