"""Zero-shot common sense: the prompts and metrics of lm-evaluation-harness 0.4.13 (its tasks/*.yaml), on local files.

A record becomes a question: of every choice a context and what follows it, scored as log p(continuation | context).
The model's answer is the choice with most (acc), or with most per character of the choice (acc_norm).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch

from linscale.data.tokenizer import Tokenizer
from linscale.evaluate.likelihood import Likelihood, encode_pair, score
from linscale.evaluate.sets import CHECKSUMS, find_set, read_set
from linscale.evaluate.task import Result, mean_result, vocabulary_obstacle
from linscale.models import LanguageModel

PROTOCOL = 1  # to be raised when the same model would get another value
Record: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """What one record asks a model."""

    pairs: tuple[tuple[str, str], ...]
    """Context and continuation of every choice."""
    lengths: tuple[int, ...]
    """Characters of every choice, for acc_norm."""
    answer: int


def _ask(context: str, choices: Sequence[str], answer: int) -> Question:
    """One context, and choices behind a space that does not count."""
    return Question(tuple((context, f" {choice}") for choice in choices), tuple(map(len, choices)), answer)


def boolq(record: Record) -> Question:
    context = f"{record['passage']}\nQuestion: {record['question']}?\nAnswer:"
    return _ask(context, ("no", "yes"), int(record["answer"]))


def piqa(record: Record) -> Question:
    return _ask(f"Question: {record['goal']}\nAnswer:", (record["sol1"], record["sol2"]), int(record["label"]))


def hellaswag(record: Record) -> Question:
    context = f"{record['activity_label']}: {record['ctx_a']} {record['ctx_b'].capitalize()}"
    return _ask(_without_brackets(context), [*map(_without_brackets, record["endings"])], int(record["label"]))


def _without_brackets(text: str) -> str:
    """Text without what WikiHow's pages left in it, as the harness takes it out: one pass, in this order."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def winogrande(record: Record) -> Question:
    """Partial evaluation: what stands behind the blank is scored, after the sentence with each option in the blank."""
    before, after = record["sentence"].split("_", 1)
    options = (record["option1"], record["option2"])
    pairs = tuple((before + option, f" {after.strip()}") for option in options)
    return Question(pairs, tuple(len(before + option) for option in options), int(record["answer"]) - 1)


def arc(record: Record) -> Question:
    return _ask(f"Question: {record['question']}\nAnswer:", *_labelled(record))


def openbookqa(record: Record) -> Question:
    return _ask(record["question_stem"], *_labelled(record))


def _labelled(record: Record) -> tuple[list[str], int]:
    """Choices with labels, and the place of the answer's."""
    choices = record["choices"]
    return choices["text"], choices["label"].index(record["answerKey"].strip())


def sciq(record: Record) -> Question:
    context = f"{record['support'].lstrip()}\nQuestion: {record['question']}\nAnswer:"
    wrong = [record[f"distractor{number}"] for number in (1, 2, 3)]
    return _ask(context, [*wrong, record["correct_answer"]], 3)


def lambada(record: Record) -> Question:
    """No choice: the last word of a passage, behind the rest."""
    before, word = record["text"].rsplit(" ", 1)
    return Question(((before, f" {word}"),), (len(word),), 0)


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
class Form:
    """What a task of the harness is made of."""

    file: str
    question: Callable[[Record], Question]
    metrics: tuple[str, ...] = ("acc", "acc_norm")


FORMS = {
    "boolq": Form("boolq_dev", boolq, ("acc",)),
    "piqa": Form("piqa_valid", piqa),
    "hellaswag": Form("hellaswag_val", hellaswag),
    "winogrande": Form("winogrande_xl_dev", winogrande, ("acc",)),
    "arc_easy": Form("arc_easy_test", arc),
    "arc_challenge": Form("arc_challenge_test", arc),
    "openbookqa": Form("openbookqa_test", openbookqa),
    "lambada_openai": Form("lambada_openai_test", lambada, ("acc", "loss")),
    "sciq": Form("sciq_validation", sciq),
}
"""By the harness's names of tasks; the first seven are CSR's."""


@dataclass(frozen=True)
class MultipleChoice:
    """One task of FORMS on a file of records; `limit` takes the first ones alone."""

    name: str
    path: Path
    limit: int | None = None

    @property
    def metrics(self) -> Sequence[str]:
        return FORMS[self.name].metrics

    def version(self, tokenizer: Tokenizer) -> str:
        first = "" if self.limit is None else f"-first{self.limit}"
        return f"{PROTOCOL}-{CHECKSUMS[FORMS[self.name].file][:16]}-{tokenizer.fingerprint}{first}"

    def obstacle(self, model: LanguageModel, tokenizer: Tokenizer) -> str | None:
        return vocabulary_obstacle(model, tokenizer)

    @cached_property
    def questions(self) -> list[Question]:
        """The questions of the file. Raises UserError when its content has changed."""
        return [FORMS[self.name].question(record) for record in read_set(self.path)[: self.limit]]

    def answers(self, model: LanguageModel, tokenizer: Tokenizer) -> list[list[Likelihood]]:
        """The likelihood of every choice of every question."""
        pairs = [encode_pair(tokenizer, *pair) for question in self.questions for pair in question.pairs]
        found = iter(score(model, pairs))
        return [[next(found) for _ in question.pairs] for question in self.questions]

    def run(self, model: LanguageModel, tokenizer: Tokenizer) -> list[Result]:
        """Means over questions, with standard errors. loss: nats of the last word."""
        answers = self.answers(model, tokenizer)
        metrics = choice_metrics(self.questions, answers) if "loss" not in self.metrics else word_metrics(answers)
        return [mean_result(metric, torch.tensor(metrics[metric]), len(answers)) for metric in self.metrics]


def csr_tasks(folder: Path, limit: int | None = None) -> list[MultipleChoice]:
    """Every task, on the files of a folder. Raises UserError where one is missing."""
    return [MultipleChoice(name, find_set(folder, form.file), limit) for name, form in FORMS.items()]
