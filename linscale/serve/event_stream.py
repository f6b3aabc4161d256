"""Answers while their client is there: in one piece, or as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from linscale.serve.errors import ApiError, internal

DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def answer(request: Request, work: Coroutine[Any, Any, Response], release: Callable[[], None]) -> Response:
    """The answer that `work` makes; it is cancelled when the client leaves. `release` is called at the end."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else Response(status_code=499)
    finally:
        release()
        await _end(task, gone)


class EventStream(Response):
    """Events, each a JSON object, then [DONE]. What goes wrong on the way is the last event.

    At the end, and when the client leaves, the generator is closed and `release` is called: a generator that was never
    begun does nothing when it is closed.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[Mapping[str, Any], None], release: Callable[[], None], send_s: float
    ) -> None:
        """`send_s`: seconds that a client has to take an event."""
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._content, self._release, self._send_s = events, release, send_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task, gone = asyncio.create_task(self._write(send)), asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._release()
            await _end(task, gone)

    async def _write(self, send: Send) -> None:
        async with aclosing(self._content) as events:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            last = DONE
            try:
                async for event in events:
                    await self._send(send, _event(event))
            except ApiError as error:
                last = _event(error.content())
            except (TimeoutError, OSError):
                return  # the client takes nothing more
            except Exception as error:
                last = _event(internal(error).content())
            await self._send(send, last)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, event: bytes) -> None:
        async with asyncio.timeout(self._send_s):
            await send({"type": "http.response.body", "body": event, "more_body": True})


def _event(content: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def _gone(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel what is not done, and wait for it."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
