"""What stands in front of every request: which names and pages it may come by, its key, its size."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from linscale.serve.errors import ApiError

LOCAL = ("localhost", "127.0.0.1", "::1")
OPEN = ("/health", "/")
"""Paths that need no key."""
DISCARD_S = 5.0  # how long the rest of a request that is too large is taken, so that its client reads the answer


class HostGuard:
    """Refuses requests that a web page of another site had a browser send.

    A page whose name was made to point at this machine ("DNS rebinding") is known by the Host header, any other by
    its Origin.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] | None, origins: Sequence[str]) -> None:
        """`hosts`: names that the server answers to, None for any. `origins`: pages that may use it."""
        self._app, self._origins = app, tuple(origin.rstrip("/") for origin in origins)
        self._hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self._problem(Headers(scope=scope))):
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _problem(self, headers: Headers) -> ApiError | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._hosts is not None and _name(host) not in self._hosts:
            return ApiError(
                403, f"Host {host!r}: not a name of this server; allow it with --allowed-host", code="unknown_host"
            )
        if origin is None or origin in self._origins or "*" in self._origins:
            return None
        if origin.partition("://")[2] == host:
            return None
        return ApiError(403, f"Origin {origin!r}: not allowed; allow it with --cors-origin", code="unknown_origin")


def names_of(bound: str, allowed: Sequence[str]) -> Sequence[str] | None:
    """The names that a server answers to when it is bound to an address; None for any."""
    try:
        local = ipaddress.ip_address(bound).is_loopback
    except ValueError:
        local = bound == "localhost"
    return (*LOCAL, bound, *allowed) if local or allowed else None


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


class KeyGuard:
    """Refuses requests without one of the keys, compared in constant time. Without keys all may pass."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app, self._digests = app, [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digests and scope["path"] not in OPEN:
            scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not self._knows(key.strip()):
                message = "a key is needed: send Authorization: Bearer KEY" if not key else "this key is not known"
                await ApiError(401, message, code="invalid_api_key").response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _knows(self, key: str) -> bool:
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


class BodyLimit:
    """Takes the body of a request, of at most so many bytes and in so many seconds, before anything looks at it."""

    def __init__(self, app: ASGIApp, most_bytes: int, most_s: float) -> None:
        self._app, self._most_bytes, self._most_s = app, most_bytes, most_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._most_s):
                body = await self._read(receive)
        except TimeoutError:
            error = ApiError(408, f"the request did not arrive within {self._most_s:g} s", code="timeout")
            await error.response()(scope, receive, send)
            return
        except _TooLargeError:
            message = f"the request is larger than {self._most_bytes} bytes, which is the limit"
            await ApiError(413, message, code="request_too_large").response()(scope, receive, send)
            return
        if body is None:
            return  # the client left
        given = False

        async def whole() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, whole, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None where the client left in the middle of it."""
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._most_bytes:
                await _discard(receive, message)
                raise _TooLargeError
            if not message.get("more_body", False):
                return b"".join(parts)


class _TooLargeError(Exception):
    """A body has more bytes than are allowed."""


async def _discard(receive: Receive, message: Message) -> None:
    """Take the rest of a body for some seconds."""
    try:
        async with asyncio.timeout(DISCARD_S):
            while message.get("more_body", False):
                message = await receive()
    except TimeoutError:
        pass
