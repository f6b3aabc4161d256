"""Questions: records of zero-shot tasks with the prompts of lm-evaluation-harness 0.4.13 (its tasks/*.yaml).

A question has, of every choice, a context and what follows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Record: TypeAlias = Mapping[str, Any]
LETTERS = "ABCDE"


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


def _ask_letters(introduction: str, question: str, choices: Sequence[str], answer: int) -> Question:
    """Choices that the context lists, of which the letter is asked for."""
    letters = LETTERS[: len(choices)]
    listed = [f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)]
    return _ask(introduction + "\n".join([question.strip(), *listed, "Answer:"]), letters, answer)


def commonsense_qa(record: Record) -> Question:
    choices, answer = record["choices"]["text"], LETTERS.index(record["answerKey"])
    return _ask_letters("Question: ", record["question"], choices, answer)


def mmlu(record: Record) -> Question:
    subject = record["subject"].replace("_", " ")
    introduction = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    return _ask_letters(introduction, record["question"], record["choices"], record["answer"])


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
    "commonsense_qa": Form("commonsense_qa_dev", commonsense_qa, ("acc",)),
    "mmlu": Form("mmlu_test", mmlu, ("acc",)),
}
"""By the harness's names of tasks."""
CSR = {
    "boolq": "acc",
    "piqa": "acc",
    "hellaswag": "acc_norm",
    "winogrande": "acc",
    "arc_easy": "acc",
    "arc_challenge": "acc_norm",
    "openbookqa": "acc_norm",
}
"""The seven tasks whose mean is CSR, and the metric of each (arXiv 2406.16690)."""
