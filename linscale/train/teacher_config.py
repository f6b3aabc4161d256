"""What a run learns from a teacher, beside or instead of its text."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from linscale.config import config


@config
class TeacherConfig:
    """A frozen model, and what of it the loss compares with."""

    folder: Annotated[str, pydantic.Field(min_length=1)]
    """Its run folder (the newest checkpoint) or checkpoint; `linscale import` makes one of a Hugging Face folder. Its
    tokenizer is that of the data."""
    loss: Literal["attention", "logits"]
    """attention: the squared error of every mixer given what enters the teacher's, in units of the mean square of what
    the teacher's gives; mean over layers. logits: the divergence KL(teacher ‖ model) of every next token, in nats."""
    compare: Literal["added", "attended"] = "added"
    """attention: what a mixer adds to the stream, or what its o_proj reads."""
    text_weight: Annotated[float, pydantic.Field(ge=0.0)] = 0.0
    """logits: this times the cross-entropy of the text is added."""

    @pydantic.model_validator(mode="after")
    def _fits(self) -> TeacherConfig:
        if self.loss == "attention" and self.text_weight:
            raise ValueError(f"text_weight = {self.text_weight}: layers are compared one by one; expected 0")
        if self.loss == "logits" and self.compare != "added":
            raise ValueError(f"compare = {self.compare!r}: is for loss = 'attention'; leave it out")
        return self
