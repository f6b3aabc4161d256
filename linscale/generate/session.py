"""A session: a text that one model reads and continues, in memory that does not grow with it (but softmax layers).

A prompt is read in chunks, whatever its length, and every token that is made is then a step of its own. A session that
goes on from a snapshot takes the same steps from the same numbers as one that was never interrupted, so that on one
machine it makes the same text to the bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from linscale.config import UserError
from linscale.data.tokenizer import Tokenizer
from linscale.generate.choice import Needs, Rows, choose
from linscale.generate.continuation import Continuation, Piece, added
from linscale.generate.sampling import Sampling
from linscale.generate.snapshot import LAST, Snapshot
from linscale.generate.states import fork
from linscale.layers import SoftmaxAttention
from linscale.models import LanguageModel, State

CHUNK, SOFTMAX_CHUNK = 8192, 1024  # tokens read at once; a mask of softmax layers is chunk x past
Tokens: TypeAlias = "Sequence[int] | np.ndarray"


class Session:
    """A text that is read and continued: an empty one, or that of a snapshot."""

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, snapshot: Snapshot | None = None, *, keep_tokens: bool = False
    ) -> None:
        """`keep_tokens` keeps all tokens of the text; a text that was begun without them cannot have them later."""
        self.model, self.tokenizer = model, tokenizer
        self._state: State | None = None
        self._logits: Tensor | None = None
        self._last: deque[int] = deque(maxlen=LAST)
        self._unread: list[int] = []
        self._kept: list[np.ndarray] | None = [] if keep_tokens else None
        self._seen = np.zeros(tokenizer.vocab_size, dtype=bool)  # tokens of the text
        self._draws: tuple[int, int] | None = None  # seed, and how many times it has drawn
        self.grows = any(isinstance(block.mixer, SoftmaxAttention) for block in model.blocks)
        """Whether the state grows with the text: that of softmax layers does."""
        self.chunk = SOFTMAX_CHUNK if self.grows else CHUNK
        if snapshot is not None:
            self._go_on_from(snapshot, keep_tokens)

    def _go_on_from(self, snapshot: Snapshot, keep_tokens: bool) -> None:
        if keep_tokens and snapshot.tokens is None:
            raise UserError("keep_tokens: the state was saved without its tokens; make it again with keep_tokens")
        self._state, self._logits = snapshot.state, snapshot.logits
        self._draws = snapshot.draws
        if snapshot.seen is None:
            self._see(snapshot.last if snapshot.tokens is None else snapshot.tokens)
        else:
            self._seen = snapshot.seen.copy()
        self._last.extend(snapshot.last)
        self._unread = list(snapshot.unread)
        self._kept = None if snapshot.tokens is None else [snapshot.tokens]

    @property
    def length(self) -> int:
        """Tokens of the text so far."""
        return (0 if self._state is None else int(self._state.position)) + len(self._unread)

    @property
    def last(self) -> tuple[int, ...]:
        """The last tokens of the text, at most LAST."""
        return tuple(self._last)

    def read(self, tokens: Tokens) -> None:
        """Read more of the text, `chunk` tokens at once. Interrupted, the session is where it was before."""
        self._settle()
        state, logits = self._state, self._logits
        for first in range(0, len(tokens), self.chunk):
            state, logits = self._advance(tokens[first : first + self.chunk], state)
        self._state, self._logits = state, logits
        self._note(tokens)

    def stream(self, sampling: Sampling) -> Iterator[Piece]:
        """Continue the text: a piece a token, the last of which says why the text ended.

        Each token is part of the text once it is yielded, but for an end-of-text token that ends it; so are those of
        a stop string. The caller stops where it likes. Where `sampling` has no seed, draws go on where the last ones of
        this text stopped, those before its snapshot included; a text that has none begins with seed 0. A repetition
        penalty counts the whole text. Raises UserError for a text without tokens or a stop token that cannot come.
        """
        if not self.length:
            raise UserError(
                "prompt: no tokens; expected at least one, such as the end-of-text token that opens a document"
            )
        sampling.check_tokens(self.tokenizer.vocab_size)
        if self._draws is None or sampling.seed is not None:
            self._draws = sampling.seed or 0, 0
        return self._stream(sampling, *self._draws)

    def _stream(self, sampling: Sampling, seed: int, step: int) -> Iterator[Piece]:
        needs, size = Needs.of([sampling]), self.tokenizer.vocab_size
        rows = Rows.empty(1, size, self.model.embedding.weight.device, penalties=needs.penalty)
        rows.put(0, replace(sampling, seed=seed), np.flatnonzero(self._seen).tolist(), step)
        text = Continuation(self.tokenizer, sampling, self.last)
        while True:
            self._settle()
            assert self._logits is not None
            choice = choose(self._logits[None], rows, needs, size)
            rows.advance(choice.tokens)
            step += 1
            self._draws = seed, step
            piece = text.add(*added(choice, 0))
            if piece.token != self.tokenizer.eos_id or sampling.ignore_eos:
                self._unread.append(piece.token)
                self._note([piece.token])
            yield piece
            if piece.finish_reason is not None:
                return

    def snapshot(self) -> Snapshot:
        """The text as it stands. Raises UserError for a text without tokens."""
        if self._state is None:
            raise UserError("state: no tokens were read; expected at least one, such as the end-of-text token")
        state = fork(self._state, torch.zeros(1, dtype=torch.int64, device=self._state.position.device))
        return Snapshot(
            state,
            None if self._unread else self._logits,
            self.last,
            tuple(self._unread),
            None if self._kept is None else np.concatenate(self._kept),
            self._draws,
            self._seen.copy(),
        )

    def fork(self) -> Session:
        """Another session that stands at the same place; neither sees what the other does from here."""
        return Session(self.model, self.tokenizer, self.snapshot())

    def _settle(self) -> None:
        """Read what was made last, a step each."""
        while self._unread:
            self._state, self._logits = self._advance(self._unread[:1], self._state)
            del self._unread[0]

    @torch.no_grad()
    def _advance(self, tokens: Tokens, state: State | None) -> tuple[State, Tensor]:
        """The state behind tokens (T,), and the logits (V,) behind the last of them."""
        ids = torch.from_numpy(np.asarray(tokens, dtype=np.int64)).to(self.model.embedding.weight.device)
        x, state = self.model.read(ids[None], state)
        return state, self.model.logits(x[0, -1])

    def _note(self, tokens: Tokens) -> None:
        self._see(tokens)
        self._last.extend(int(token) for token in tokens[-LAST:])
        if self._kept is not None:
            self._kept.append(np.asarray(tokens, dtype=np.int32))

    def _see(self, tokens: Tokens) -> None:
        ids = np.asarray(tokens, dtype=np.int64)
        self._seen[ids[ids < len(self._seen)]] = True  # the others are a model's padding
