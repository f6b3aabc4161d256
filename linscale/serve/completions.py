"""/v1/completions: text behind a prompt."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from linscale.generate.continuation import Piece
from linscale.serve.envelope import Envelope
from linscale.serve.errors import ApiError
from linscale.serve.event_stream import EventStream, answer
from linscale.serve.generation import Generation, whole
from linscale.serve.jobs import check_texts, job_of
from linscale.serve.schemas import CompletionRequest
from linscale.serve.service import Service
from linscale.serve.token_text import TokenText, nats

router = APIRouter()
MAX_TOKENS = 16  # by default, as in the OpenAI API


@router.post("/v1/completions")
async def completions(request: Request, body: CompletionRequest) -> Response:
    """Continue one or several prompts."""
    service: Service = request.app.state.service
    service.check_model(body.model)
    if body.echo and body.logprobs is not None:
        raise ApiError(
            400, "logprobs: not computed for the prompt, which echo gives; leave one of them out", param="logprobs"
        )
    prompts, tokens = await _prompts(service, body)
    wanted = MAX_TOKENS if body.max_tokens is None else body.max_tokens
    job = await job_of(service, body, tokens, wanted, logprobs=body.logprobs, stop_tokens=service.end_tokens)
    generation = Generation(service, job)
    form = _Form(service, body, prompts)
    if body.stream:
        events = _chunks(generation, form, body)
        return EventStream(events, generation.close, service.options.body_s)
    return await answer(request, whole(generation, form), generation.close)


async def _prompts(service: Service, body: CompletionRequest) -> tuple[list[str], list[list[int]]]:
    """The prompts as texts, which are needed to show them, and as tokens. One that begins a text is opened."""
    given: Any = body.prompt if body.prompt is not None else "" if body.state is None else []
    texts = [given] if isinstance(given, str) else given
    if texts and isinstance(texts[0], str):
        check_texts(service, body, len(texts))
        return texts, [await service.encode(text, begins=body.state is None) for text in texts]
    lists: list[list[int]] = given if given and isinstance(given[0], list) else [given]
    check_texts(service, body, len(lists))
    for tokens in lists:
        service.check_tokens(tokens, "prompt")
    return [service.tokenizer.decode(tokens) if body.echo else "" for tokens in lists], lists


async def _chunks(
    generation: Generation, form: _Form, body: CompletionRequest
) -> AsyncGenerator[Mapping[str, Any], None]:
    """The answer as it is written."""
    async for pieces in generation.pieces():
        for choice, more in pieces.items():
            shown = form.choice(choice, more)
            if shown["text"] or shown["logprobs"] or shown["finish_reason"]:
                yield {**form.around([shown]), **generation.usage_in_chunk(body)}
    state = await generation.save()
    if body.usage_asked or state is not None:
        yield form.around([], usage=generation.usage() if body.usage_asked else None, state=state)


class _Form:
    """The form of an answer and of its chunks."""

    def __init__(self, service: Service, body: CompletionRequest, prompts: Sequence[str]) -> None:
        self._service, self._body, self._prompts = service, body, prompts
        self._envelope = Envelope(service, "cmpl")
        self._begun: set[int] = set()
        self.has_logprobs = body.logprobs is not None

    def around(self, choices: Sequence[Mapping[str, Any]], *, usage: Any = None, state: Any = None) -> dict[str, Any]:
        """An object with these choices."""
        return self._envelope.around("text_completion", choices, usage=usage, state=state)

    def response(self, written: Mapping[int, Sequence[Piece]], usage: Any, state: Any) -> Response:
        """The whole answer."""
        choices = [self.choice(choice, written[choice]) for choice in sorted(written)]
        return JSONResponse(self.around(choices, usage=usage, state=state))

    def choice(self, choice: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        """What pieces of a text say; the prompt is in front of the first, where it is asked for."""
        text = "".join(piece.text for piece in pieces)
        if self._body.echo and choice not in self._begun:
            text = self._prompts[choice // (self._body.n or 1)] + text
        self._begun.add(choice)
        logprobs = None if self._body.logprobs is None else logprobs_of(self._service.token_text, pieces)
        return {"index": choice, "text": text, "logprobs": logprobs, "finish_reason": pieces[-1].finish_reason}


def logprobs_of(tokens: TokenText, pieces: Sequence[Piece]) -> dict[str, Any]:
    """Log-probabilities as completions give them: parallel lists, and a dictionary of alternatives a token."""
    return {
        "tokens": [tokens.text(piece.token) for piece in pieces],
        "token_logprobs": [nats(piece.logprob) for piece in pieces],
        "top_logprobs": [
            {tokens.text(token): nats(logprob) for token, logprob in reversed(piece.alternatives)} for piece in pieces
        ],
        "text_offset": [piece.offset for piece in pieces],
    }
