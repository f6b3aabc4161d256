"""Needle in a haystack: a fact in long filler text, at every length and depth of a grid (arXiv 2406.16690).

    easy       the text has the question and its answer together, and ends in the question: a pure lookup
    standard   the text has a statement of the fact alone

Both end in "Question: ... Answer:"; needles, keys and the order of the filler's documents come from the seed, the same
for every model and, of a cell, for every grid. The model goes on greedily for as many tokens as the whole statement
takes and 8 more, so that an answer in a whole sentence fits.

The paper does not say how it grades from 1 to 10. Here a key has three parts and the grade counts those that the answer
has, as whole words in the key's order: 1, 4, 7 or 10 (`facts.grade`). A judge model would be another unknown; the edit
distance to the answer gives credit for any text, and the grade of one that found nothing would not be 1. Parts keep
partial credit, and what found nothing has 1 but for luck. The accuracy of a cell is (grade - 1) / 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from linscale.config import UserError
from linscale.data.tokenizer import Tokenizer
from linscale.evaluate.axis import axis_text
from linscale.evaluate.facts import HIGHEST, LOWEST, Fact, draw_fact, grade
from linscale.evaluate.haystack import Filler, Haystack, Prompt, forked
from linscale.evaluate.heat_map import metrics_of, summary
from linscale.evaluate.memory import cache_obstacle
from linscale.evaluate.task import Result, vocabulary_obstacle
from linscale.generate.batch import continue_greedily
from linscale.models import LanguageModel

Mode = Literal["easy", "standard"]
MODES: tuple[Mode, ...] = get_args(Mode)
PROTOCOL = 1  # to be raised when the same model would get another value
ESSAYS = "paul_graham_essays"  # the set of the filler that the paper and others take
SEED = 0
SPARE_TOKENS = 8  # of an answer


@dataclass(frozen=True)
class Needle:
    """One needle a cell. Lengths in tokens, depths in percent; both ascend."""

    mode: Mode
    haystack: Haystack
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    seed: int = SEED

    def __post_init__(self) -> None:
        for name, values, least, most in (("lengths", self.lengths, 1, None), ("depths", self.depths, 0, 100)):
            if not values or list(values) != sorted(set(values)):
                raise UserError(f"{name} = {axis_text(values)}: expected one or more that ascend")
            if values[0] < least or (most is not None and values[-1] > most):
                bounds = f"{least} to {most}" if most else f"at least {least}"
                raise UserError(f"{name} = {axis_text(values)}: expected {bounds}")

    @property
    def name(self) -> str:
        return f"needle-{self.mode}"

    @property
    def metrics(self) -> Sequence[str]:
        return [*metrics_of(self.lengths), "depth_error", "filler_repeats"]

    def version(self, tokenizer: Tokenizer) -> str:
        grid = f"lengths{axis_text(self.lengths)}-depths{axis_text(self.depths)}"
        return f"{PROTOCOL}-{self.haystack.digest}-{tokenizer.fingerprint}-{grid}-seed{self.seed}"

    def obstacle(self, model: LanguageModel, tokenizer: Tokenizer) -> str | None:
        if obstacle := vocabulary_obstacle(model, tokenizer):
            return obstacle
        most, filler = 0, self.haystack.filler(tokenizer)
        for length in self.lengths:
            facts = [self.fact(length, depth) for depth in self.depths]
            needed = max(sum(len(filler.encode(text)) for text in self.texts(fact)) for fact in facts) + 2
            if length < needed:
                return f"length {length}: needle and question take {needed} tokens; set longer lengths"
            most = max(most, *(_budget(fact, filler) for fact in facts))
        return cache_obstacle(model, self.lengths[-1] + most)

    def fact(self, length: int, depth: float) -> Fact:
        """What a cell hides."""
        return draw_fact(f"{self.seed}-{length}-{depth:g}")

    def texts(self, fact: Fact) -> tuple[str, str]:
        """The needle, and what stands at the end of the prompt."""
        asked = f"Question: {fact.question} Answer:"
        needle = f" {asked} {fact.key}." if self.mode == "easy" else f" {fact.statement}"
        return needle, f"\n\n{asked}"

    def prompts(self, filler: Filler, length: int) -> list[Prompt]:
        """Those of every depth."""
        return [filler.prompt(length, depth, *self.texts(self.fact(length, depth))) for depth in self.depths]

    def run(self, model: LanguageModel, tokenizer: Tokenizer) -> list[Result]:
        """Accuracies as `heat_map` has them. depth_error: the farthest that a needle is from its depth, in percent of
        the filler; filler_repeats: how often the filler was gone through at the longest length, at most 1 if whole."""
        filler = self.haystack.filler(tokenizer)
        accuracy = np.zeros((len(self.lengths), len(self.depths)))
        error = most = 0.0
        for row, length in enumerate(self.lengths):
            prompts = self.prompts(filler, length)
            for column, answer in self._answers(model, filler, prompts, length):
                fact = self.fact(length, self.depths[column])
                accuracy[row, column] = (grade(fact, answer) - LOWEST) / (HIGHEST - LOWEST)
            for depth, prompt in zip(self.depths, prompts, strict=True):
                error = max(error, abs(100 * prompt.place / prompt.filler - depth))
                most = max(most, prompt.filler / len(filler.unit))
        others = [Result("depth_error", error, None, accuracy.size), Result("filler_repeats", most, None, 1)]
        return summary(self.lengths, accuracy) + others

    def _answers(
        self, model: LanguageModel, filler: Filler, prompts: Sequence[Prompt], length: int
    ) -> list[tuple[int, str]]:
        """Depths by their number, and what the model says there; a batch of depths at once."""
        tokenizer, found = filler.tokenizer, []
        budgets = [_budget(self.fact(length, depth), filler) for depth in self.depths]
        for numbers, state in forked(model, filler, prompts, length):
            rests = [prompts[number].rest for number in numbers]
            most = max(budgets[number] for number in numbers)
            made = continue_greedily(model, tokenizer, state, rests, max_tokens=most)
            for number, tokens in zip(numbers, made, strict=True):
                found.append((number, tokenizer.decode(tokens[: budgets[number]])))
        return found


def _budget(fact: Fact, filler: Filler) -> int:
    """Tokens of an answer."""
    return len(filler.encode(f" {fact.statement}")) + SPARE_TOKENS


def needle_tasks(
    modes: Sequence[Mode], haystack: Haystack, lengths: Sequence[int], depths: Sequence[float], seed: int = SEED
) -> list[Needle]:
    """Each mode on the same grid."""
    return [Needle(mode, haystack, tuple(lengths), tuple(depths), seed) for mode in modes]
