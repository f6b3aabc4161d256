"""Long prompts that hide something: filler text with a needle at a depth, and a question behind it.

    eos  filler up to a sentence's end  NEEDLE  the rest of the filler  QUESTION        exactly `length` tokens

All prompts of one length begin with the same filler. It is read once, a state is kept at every needle's place, and what
is behind each place is read from a copy of it.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from linscale.config import UserError
from linscale.data.documents import read_documents
from linscale.data.inputs import find_sources
from linscale.data.tokenizer import Tokenizer
from linscale.evaluate.task import PIECE, device_of
from linscale.generate.states import join, most_states
from linscale.models import LanguageModel, State

FARTHEST = 0.05  # of the filler from the depth to a sentence's end; else a word's end is taken
SENTENCE_END = re.compile(r"[.!?][\"')\]”’]*\s*$")


class Prompt(NamedTuple):
    place: int
    """Tokens of filler before the needle."""
    rest: np.ndarray
    """Tokens from the needle on: it, the rest of the filler, the question."""
    filler: int
    """Tokens of filler in all."""


class Haystack:
    """Filler text, repeated without end."""

    def __init__(self, text: str) -> None:
        """Raises UserError when no sentence ends in the text."""
        self.text = text
        if not re.search(r"[.!?]\s", self.text.strip() + "\n"):
            raise UserError(
                "filler: no sentence ends in it (a . ! or ? before white space); needles stand between some"
            )
        self._last: Filler | None = None

    @cached_property
    def digest(self) -> str:
        """Of the text, the order of its documents included: asked for at every checkpoint."""
        return hashlib.blake2b(self.text.encode(), digest_size=8).hexdigest()

    def filler(self, tokenizer: Tokenizer) -> Filler:
        """The text in tokens; kept until another tokenizer is asked for."""
        if self._last is None or self._last.tokenizer.fingerprint != tokenizer.fingerprint:
            self._last = Filler(self.text, tokenizer)
        return self._last


def read_haystack(path: Path, seed: int) -> Haystack:
    """A haystack of a file's documents, a blank line before each, in an order from the seed. Takes what
    `linscale data prepare` does, such as builtin:tinyshakespeare, and raises its errors."""
    sources, _ = find_sources([str(path)])
    documents = [document.text for source in sources for document in read_documents(source)]
    random.Random(f"documents-{seed}").shuffle(documents)
    return Haystack("\n\n".join(["", *documents]))


class Filler:
    """A haystack's text in tokens of one tokenizer: `unit`, over and over."""

    def __init__(self, text: str, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.unit = np.array(tokenizer.encode(text), dtype=np.int64)
        self._encoded: dict[str, list[int]] = {}
        self._pairs: dict[tuple[int, int], bool] = {}
        texts = {token: tokenizer.decode([token]) for token in np.unique(self.unit).tolist()}
        closed = {token: text[-1].isspace() for token, text in texts.items() if SENTENCE_END.search(text)}
        places = np.flatnonzero(np.isin(self.unit, list(closed))) + 1
        ends = [place for place in places.tolist() if closed[int(self.unit[place - 1])] or self._before_space(place)]
        self.ends = np.array(ends, dtype=np.int64)  # places where sentences end, up to len(unit)
        if not len(self.ends):
            raise UserError(f"filler: no sentence ends in the tokens of {tokenizer.name}; set another filler")

    def tokens(self, first: int, last: int) -> np.ndarray:
        """Tokens `first` to `last`, exclusive, of the endless filler."""
        return np.take(self.unit, np.arange(first, last), mode="wrap")

    def encode(self, text: str) -> list[int]:
        """Tokens of a text in the filler or behind it; remembered, as every checkpoint has the same ones."""
        if text not in self._encoded:
            self._encoded[text] = self.tokenizer.encode(text)
        return self._encoded[text]

    def prompt(self, length: int, depth: float, needle: str, question: str) -> Prompt:
        """A prompt of `length` tokens, the end-of-text token before it included, with the needle at the sentence's
        end nearest to `depth` percent of the filler, or a word's end where none is within 5 percent, as in short
        prompts; the filler's start counts as one. Raises ValueError where it does not fit."""
        needle_tokens, question_tokens = self.encode(needle), self.encode(question)
        count = length - 1 - len(needle_tokens) - len(question_tokens)
        if count < 1:
            raise ValueError(f"{length} tokens cannot hold a needle and a question of {length - count}")
        place = self._place(count, count * depth / 100)
        rest = (np.array(needle_tokens), self.tokens(place, count), np.array(question_tokens))
        return Prompt(place, np.concatenate(rest).astype(np.int64), count)

    def whole(self, prompt: Prompt) -> list[int]:
        """All tokens of a prompt."""
        return [self.tokenizer.bos_id, *self.tokens(0, prompt.place).tolist(), *prompt.rest.tolist()]

    def _place(self, count: int, wanted: float) -> int:
        repeat = int(wanted) // len(self.unit)
        near = np.add.outer(np.arange(repeat - 1, repeat + 2) * len(self.unit), self.ends).ravel()
        places = np.concatenate([[0], near[(near > 0) & (near <= count)]])
        place = int(places[np.abs(places - wanted).argmin()])
        if abs(place - wanted) <= FARTHEST * count:
            return place
        words = (word for word in range(1, count + 1) if self._before_space(word))
        return min((place, *words), key=lambda one: abs(one - wanted))

    def _before_space(self, place: int) -> bool:
        """Whether the token behind a place begins with white space; read beside the one before it, as it may lose its
        space alone."""
        pair = (int(self.unit[(place - 1) % len(self.unit)]), int(self.unit[place % len(self.unit)]))
        if pair not in self._pairs:
            text, both = self.tokenizer.decode(pair[:1]), self.tokenizer.decode(pair)
            self._pairs[pair] = both[len(text) : len(text) + 1].isspace()
        return self._pairs[pair]


def forked(
    model: LanguageModel, filler: Filler, prompts: Sequence[Prompt], length: int, batch_tokens: int = PIECE
) -> Iterator[tuple[list[int], State]]:
    """The prompts' numbers, those with the longest rest first, as many as states of `length` tokens are held at once;
    and the states behind their fillers' first parts, which are read once, in pieces. The caller has set no_grad."""
    device, most = device_of(model), most_states(model.config, length)
    numbers: list[int] = []
    states: list[State] = []
    state, read = None, 0  # tokens, the end of text before the filler included
    for number in sorted(range(len(prompts)), key=lambda number: prompts[number].place):
        while read <= prompts[number].place:
            end = min(prompts[number].place + 1, read + batch_tokens)
            tokens = filler.tokens(read - 1, end - 1)
            if read == 0:
                tokens[0] = filler.tokenizer.bos_id
            _, state = model.read(torch.from_numpy(tokens)[None].to(device), state)
            read = end
        assert state is not None
        numbers.append(number)
        states.append(state)
        if len(numbers) == most:
            yield numbers, join(states)
            numbers, states = [], []
    if numbers:
        yield numbers, join(states)
