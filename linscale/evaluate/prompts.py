"""Prompts that share documents, as tokens: a document, what is asked behind it, and choices of answers.

Document and question are cut into tokens apart, so that a document is cut into tokens once for all its questions, and
no question is lost where a document is too long. With bytes and byte-level BPE as GPT-2's these are the tokens of the
whole prompt, as no token spans the empty line between both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from linscale.data.tokenizer import Tokenizer
from linscale.evaluate.likelihood import encode_pair


@dataclass(frozen=True)
class Sample:
    """What one question asks of one document."""

    document: str
    ending: str
    """The prompt behind the document."""
    references: tuple[str, ...]
    choices: tuple[str, ...] = ()
    """Answers to choose from by their likelihood; none: the answer is generated."""
    per_character: bool = True
    """Whether log-likelihoods of choices are divided by their characters."""


class Prompt(NamedTuple):
    """What one sample asks, in tokens."""

    document: int
    """Its number among `Prompts.documents`."""
    ending: list[int]
    choices: list[list[int]]

    def behind(self, max_tokens: int) -> int:
        """Tokens that the model reads behind the document: all but the last of the longest choice, or as many as may
        be generated."""
        return len(self.ending) + (max(map(len, self.choices)) - 1 if self.choices else max_tokens)


@dataclass(frozen=True)
class Prompts:
    """Every distinct document, and the prompt of every sample in order."""

    documents: list[np.ndarray]
    prompts: list[Prompt]

    def behind(self, max_tokens: int) -> list[int]:
        """The most tokens that are read behind each document."""
        most = [0] * len(self.documents)
        for prompt in self.prompts:
            most[prompt.document] = max(most[prompt.document], prompt.behind(max_tokens))
        return most

    def cut(self, context: int, max_tokens: int) -> Prompts:
        """Documents cut to their last tokens, so that no prompt with its answer is longer than `context` tokens."""
        rooms = [context - behind for behind in self.behind(max_tokens)]
        pairs = zip(self.documents, rooms, strict=True)
        documents = [document[max(0, len(document) - room) :] for document, room in pairs]
        return Prompts(documents, self.prompts)


def encode(samples: Sequence[Sample], tokenizer: Tokenizer) -> Prompts:
    """The prompts of samples, uncut. White space in front of an answer is the answer's, as in `encode_pair`."""
    numbers: dict[str, int] = {}
    prompts = []
    for sample in samples:
        document = numbers.setdefault(sample.document, len(numbers))
        choices = [encode_pair(tokenizer, sample.ending, f" {choice}")[1] for choice in sample.choices]
        prompts.append(Prompt(document, tokenizer.encode(sample.ending), choices))
    return Prompts(tokenizer.encode_batch(list(numbers)), prompts)
