"""Passkey: five random digits in sentences that repeat, at a given length (arXiv 2305.16300): no files, any tokenizer.

    eos  The grass is green. ...  The pass key is 54321. Remember it. 54321 is the pass key.  The sky is blue. ...
    What is the pass key? The pass key is

The length is the axis on which a state of fixed size falls behind a memory that grows. Unlike the needle's, this filler
is a text that a model can learn to ignore.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from linscale.config import UserError
from linscale.data.tokenizer import Tokenizer
from linscale.evaluate.haystack import Haystack, forked
from linscale.evaluate.likelihood import score_from
from linscale.evaluate.memory import cache_obstacle
from linscale.evaluate.recall import EXAMPLES
from linscale.evaluate.task import Result, mean_result, vocabulary_obstacle
from linscale.generate.batch import read_documents
from linscale.models import LanguageModel

LENGTHS = (256, 1024, 4096)
PROTOCOL = 1  # to be raised when the same model would get another value
HAYSTACK = Haystack(" The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.")
NEEDLE = " The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "\n\nWhat is the pass key? The pass key is"
LOWEST, HIGHEST = 10_000, 99_999


@dataclass(frozen=True)
class Passkey:
    """`examples` prompts of `length` tokens, each with a key and a depth of its own from the seed."""

    length: int
    examples: int = EXAMPLES
    seed: int = 0

    @property
    def name(self) -> str:
        return f"recall-passkey-{self.length}"

    @property
    def metrics(self) -> Sequence[str]:
        return ("accuracy", "loss")

    def version(self, tokenizer: Tokenizer) -> str:
        return f"{PROTOCOL}-{tokenizer.fingerprint}-examples{self.examples}-seed{self.seed}"

    def obstacle(self, model: LanguageModel, tokenizer: Tokenizer) -> str | None:
        needed = 2 + max(
            len(tokenizer.encode(NEEDLE.format(key=key))) + len(tokenizer.encode(QUESTION)) for key, _ in self.draws()
        )
        if self.length < needed:
            return f"length {self.length}: key and question take {needed} tokens; set longer lengths"
        return vocabulary_obstacle(model, tokenizer) or cache_obstacle(model, self.length)

    def draws(self) -> list[tuple[str, float]]:
        """Keys, and their depths in percent."""
        source = random.Random(f"passkey-{self.seed}-{self.length}")
        return [(str(source.randint(LOWEST, HIGHEST)), 100 * source.random()) for _ in range(self.examples)]

    def run(self, model: LanguageModel, tokenizer: Tokenizer) -> list[Result]:
        """accuracy: the share of keys that the greedy continuation begins with; loss: nats of a whole key, whatever its
        tokens: 11.4 is chance. Over examples."""
        filler, draws = HAYSTACK.filler(tokenizer), self.draws()
        prompts = [filler.prompt(self.length, depth, NEEDLE.format(key=key), QUESTION) for key, depth in draws]
        keys = [tokenizer.encode(f" {key}") for key, _ in draws]
        nats, right = torch.zeros(self.examples), torch.zeros(self.examples)
        for numbers, state in forked(model, filler, prompts, self.length):
            rests = [prompts[number].rest for number in numbers]
            _, state = read_documents(model, [rest[:-1] for rest in rests], state)
            lasts = [int(rest[-1]) for rest in rests]
            found = score_from(model, state, lasts, [keys[number] for number in numbers])
            for number, likelihood in zip(numbers, found, strict=True):
                nats[number], right[number] = -likelihood.nats, likelihood.greedy
        return [mean_result("accuracy", right, self.examples), mean_result("loss", nats, self.examples)]


def passkey_tasks(lengths: Sequence[int] = LENGTHS, examples: int = EXAMPLES) -> list[Passkey]:
    """One for each length. Raises UserError for one of no tokens."""
    for length in lengths:
        if length < 1:
            raise UserError(f"passkey_lengths = {length}: expected at least 1")
    return [Passkey(length, examples) for length in lengths]
