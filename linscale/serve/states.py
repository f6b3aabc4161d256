"""/v1/states: what the model has read, by name."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from linscale.config import UserError
from linscale.generate.request import Failed, Finished, Progress
from linscale.generate.request import Request as Reading
from linscale.serve.errors import ApiError, refused
from linscale.serve.event_stream import EventStream, answer
from linscale.serve.schemas import ForkRequest, StateRequest
from linscale.serve.service import Service
from linscale.serve.streams import Streams

router = APIRouter(prefix="/v1/states")


@router.post("")
async def create(request: Request, body: StateRequest) -> Response:
    """Read a text of any length once, and save the state behind it."""
    service: Service = request.app.state.service
    field, replace = "text" if body.tokens is None else "tokens", bool(body.replace)
    service.states.require_free(body.name, replace, "name")
    reading = await _reading(service, body)
    with ExitStack() as stack:
        stack.enter_context(service.admit(1))
        streams = stack.enter_context(Streams(service))
        try:
            streams.start(reading)
        except UserError as error:
            raise refused(error, field) from None
        resources = stack.pop_all()
    events = _events(service, streams, body.name, replace)
    if body.stream:
        return EventStream(events, resources.close, service.options.body_s)

    async def whole() -> Response:
        last: Mapping[str, Any] = {}
        async for event in events:
            last = event
        return JSONResponse(last, 201)

    return await answer(request, whole(), resources.close)


async def _reading(service: Service, body: StateRequest) -> Reading:
    if (body.text is None) == (body.tokens is None):
        raise ApiError(400, "text, tokens: expected one of them", param="text", code="invalid_value")
    state = None if body.origin is None else await service.states.load(body.origin, "from")
    if body.keep_tokens and state is not None and state.tokens is None:
        raise ApiError(400, "keep_tokens: the state that is read from has no tokens", param="keep_tokens")
    if body.tokens is not None:
        tokens = body.tokens
        service.check_tokens(tokens, "tokens")
    else:
        opening = [] if state is not None else [service.tokenizer.bos_id]
        tokens = opening + await service.encode(body.text or "")
    service.check_prompt(len(tokens), "text" if body.tokens is None else "tokens")
    return Reading(tokens, None, state, keep=True, keep_tokens=bool(body.keep_tokens))


async def _events(
    service: Service, streams: Streams, name: str, replace: bool
) -> AsyncGenerator[Mapping[str, Any], None]:
    """How far the text is read, and at last the state."""
    snapshot = None
    async for events in streams.events():
        for _, event in events:
            if isinstance(event, Failed):
                raise ApiError(500, event.message, code="engine_failed")
            if isinstance(event, Progress):
                yield {"object": "state.progress", "name": name, "read": event.read, "total": event.total}
            elif isinstance(event, Finished):
                snapshot = event.snapshot
    if snapshot is None:
        raise ApiError(500, "the state behind the text is not there", code="internal_error")
    yield await service.states.save(name, snapshot, replace)


@router.get("")
async def list_states(request: Request) -> dict[str, Any]:
    """All states."""
    service: Service = request.app.state.service
    return {"object": "list", "data": await service.states.list()}


@router.get("/{name}")
async def show(request: Request, name: str) -> dict[str, Any]:
    """What is recorded of a state."""
    service: Service = request.app.state.service
    return await service.states.show(name)


@router.post("/{name}/fork", status_code=201)
async def fork(request: Request, name: str, body: ForkRequest) -> dict[str, Any]:
    """Copy a state to another name."""
    service: Service = request.app.state.service
    return await service.states.fork(name, body.name, bool(body.replace))


@router.delete("/{name}")
async def delete(request: Request, name: str) -> dict[str, Any]:
    """Delete a state."""
    service: Service = request.app.state.service
    await service.states.delete(name)
    return {"object": "state", "name": name, "deleted": True}
