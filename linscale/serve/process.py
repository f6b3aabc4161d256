"""A server as a process: it listens until it is told to stop, and then lets running texts end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from linscale.config import UserError
from linscale.serve.service import Service

ABANDONED = "the server shut down before the text ended"
LAST_S = 5  # for answers that are being sent when all texts have ended or were given up


class Server(uvicorn.Server):
    """uvicorn, which leaves signals to `run`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: see `run`."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address; port 0 takes a free one. Raises UserError where that is not possible."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        found = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(f"host = {host!r}: {error.strerror}; expected a name or address of this machine") from None
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise UserError(f"port = {port}: cannot listen at {host} ({error.strerror}); take another --port") from None
    return found


def run(app: FastAPI, bound: socket.socket, drain_s: float, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, then take no more requests, and give running texts `drain_s` seconds.

    A second signal ends them at once. `ready` is called when the server listens.
    """
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=LAST_S
    )
    asyncio.run(_serve(Server(config), app, bound, drain_s, ready))


async def _serve(server: Server, app: FastAPI, bound: socket.socket, drain_s: float, ready: Callable[[], None]) -> None:
    loop, stops = asyncio.get_running_loop(), asyncio.Event()
    again = asyncio.Event()

    def stop(*_: object) -> None:
        (again if stops.is_set() else stops).set()

    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    try:
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if not serving.done():
            ready()
            stopping = asyncio.create_task(stops.wait())
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            await drain(app.state.service, drain_s, again)
            server.should_exit = True
        await serving
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def drain(service: Service, seconds: float, again: asyncio.Event) -> None:
    """Take no more requests, and wait for the texts that are being written; then give them up."""
    service.draining = True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while service.admitted and not again.is_set():
                await asyncio.sleep(0.05)
    for streams in list(service.open_streams):
        streams.abandon(ABANDONED)
