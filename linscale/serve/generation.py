"""The texts that one request asks for: taken in, read, written, and counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from secrets import randbits
from typing import Any, Protocol

from fastapi import Response

from linscale.generate.continuation import Piece
from linscale.generate.request import Failed, Finished, Request
from linscale.generate.sampling import SEEDS, Sampling
from linscale.generate.snapshot import Snapshot
from linscale.serve.errors import ApiError
from linscale.serve.schemas import Generation as Body
from linscale.serve.service import Service
from linscale.serve.streams import Streams


@dataclass(frozen=True)
class Job:
    """What is to be written: each of `samplings` behind each of `prompts`, read behind `state`."""

    prompts: Sequence[Sequence[int]]
    samplings: Sequence[Sampling]
    state: Snapshot | None = None
    save: str | None = None
    """A name for the state behind the text, where there is one text."""
    replace: bool = False


class Generation:
    """A job under way. Choice p * n + k is text k of prompt p. `close` ends what still runs."""

    def __init__(self, service: Service, job: Job) -> None:
        """Raises ApiError when the server does not take it, and UserError when the engine cannot do it."""
        self._service, self._job = service, job
        self._texts: dict[int, int] = {}  # number of a stream: its choice
        self._prompts: dict[int, int] = {}  # number of a stream that only reads: its prompt
        self._snapshot: Snapshot | None = None
        self.made = 0
        """Tokens written."""
        with ExitStack() as stack:
            stack.enter_context(service.admit(len(job.prompts) * len(job.samplings)))
            self._streams = stack.enter_context(Streams(service))
            for prompt in range(len(job.prompts)):
                self._begin(prompt)
            self._resources = stack.pop_all()

    def close(self) -> None:
        """End what still runs, and make room for other requests."""
        self._resources.close()

    async def pieces(self) -> AsyncIterator[dict[int, list[Piece]]]:
        """What was written since the last time, by choice, until all is. Raises ApiError where the engine fails."""
        async for events in self._streams.events():
            found: dict[int, list[Piece]] = {}
            for number, event in events:
                if isinstance(event, Failed):
                    raise self._streams.error(event)
                if isinstance(event, Piece):
                    found.setdefault(self._texts[number], []).append(event)
                elif isinstance(event, Finished) and number in self._prompts:
                    self._write(self._prompts[number], (), event.snapshot)
                elif isinstance(event, Finished):
                    self._snapshot = event.snapshot
            self.made += sum(map(len, found.values()))
            if found:
                yield found

    async def save(self) -> Mapping[str, Any] | None:
        """Save the state behind the text, where that was asked for; what clients are told of it."""
        job = self._job
        if job.save is None:
            return None
        if self._snapshot is None:
            raise ApiError(500, "the state behind the text is not there", code="internal_error")
        return await self._service.states.save(job.save, self._snapshot, job.replace)

    def usage(self) -> dict[str, Any]:
        """Counts of tokens; those of a saved state are cached ones of the prompt."""
        cached = 0 if self._job.state is None else self._job.state.length
        cached *= len(self._job.prompts)
        read = cached + sum(map(len, self._job.prompts))
        return {
            "prompt_tokens": read,
            "completion_tokens": self.made,
            "total_tokens": read + self.made,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def usage_in_chunk(self, body: Body) -> dict[str, Any]:
        """What a chunk says of the counts: nothing, null until the last, or those so far."""
        if not body.usage_asked:
            return {}
        return {"usage": self.usage() if body.running_usage_asked else None}

    def _begin(self, prompt: int) -> None:
        """Start the texts of a prompt. Several read it once."""
        tokens, state, samplings = self._job.prompts[prompt], self._job.state, self._job.samplings
        if len(samplings) == 1 or not tokens:
            self._write(prompt, tokens, state)
            return
        for sampling in samplings[:1]:  # what they cannot do is said before the prompt is read
            self._service.worker.engine.check(Request(tokens, sampling, state))
        self._prompts[self._streams.start(Request(tokens, None, state, keep=True))] = prompt

    def _write(self, prompt: int, tokens: Sequence[int], state: Snapshot | None) -> None:
        samplings, keep = self._job.samplings, self._job.save is not None
        for k, sampling in enumerate(samplings):
            number = self._streams.start(Request(tokens, sampling, state, keep=keep))
            self._texts[number] = prompt * len(samplings) + k


class Form(Protocol):
    """The form of a whole answer."""

    has_logprobs: bool

    def response(self, written: Mapping[int, Sequence[Piece]], usage: Any, state: Any) -> Response: ...


async def whole(generation: Generation, form: Form) -> Response:
    """The answer in one piece. Log-probabilities take seconds, and are not for the event loop."""
    written: dict[int, list[Piece]] = {}
    async for pieces in generation.pieces():
        for choice, more in pieces.items():
            written.setdefault(choice, []).extend(more)
    state = await generation.save()
    respond = partial(form.response, written, generation.usage(), state)
    return await asyncio.to_thread(respond) if form.has_logprobs else respond()


def seeded(sampling: Sampling, n: int, state: Snapshot | None) -> list[Sampling]:
    """One for each of n texts of a prompt: with seeds that follow each other, and a new first one unless it is given.

    One text behind a state that has drawn goes on with its draws.
    """
    if sampling.seed is None and n == 1 and state is not None and state.draws is not None:
        return [sampling]
    first = randbits(62) if sampling.seed is None else sampling.seed
    return [replace(sampling, seed=(first + k) % SEEDS) for k in range(n)]
