"""What a run makes small: the cross-entropy of its text, or how far a model is from its teacher.

    Text        CE of every next token
    Attention   1/L Σ_l |mixer_l(x_l) - mixer*_l(x_l)|² / s_l        x_l is what enters the teacher's mixer l
    Logits      KL(teacher ‖ model) + w CE

Each is a loss of every token, (B, T): a step takes the mean over its batch, whatever passes and ranks it is cut into.
s_l is the mean square of the teacher's outputs over the batch of step 1: an error of 1 is that of giving nothing, in
every layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from linscale.distributed import Ranks
from linscale.evaluate.task import autocast
from linscale.models import LanguageModel
from linscale.ops.distillation import Teacher, linear_divergence
from linscale.train.config import RunConfig
from linscale.train.origins import find_origin
from linscale.train.parallel import build_teacher
from linscale.train.teacher import observe, read
from linscale.train.teacher_config import TeacherConfig


class Texts(NamedTuple):
    """A micro-batch, or this rank's piece of one, on its device."""

    tokens: Tensor
    """(B, T)"""
    targets: Tensor
    """(B, T)"""
    cu_seqlens: Tensor | None = None


class Text:
    """Cross-entropy."""

    def loss(self, model: LanguageModel, texts: Texts) -> Tensor:
        """(B, T), nats."""
        output = model(texts.tokens, targets=texts.targets, cu_seqlens=texts.cu_seqlens)
        assert output.loss is not None
        return output.loss


class Attention:
    """Every mixer against the teacher's, with the teacher's inputs. Nothing is differentiated but the mixers."""

    def __init__(self, config: TeacherConfig, teacher: LanguageModel) -> None:
        self.teacher, self.before = teacher, config.compare == "attended"
        self.scale = torch.ones(len(teacher.blocks), device=teacher.embedding.weight.device)

    def prepare(self, batches: Iterable[Texts], precision: str, ranks: Ranks) -> None:
        """Take the scales s_l from the passes of a step."""
        total, count = torch.zeros_like(self.scale), 0
        for texts in batches:
            with autocast(precision, texts.tokens.device):
                seen = observe(self.teacher, texts.tokens, texts.cu_seqlens, before=self.before)
            total += torch.stack([left.float().square().mean() for left in seen.left])
            count += 1
        self.scale = ranks.sum(total) / (count * ranks.size)

    def errors(self, model: LanguageModel, texts: Texts) -> list[Tensor]:
        """Of every layer: (B, T) float32."""
        seen = observe(self.teacher, texts.tokens, texts.cu_seqlens, before=self.before)
        made = model.mix(seen.entered, texts.tokens, texts.cu_seqlens, before=self.before)
        pairs = zip(made, seen.left, self.scale.clamp(min=torch.finfo(torch.float32).tiny), strict=True)
        return [(own.float() - given.float()).square().mean(-1) / scale for own, given, scale in pairs]

    def loss(self, model: LanguageModel, texts: Texts) -> Tensor:
        """(B, T): the mean of `errors`."""
        return torch.stack(self.errors(model, texts)).mean(0)

    def measures(self, model: LanguageModel, texts: Texts) -> Tensor:
        """(B, T, 1 + L): the loss and the layers' errors."""
        errors = torch.stack(self.errors(model, texts), -1)
        return torch.cat([errors.mean(-1, keepdim=True), errors], -1)

    @property
    def metrics(self) -> list[str]:
        """Names of `measures`."""
        return ["attention_error", *(f"attention_error_{layer}" for layer in range(len(self.scale)))]


class Logits:
    """The divergence from the teacher's predictions."""

    metrics = ("divergence",)

    def __init__(self, config: TeacherConfig, teacher: LanguageModel) -> None:
        self.teacher, self.text_weight = teacher, config.text_weight

    def loss(self, model: LanguageModel, texts: Texts) -> Tensor:
        """(B, T), nats."""
        return self._divergence(model, texts, self.text_weight)

    def measures(self, model: LanguageModel, texts: Texts) -> Tensor:
        """(B, T, 1): the divergence alone."""
        return self._divergence(model, texts, 0.0)[..., None]

    def _divergence(self, model: LanguageModel, texts: Texts, share: float) -> Tensor:
        given = Teacher(*read(self.teacher, texts.tokens, texts.cu_seqlens))
        loss = partial(linear_divergence, teacher=given, targets=texts.targets, text_weight=share)
        return model.read_into(loss, texts.tokens, texts.cu_seqlens)


Objective = Text | Attention | Logits


def open_objective(config: RunConfig, ranks: Ranks, settings: Mapping[str, Any]) -> Objective:
    """That of a run, with its teacher on the run's device; `settings` are those of config.json."""
    taught = config.train.teacher
    if taught is None:
        return Text()
    origin = find_origin(taught.folder, "train.teacher.folder")
    teacher = build_teacher(origin.path, config.train, ranks, settings["device"], settings["precision"])
    return (Attention if taught.loss == "attention" else Logits)(taught, teacher)
