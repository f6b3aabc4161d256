"""One text being written: told every token, it says what to show and where the text ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from linscale.data.tokenizer import Tokenizer
from linscale.generate.choice import Choice
from linscale.generate.sampling import Sampling
from linscale.generate.text_stream import TextStream

FinishReason: TypeAlias = Literal["stop", "length"]


class Piece(NamedTuple):
    """What one token adds to a text."""

    token: int
    text: str
    """What may be shown now: of this token, or of earlier ones that were kept back."""
    offset: int
    """Characters of the text in front of this token's own."""
    logprob: float | None
    """In nats, as the model has it; None where it was not asked for."""
    alternatives: tuple[tuple[int, float], ...]
    """The most probable tokens and their log-probabilities, the most probable first."""
    finish_reason: FinishReason | None
    """'stop' at the end-of-text token, a stop token or a stop string, 'length' at the last of `max_tokens`, None before
    the end."""


class Continuation:
    """The text behind a prompt, by the rules of a Sampling. A continuation that has ended takes no more tokens."""

    def __init__(self, tokenizer: Tokenizer, sampling: Sampling, prompt: Sequence[int] = ()) -> None:
        self.sampling = sampling
        self.tokens: list[int] = []
        """All tokens so far, with the end-of-text token where it came."""
        self.finish_reason: FinishReason | None = None
        self._tokenizer = tokenizer
        self._stream = TextStream(tokenizer, prompt, sampling.stop)

    def add(self, token: int, logprob: float | None = None, alternatives: Sequence[tuple[int, float]] = ()) -> Piece:
        """Take the next token. Of `alternatives` as many are kept as were asked for."""
        if self.finish_reason is not None:
            raise ValueError(f"the text has ended ({self.finish_reason})")
        offset = self._stream.length
        self.tokens.append(token)
        text = self._stream.add(token)
        ended = (token == self._tokenizer.eos_id and not self.sampling.ignore_eos) or token in self.sampling.stop_tokens
        last = len(self.tokens) >= self.sampling.max_tokens
        if ended or last:
            text += self._stream.end()
        if ended or self._stream.stopped:
            self.finish_reason = "stop"
        elif last:
            self.finish_reason = "length"
        asked = self.sampling.logprobs
        if asked is None:
            logprob = None
        return Piece(token, text, offset, logprob, tuple(alternatives[: asked or 0]), self.finish_reason)


def added(choice: Choice, row: int) -> tuple[int, float | None, list[tuple[int, float]]]:
    """What `Continuation.add` takes, of one row of a choice."""
    token = int(choice.tokens[row])
    if choice.logprobs is None or choice.best_tokens is None or choice.best_logprobs is None:
        return token, None, []
    best = zip(choice.best_tokens[row].tolist(), choice.best_logprobs[row].tolist(), strict=True)
    return token, float(choice.logprobs[row]), list(best)
