"""Connections that clients leave hanging: ended, where uvicorn would keep them for as long as the clients like."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import uvicorn

QUANTUM = 1 << 14  # bytes of an answer that a client has to take in the time
LOOKS = 4  # in that time


async def watch(server: uvicorn.Server, seconds: float) -> None:
    """End connections whose client, for so many seconds, has not sent the head of a request to its end, or has taken
    nothing of what is left of an answer. Goes on until it is cancelled.

    Bodies of requests, and answers that are being written, have limits of their own: `limits.BodyLimit`,
    `event_stream.EventStream`.
    """
    known: dict[Any, tuple[Any, float]] = {}  # by connection: where it was, and since when
    while True:
        await asyncio.sleep(seconds / LOOKS)
        now, before, known = time.monotonic(), known, {}
        for connection in list(server.server_state.connections):
            place = _place(connection)
            if place is None:
                continue
            since = before[connection][1] if before.get(connection, (None, 0))[0] == place else now
            known[connection] = place, since
            if now - since >= seconds:
                connection.transport.abort()


def _place(connection: Any) -> tuple[Any, int] | None:
    """Where a connection is between requests or at the end of one; None in the middle of one."""
    request, transport = getattr(connection, "cycle", None), connection.transport
    if transport is None or not (transport.is_closing() or request is None or request.response_complete):
        return None
    return request, transport.get_write_buffer_size() // QUANTUM
