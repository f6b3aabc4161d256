"""Zero-shot tasks on local files: a choice is scored as log p(continuation | context).

The model's answer is the choice with most (acc), or with most per character of the choice (acc_norm): the metrics of
lm-evaluation-harness 0.4.13.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from linscale.data.sets import SETS, read_set
from linscale.data.tokenizer import Tokenizer
from linscale.evaluate.likelihood import Likelihood, Pair, encode_pairs, score
from linscale.evaluate.questions import FORMS, Question
from linscale.evaluate.task import Result, mean_result, vocabulary_obstacle
from linscale.models import LanguageModel

PROTOCOL = 1  # to be raised when the same model would get another value


def choice_metrics(questions: Sequence[Question], answers: Sequence[Sequence[Likelihood]]) -> dict[str, list[float]]:
    """acc and acc_norm of every question; the first of equal choices is taken."""
    right: dict[str, list[float]] = {"acc": [], "acc_norm": []}
    for question, choices in zip(questions, answers, strict=True):
        nats = [choice.nats for choice in choices]
        per_character = [total / length for total, length in zip(nats, question.lengths, strict=True)]
        right["acc"].append(float(nats.index(max(nats)) == question.answer))
        right["acc_norm"].append(float(per_character.index(max(per_character)) == question.answer))
    return right


def word_metrics(answers: Sequence[Sequence[Likelihood]]) -> dict[str, list[float]]:
    """Of every last word whether it is the greedy continuation, and its nats, whose mean is log of the perplexity."""
    return {"acc": [float(word.greedy) for (word,) in answers], "loss": [-word.nats for (word,) in answers]}


@dataclass(frozen=True)
class MultipleChoice:
    """One task of FORMS on a file of records; `limit` takes the first ones alone."""

    name: str
    path: Path
    limit: int | None = None
    _pairs: dict[str, list[Pair]] = field(default_factory=dict, compare=False, repr=False)
    "By the fingerprint of the tokenizer: one study has one, and a thousand checkpoints."

    @property
    def metrics(self) -> Sequence[str]:
        return FORMS[self.name].metrics

    def version(self, tokenizer: Tokenizer) -> str:
        first = "" if self.limit is None else f"-first{self.limit}"
        return f"{PROTOCOL}-{SETS[FORMS[self.name].file].sha256[:16]}-{tokenizer.fingerprint}{first}"

    def obstacle(self, model: LanguageModel, tokenizer: Tokenizer) -> str | None:
        return vocabulary_obstacle(model, tokenizer)

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """What is asked. Raises UserError when the file's content has changed."""
        return read_set(self.path)[: self.limit]

    @cached_property
    def questions(self) -> list[Question]:
        """Of every record."""
        return [FORMS[self.name].question(record) for record in self.records]

    def answers(self, model: LanguageModel, tokenizer: Tokenizer) -> list[list[Likelihood]]:
        """The likelihood of every choice of every question."""
        if tokenizer.fingerprint not in self._pairs:
            self._pairs.clear()
            texts = [pair for question in self.questions for pair in question.pairs]
            self._pairs[tokenizer.fingerprint] = encode_pairs(tokenizer, texts)
        found = iter(score(model, self._pairs[tokenizer.fingerprint]))
        return [[next(found) for _ in question.pairs] for question in self.questions]

    def run(self, model: LanguageModel, tokenizer: Tokenizer) -> list[Result]:
        """Means over questions, with standard errors. loss: nats of the last word."""
        answers = self.answers(model, tokenizer)
        metrics = choice_metrics(self.questions, answers) if "loss" not in self.metrics else word_metrics(answers)
        return [mean_result(metric, torch.tensor(metrics[metric]), len(answers)) for metric in self.metrics]
