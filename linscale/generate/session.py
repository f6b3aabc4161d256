"""A session: a text that one model reads and continues, in memory that does not grow with it (but softmax layers).

A prompt is read in chunks, whatever its length, and every token that is made is then a step of its own, in a slot that
a session and its forks share. A session that goes on from a snapshot takes the same steps from the same numbers as one
that was never interrupted, so that on one machine it makes the same text to the bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from linscale.config import UserError
from linscale.data.tokenizer import Tokenizer
from linscale.generate.choice import Needs, Rows, choose
from linscale.generate.continuation import Continuation, Piece
from linscale.generate.packing import can_pack
from linscale.generate.precision import reading
from linscale.generate.sampling import Sampling
from linscale.generate.slots import Drawn, on_host
from linscale.generate.snapshot import LAST, Snapshot, mark
from linscale.generate.solo import Solo
from linscale.generate.states import fork
from linscale.layers import SoftmaxAttention
from linscale.models import LanguageModel, State

CHUNK, SOFTMAX_CHUNK = 8192, 1024  # tokens read at once; a mask of softmax layers is chunk x past
GREEDY = Sampling(temperature=0, ignore_eos=True)  # of steps whose draw is not looked at
Tokens: TypeAlias = "Sequence[int] | np.ndarray"


class Session:
    """A text that is read and continued: an empty one, or that of a snapshot."""

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, snapshot: Snapshot | None = None, *,
        keep_tokens: bool = False, solo: Solo | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        """`keep_tokens` keeps all tokens of the text; a text that was begun without them cannot have them later. `solo`
        is that of another session of the same model, where there is one. `dtype` is that of products, by default the
        model's; bfloat16 is for GPUs."""
        self.model, self.tokenizer = model, tokenizer
        self._dtype = dtype or model.embedding.weight.dtype
        self._solo = solo or Solo(model, tokenizer, self._dtype)
        self._has_step = can_pack(model)  # a mixer of one's own is read token by token as a prompt is
        self._read = 0  # tokens that the state has read, here or in the slot
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
        self._read = int(snapshot.state.position)
        self._draws = snapshot.draws
        self._seen = snapshot.seen_by(self.tokenizer.vocab_size)
        self._last.extend(snapshot.last)
        self._unread = list(snapshot.unread)
        self._kept = None if snapshot.tokens is None else [snapshot.tokens]

    @property
    def length(self) -> int:
        """Tokens of the text so far."""
        return self._read + len(self._unread)

    @property
    def last(self) -> tuple[int, ...]:
        """The last tokens of the text, at most LAST."""
        return tuple(self._last)

    def read(self, tokens: Tokens) -> None:
        """Read more of the text, `chunk` tokens at once. Interrupted, the session is where it was before."""
        self._settle(0)
        self._put_down()
        state, logits = self._state, self._logits
        for first in range(0, len(tokens), self.chunk):
            state, logits = self._advance(tokens[first : first + self.chunk], state)
        self._state, self._logits, self._read = state, logits, self._read + len(tokens)
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
        needs, run = Needs.of([sampling]), object()
        text = Continuation(self.tokenizer, sampling, self.last)
        while True:
            self._settle(1 if self._has_step else 0)
            drawn = (
                self._step(run, sampling, needs, (seed, step))
                if self._unread
                else self._first(sampling, needs, (seed, step))
            )
            step += 1
            self._draws = seed, step
            piece = text.add(*drawn.of(0))
            if piece.token != self.tokenizer.eos_id or sampling.ignore_eos:
                self._unread.append(piece.token)
                self._note([piece.token])
            yield piece
            if piece.finish_reason is not None:
                return

    def _settle(self, most: int) -> None:
        """Read what was made, a step each, until at most so many tokens are left."""
        while len(self._unread) > most:
            if self._has_step:
                self._step(object(), GREEDY, Needs(), (0, 0))
            else:
                self._state, self._logits = self._advance(self._unread[:1], self._state)
                self._read, self._unread = self._read + 1, self._unread[1:]

    def _first(self, sampling: Sampling, needs: Needs, draws: tuple[int, int]) -> Drawn:
        """Draw behind the logits of what was read last."""
        self._put_down()
        assert self._logits is not None
        size = self.tokenizer.vocab_size
        rows = Rows.empty(1, size, self._logits.device, penalties=needs.penalty)
        rows.put(0, sampling, self._penalised(sampling), draws[1], seed=draws[0])
        return on_host(choose(self._logits[None], rows, needs, size))

    def _step(self, run: object, sampling: Sampling, needs: Needs, draws: tuple[int, int]) -> Drawn:
        """Read the first token that was not read, and draw what comes behind it."""
        if not self._solo.goes_on(run) or not self._solo.owned(self._put_down):
            self._put_down()
            token, seen = self._unread[0], self._penalised(sampling)
            self._solo.hold(run, self._put_down, token, self._state, self._read, sampling, seen, draws)
        drawn = self._solo.step(needs)
        self._read, self._unread = self._read + 1, self._unread[1:]
        return drawn

    def _put_down(self) -> None:
        """Take the text out of the slot, if it is there."""
        if self._solo.owned(self._put_down):
            self._state, self._logits = self._solo.take(self._read)
            self._solo.clear()

    def _penalised(self, sampling: Sampling) -> list[int]:
        """The tokens that a repetition penalty counts."""
        return [] if sampling.repetition_penalty == 1 else np.flatnonzero(self._seen).tolist()

    def snapshot(self) -> Snapshot:
        """The text as it stands. Raises UserError for a text without tokens."""
        if not self._read:
            raise UserError("state: no tokens were read; expected at least one, such as the end-of-text token")
        state, logits = self._current()
        return Snapshot(
            state,
            None if self._unread else logits,
            self.last,
            tuple(self._unread),
            None if self._kept is None else np.concatenate(self._kept),
            self._draws,
            self._seen.copy(),
        )

    def fork(self) -> Session:
        """Another session that stands at the same place; neither sees what the other does from here."""
        return Session(self.model, self.tokenizer, self.snapshot(), solo=self._solo)

    def _current(self) -> tuple[State, Tensor | None]:
        """A copy of the state, and the logits behind it."""
        if self._solo.owned(self._put_down):
            return self._solo.take(self._read)
        assert self._state is not None
        return fork(self._state, torch.zeros(1, dtype=torch.int64, device=self._state.position.device)), self._logits

    @torch.no_grad()
    def _advance(self, tokens: Tokens, state: State | None) -> tuple[State, Tensor]:
        """The state behind tokens (T,), and the logits (V,) behind the last of them."""
        ids = torch.from_numpy(np.asarray(tokens, dtype=np.int64)).to(self.model.embedding.weight.device)
        with reading(self.model, self._dtype):
            x, state = self.model.read(ids[None], state)
            return state, self.model.logits(x[0, -1]).to(self.model.embedding.weight.dtype)

    def _note(self, tokens: Tokens) -> None:
        mark(self._seen, tokens)
        self._last.extend(int(token) for token in tokens[-LAST:])
        if self._kept is not None:
            self._kept.append(np.asarray(tokens, dtype=np.int32))
