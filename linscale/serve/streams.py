"""Texts of one request, from the engine's thread into the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from linscale.config import UserError
from linscale.generate.continuation import Piece
from linscale.generate.request import Event, Failed, Finished, Request

if TYPE_CHECKING:
    from linscale.generate.worker import Ticket
    from linscale.serve.service import Service


class Mailbox:
    """Events on their way from the engine's thread. The loop is woken once for all that a step brings."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._posted, self._woken = loop, deque[tuple[Streams, int, Event]](), False

    def post(self, streams: Streams, number: int, event: Event) -> None:
        """Called in the engine's thread."""
        self._posted.append((streams, number, event))
        if not self._woken:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False
        while self._posted:
            streams, number, event = self._posted.popleft()
            streams.take(number, event)


class Streams:
    """The texts that one request has the engine read and write, numbered in the order that they were started.

    Used as a context manager: what still runs at its end is cancelled.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._began = time.monotonic()
        self._running: dict[int, Ticket] = {}
        self._started = 0
        self._events: list[tuple[int, Event]] = []
        self._arrived = asyncio.Event()
        self._has_token = False

    def __enter__(self) -> Streams:
        self._service.open_streams.add(self)
        return self

    def __exit__(self, *error: object) -> None:
        for ticket in self._running.values():
            ticket.cancel()
        self._running.clear()
        self._service.open_streams.discard(self)

    def start(self, request: Request) -> int:
        """Have a text read or written; returns its number. Raises UserError for one that cannot be, and ApiError where
        the engine has stopped."""
        number, mailbox, worker = self._started, self._service.mailbox, self._service.worker
        try:
            self._running[number] = worker.submit(request, lambda event: mailbox.post(self, number, event))
        except UserError:
            self._service.check_alive()
            raise
        self._started += 1
        return number

    async def events(self) -> AsyncIterator[list[tuple[int, Event]]]:
        """What came since the last time, with the numbers of the texts, until no text runs."""
        while self._running or self._events:
            await self._arrived.wait()
            self._arrived.clear()
            events, self._events = self._events, []
            for number, event in events:
                if isinstance(event, Finished | Failed):
                    self._running.pop(number, None)
            if events:
                yield events

    def take(self, number: int, event: Event) -> None:
        """Called in the loop, with an event of a text."""
        if number not in self._running:
            return  # it was cancelled
        metrics = self._service.metrics
        if isinstance(event, Piece) and not self._has_token:
            self._has_token = True
            metrics.first_token_s.observe(time.monotonic() - self._began)
        if isinstance(event, Finished) and self._has_token:
            metrics.text_ended(time.monotonic() - self._began)
        self._events.append((number, event))
        self._arrived.set()

    def abandon(self, message: str) -> None:
        """End all texts as failed."""
        for number, ticket in self._running.items():
            ticket.cancel()
            self._events.append((number, Failed(message)))
        self._arrived.set()
