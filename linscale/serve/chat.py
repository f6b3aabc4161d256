"""/v1/chat/completions: the next turn of a conversation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from linscale.config import UserError
from linscale.generate.chat_template import STOP, conversation
from linscale.generate.continuation import Piece
from linscale.generate.snapshot import Snapshot
from linscale.serve.envelope import Envelope
from linscale.serve.errors import ApiError, refused
from linscale.serve.event_stream import EventStream, answer
from linscale.serve.generation import Generation, whole
from linscale.serve.jobs import job_of
from linscale.serve.schemas import ChatRequest
from linscale.serve.service import Service
from linscale.serve.token_text import TokenText, nats

router = APIRouter()
MAX_TOKENS = 1024  # by default, or as many as there is room for


@router.post("/v1/chat/completions")
async def chat(request: Request, body: ChatRequest) -> Response:
    """Answer a conversation."""
    service: Service = request.app.state.service
    service.check_model(body.model)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs: needs logprobs = true", param="top_logprobs")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise ApiError(400, "max_tokens, max_completion_tokens: both are given; expected one", param="max_tokens")
    state = None if body.state is None else await service.states.load(body.state)
    tokens = await _tokens(service, body, state)
    template = service.template
    job = await job_of(
        service,
        body,
        [tokens],
        _max_tokens(service, body, len(tokens) + (0 if state is None else state.length)),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        state=state,
        stop_tokens=service.end_tokens if template is None else template.stop_tokens,
        stop=STOP if template is None else (),
    )
    try:
        generation = Generation(service, job)
    except UserError as error:
        raise refused(error, "messages") from None
    form = _Form(service, body, plain=template is None)
    if body.stream:
        events = _chunks(generation, form, body)
        return EventStream(events, generation.close, service.options.body_s)
    return await answer(request, whole(generation, form), generation.close)


async def _tokens(service: Service, body: ChatRequest, state: Snapshot | None) -> list[int]:
    """The conversation by the model's own template, or in the plain form."""
    messages, template = [message.plain() for message in body.messages], service.template
    if template is not None:
        encode = template.tokens if state is None else partial(template.tokens_behind, state)
        return await asyncio.to_thread(encode, messages, body.chat_template_kwargs)
    if body.chat_template_kwargs:
        raise ApiError(400, "chat_template_kwargs: the model has no chat template", param="chat_template_kwargs")
    text = conversation(messages)
    if state is None:
        return await service.encode(text, "messages", begins=True)
    before = service.tokenizer.decode(state.last)
    behind = text if not before or before.endswith("\n") else f"\n{text}"
    return await service.encode(behind, "messages")


def _max_tokens(service: Service, body: ChatRequest, length: int) -> int:
    given = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if given is not None:
        return given
    most, limit = min(MAX_TOKENS, service.options.max_tokens), service.worker.engine.limit
    return most if limit is None else max(1, min(most, limit - length))


async def _chunks(generation: Generation, form: _Form, body: ChatRequest) -> AsyncGenerator[Mapping[str, Any], None]:
    """The answer as it is written."""
    kind = "chat.completion.chunk"
    for choice in range(body.n or 1):
        delta = {"role": "assistant", "content": ""}
        yield {
            **form.around(kind, [{"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}]),
            **generation.usage_in_chunk(body),
        }
    async for pieces in generation.pieces():
        for choice, more in pieces.items():
            shown = form.delta(choice, more)
            if shown["delta"] or shown["logprobs"] or shown["finish_reason"]:
                yield {**form.around(kind, [shown]), **generation.usage_in_chunk(body)}
    state = await generation.save()
    if body.usage_asked or state is not None:
        yield form.around(kind, [], usage=generation.usage() if body.usage_asked else None, state=state)


class _Form:
    """The form of an answer and of its chunks."""

    def __init__(self, service: Service, body: ChatRequest, *, plain: bool) -> None:
        """`plain`: the space that the plain form has in front of an answer is not shown."""
        self._service, self._body, self._plain = service, body, plain
        self.around = Envelope(service, "chatcmpl").around
        self._begun: set[int] = set()
        self.has_logprobs = bool(body.logprobs)

    def response(self, written: Mapping[int, Sequence[Piece]], usage: Any, state: Any) -> Response:
        """The whole answer."""
        choices = [self.message(choice, written[choice]) for choice in sorted(written)]
        return JSONResponse(self.around("chat.completion", choices, usage=usage, state=state))

    def message(self, choice: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        """A whole answer."""
        message = {"role": "assistant", "content": self._text(choice, pieces), "refusal": None}
        return {"index": choice, "message": message, **self._rest(pieces)}

    def delta(self, choice: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        """What pieces add to an answer."""
        text = self._text(choice, pieces)
        return {"index": choice, "delta": {"content": text} if text else {}, **self._rest(pieces)}

    def _rest(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        logprobs = {"content": logprobs_of(self._service.token_text, pieces)} if self._body.logprobs else None
        return {"logprobs": logprobs, "finish_reason": pieces[-1].finish_reason}

    def _text(self, choice: int, pieces: Sequence[Piece]) -> str:
        text = "".join(piece.text for piece in pieces)
        if self._plain and choice not in self._begun:
            text = text.lstrip()
        if text:
            self._begun.add(choice)
        return text


def logprobs_of(tokens: TokenText, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """Log-probabilities as chats give them: an entry a token, with its alternatives."""

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        return {"token": tokens.text(token), "logprob": nats(logprob), "bytes": tokens.bytes_of(token)}

    return [
        {**entry(piece.token, piece.logprob), "top_logprobs": [entry(*each) for each in piece.alternatives]}
        for piece in pieces
    ]
