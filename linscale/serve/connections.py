"""Connections that clients leave hanging: ended, where uvicorn would keep them for as long as the clients like."""

from __future__ import annotations

import asyncio
import errno
import importlib
import logging
import time
from typing import Any

import uvicorn

QUANTUM = 1 << 14  # bytes of an answer that a client has to take in the time
LOOKS = 4  # in that time
FULL_S = 10.0  # between lines in the log that say that no more connections are accepted
logger = logging.getLogger(__name__)


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


def allow_many() -> None:
    """Raise the number of files that this process may open, connections among them, to what the system lets it."""
    try:
        resource = importlib.import_module("resource")
    except ImportError:
        return  # Windows has no such limit
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (OSError, ValueError):
        logger.debug("the limit of open files stays as it is")


class Full:
    """What a loop does with errors that nobody catches: one line where no more connections fit, for which asyncio calls
    it up to a thousand times a second, with a traceback each."""

    def __init__(self) -> None:
        self._said: float | None = None

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception handler of a loop."""
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)):
            loop.default_exception_handler(context)
        elif self._said is None or time.monotonic() - self._said > FULL_S:
            self._said = time.monotonic()
            logger.warning("no more connections are accepted for now: %s; see ulimit -n", error.strerror)
