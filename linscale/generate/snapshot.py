"""A snapshot: all that it takes to go on with a text, as a value. What is saved, loaded and forked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from linscale.models import State

LAST = 64  # tokens that every snapshot keeps, for text that begins in the middle of a character


class Snapshot(NamedTuple):
    """A text as a model remembers it. Nothing in it is ever changed: going on makes new tensors."""

    state: State
    """Of one sequence: position (1,)."""
    logits: Tensor | None
    """(V,) behind the last token that `state` has read; None where `unread` has tokens, which give them."""
    last: tuple[int, ...]
    """The last tokens of the text, at most LAST, those of `unread` included."""
    unread: tuple[int, ...] = ()
    """Tokens of the text that `state` has not read: what was made last. They are read one by one, as steps."""
    tokens: np.ndarray | None = None
    """All tokens of the text, (count,) integers, where they were kept."""
    draws: tuple[int, int] | None = None
    """Where tokens were made: the seed, and how many times it has drawn."""
    seen: np.ndarray | None = None
    """(vocabulary of the tokenizer,) bool, the tokens that the text has, which a repetition penalty counts; without
    it those of `tokens`, or else of `last`, are counted."""

    @property
    def length(self) -> int:
        """Tokens of the text."""
        return int(self.state.position) + len(self.unread)

    def seen_by(self, vocab_size: int) -> np.ndarray:
        """`seen`, or what stands in for it; a copy. `vocab_size` is the tokenizer's."""
        if self.seen is not None:
            return self.seen.copy()
        return mark(np.zeros(vocab_size, dtype=bool), self.last if self.tokens is None else self.tokens)


def mark(seen: np.ndarray, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    """Note in `seen`, (vocabulary,) bool, which it returns, that a text has these tokens."""
    ids = np.asarray(tokens, dtype=np.int64)
    seen[ids[ids < len(seen)]] = True  # the others are a model's padding
    return seen
