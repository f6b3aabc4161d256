"""What all paths of a server share: its model, its states, and which requests it takes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from linscale.generate.jinja_template import ChatTemplate
from linscale.generate.sample import encoded
from linscale.serve.errors import ApiError
from linscale.serve.metrics import Metrics
from linscale.serve.options import ServeOptions
from linscale.serve.saved_states import SavedStates
from linscale.serve.streams import Mailbox, Streams
from linscale.serve.token_text import TokenText

if TYPE_CHECKING:
    from linscale.data.tokenizer import Tokenizer
    from linscale.generate.worker import Worker

SHORT = 4096  # characters of a text that is encoded in the loop; longer ones go to a thread
RETRY_S = 60  # the longest that a client is told to wait


@dataclass
class Service:
    """A model that is served."""

    worker: Worker
    states: SavedStates
    options: ServeOptions
    metrics: Metrics
    mailbox: Mailbox
    token_text: TokenText
    name: str
    created: int
    """s since 1970"""
    template: ChatTemplate | None = None
    draining: bool = False
    open_streams: set[Streams] = field(default_factory=set)
    admitted: int = 0
    """Texts of requests that were taken and have not ended."""

    @property
    def tokenizer(self) -> Tokenizer:
        """That of the model."""
        return self.worker.engine.tokenizer

    def check_model(self, name: str | None) -> None:
        """Raises ApiError for a model that is not served here."""
        if name is not None and name != self.name:
            raise ApiError(
                404, f"model '{name}': not served here; expected '{self.name}'", param="model", code="model_not_found"
            )

    async def encode(self, text: str) -> list[int]:
        """The tokens of a text, without one that opens it."""
        if len(text) <= SHORT:
            return encoded(self.tokenizer, text)
        return await asyncio.to_thread(encoded, self.tokenizer, text)

    def check_tokens(self, tokens: Sequence[int], param: str) -> None:
        """Raises ApiError for tokens that the model does not have."""
        size = self.worker.engine.model.config.vocab_size
        for token in (min(tokens), max(tokens)) if tokens else ():
            if not 0 <= token < size:
                raise ApiError(
                    400, f"{param}: token {token}: expected 0 to {size - 1}", param=param, code="invalid_value"
                )

    def check_prompt(self, tokens: int, param: str = "prompt") -> None:
        """Raises ApiError for more tokens than a prompt may have."""
        if tokens > self.options.max_prompt_tokens:
            raise ApiError(
                400, f"{param}: {tokens} tokens; this server takes at most {self.options.max_prompt_tokens}",
                param=param, code="context_length_exceeded",
            )  # fmt: skip

    def check_alive(self) -> None:
        """Raises ApiError when the engine has stopped."""
        if not self.worker.alive:
            raise ApiError(503, "the engine has stopped; the server's log says why", code="engine_stopped")

    def admit(self, texts: int) -> Admission:
        """Take in a request of so many texts, while the admission is held.

        Raises ApiError: 503 while the server stops or when its engine has, 429 where too many texts wait.
        """
        if self.draining:
            raise ApiError(503, "the server is shutting down", code="shutting_down", retry_after_s=RETRY_S)
        self.check_alive()
        slots = self.worker.stats().slots
        room = slots + self.options.max_waiting
        if self.admitted + texts > room:
            wait = math.ceil(self.metrics.mean_text_s() * max(1, self.admitted - slots + 1) / slots)
            raise ApiError(
                429, f"{self.admitted} texts are written or wait, of at most {room}; come again later",
                code="overloaded", retry_after_s=min(max(wait, 1), RETRY_S),
            )  # fmt: skip
        return Admission(self, texts)


class Admission:
    """A place among the texts that are written or wait; given back at the end, or when it is dropped early."""

    def __init__(self, service: Service, texts: int) -> None:
        self._service, self._texts = service, texts
        service.admitted += texts

    def __enter__(self) -> Admission:
        return self

    def __exit__(self, *error: object) -> None:
        self._service.admitted -= self._texts
        self._texts = 0
