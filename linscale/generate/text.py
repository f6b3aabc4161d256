"""A text that an engine works on: what of it is read, what was made, who is told."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from linscale.data.tokenizer import Tokenizer
from linscale.generate.continuation import Continuation
from linscale.generate.request import Event, Listener, Request
from linscale.generate.sampling import Sampling
from linscale.generate.snapshot import LAST, Snapshot, mark
from linscale.models import State

logger = logging.getLogger(__name__)


class Text:
    """A request under way. Its `listener` is told every event, in the thread of the engine."""

    def __init__(self, request: Request, listener: Listener, tokenizer: Tokenizer) -> None:
        self.request, self._listener = request, listener
        self.slot: int | None = None
        self.in_slot = False
        """Whether the slot holds the state behind what is read."""
        self.no_memory: str | None = None
        """What the device said when there was no memory to read more."""
        before, given = request.state, np.asarray(request.tokens, dtype=np.int64)
        self.state: State | None = None if before is None else before.state
        """Behind the `read` first tokens of the text."""
        self.read = 0 if before is None else int(before.state.position)
        self.logits: Tensor | None = None if before is None else before.logits
        """(V,) behind these tokens, where they are known."""
        self.unread = np.concatenate([np.array(before.unread if before else (), dtype=np.int64), given])
        """Tokens of the text that are read next."""
        self.given = len(self.unread)
        """Tokens that are read for this request."""
        self._tokens, self._size = given, tokenizer.vocab_size
        self._prompt_length = self.read + len(self.unread)
        last = (*(before.last if before else ()), *given[-LAST:].tolist())[-LAST:]
        self._last = last
        self.continuation = None if request.sampling is None else Continuation(tokenizer, request.sampling, last)
        self.ended_by_eos = False
        self._eos = tokenizer.eos_id
        self.draws = self._first_draws()
        """The seed, and how many times it has drawn before this request."""

    def _first_draws(self) -> tuple[int, int]:
        sampling, before = self.request.sampling, self.request.state
        asked = None if sampling is None else sampling.seed
        if asked is None and before is not None and before.draws is not None:
            return before.draws
        return asked or 0, 0

    @property
    def sampling(self) -> Sampling:
        """Of a request that has one."""
        assert self.request.sampling is not None
        return self.request.sampling

    def has_read(self, count: int, state: State | None, logits: Tensor | None) -> None:
        """Note that `state` is behind `count` more tokens, and the logits there where they were made. None: the state
        is in the slot."""
        self.read += count
        self.unread, self.state, self.logits = self.unread[count:], state, logits

    @property
    def made(self) -> Sequence[int]:
        """Tokens made, without an end-of-text token that ends the text."""
        tokens = self.continuation.tokens if self.continuation is not None else []
        return tokens[:-1] if self.ended_by_eos else tokens

    @property
    def length(self) -> int:
        """Tokens of the text."""
        return self._prompt_length + len(self.made)

    def seen(self) -> np.ndarray:
        """(vocabulary of the tokenizer,) bool: the tokens that the text has."""
        before = self.request.state
        seen = np.zeros(self._size, dtype=bool) if before is None else before.seen_by(self._size)
        return mark(mark(seen, self._tokens), self.made)

    def seen_tokens(self) -> Sequence[int]:
        """What a repetition penalty counts; none without one."""
        tokens: list[int] = np.flatnonzero(self.seen()).tolist() if self.sampling.repetition_penalty != 1 else []
        return tokens

    def add(self, token: int, logprob: float | None, alternatives: Sequence[tuple[int, float]]) -> bool:
        """Take the next token and tell of it; whether the text has ended."""
        assert self.continuation is not None
        piece = self.continuation.add(token, logprob, alternatives)
        ended = piece.finish_reason is not None
        self.ended_by_eos = ended and token == self._eos and not self.continuation.sampling.ignore_eos
        self.tell(piece)
        return ended

    def tell(self, event: Event) -> None:
        """A listener that fails is not asked again; the engine goes on."""
        try:
            self._listener(event)
        except Exception:
            logger.exception("a listener failed; its text goes on unheard")
            self._listener = _nobody

    def forget(self) -> None:
        """Tell nobody of what comes."""
        self._listener = _nobody

    def snapshot(self, state: State, logits: Tensor | None) -> Snapshot:
        """The text as it stands, where `state` has read all of it, or, without logits behind it, all but the last."""
        before, made = self.request.state, np.asarray(self.made, dtype=np.int32)
        tokens = None
        if self.request.keep_tokens:
            old = np.zeros(0, np.int32) if before is None or before.tokens is None else before.tokens
            tokens = np.concatenate([old, self._tokens.astype(np.int32), made])
        seed, drawn = self.draws
        count = 0 if self.continuation is None else len(self.continuation.tokens)
        return Snapshot(
            state, logits, (*self._last, *made[-LAST:].tolist())[-LAST:],
            () if logits is not None else (int(made[-1] if len(made) else self._last[-1]),), tokens,
            (seed, drawn + count) if count else None if before is None else before.draws, self.seen(),
        )  # fmt: skip


def _nobody(event: Event) -> None:
    pass
