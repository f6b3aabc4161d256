"""Faults: what an exception of a file system says in one line, its remedy, and whether trying again may help.

fsspec hands on the exceptions of the package behind a protocol (aiohttp, botocore, ...), or wraps them. They are told
apart by their HTTP status and their class's name, so that none of these packages has to be installed.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from linscale.config import UserError

T = TypeVar("T")
WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0)
"""Between the attempts to read: two minutes of outage are sat out."""
LOOK_UP_WAITS_S = (1.0, 2.0)
"""Between the attempts to look an input up, while somebody may be waiting for the error."""
BROKEN_OFF = (errno.EIO, errno.EPIPE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNABORTED, errno.EAGAIN)
CREDENTIALS = (
    "log in with the host's own tools (aws configure, gcloud auth application-default login), or set access keys; "
    "for a public bucket set FSSPEC_S3_ANON=true or FSSPEC_GS_TOKEN=anon"
)


class Fault(NamedTuple):
    """What went wrong, with the remedy, and whether it may be over at the next attempt."""

    text: str
    transient: bool


def fault(error: BaseException) -> Fault:
    """What an exception means for the user."""
    chain = list(_chain(error))
    names = [type(each).__name__ for each in chain]
    status = next((code for code in map(_status, chain) if code), None)
    teller = next((each for each in chain if " " in str(each)), chain[-1])  # fsspec puts a bare URL outside
    said = f"{type(teller).__name__}: {' '.join(str(teller).split())}".removesuffix(": ")
    if any("Payload" in name or "Incomplete" in name for name in names):  # aiohttp gives its cause a status of 400
        return Fault(f"broken off ({said})", True)
    if any("Credential" in name or "TokenRetrieval" in name for name in names):
        return Fault(f"no credentials ({said}); {CREDENTIALS}", False)
    if status in (401, 403) or isinstance(error, PermissionError):
        return Fault(f"access denied ({said}); {CREDENTIALS}", False)
    if status in (404, 410) or (isinstance(error, FileNotFoundError) and len(chain) == 1):
        return Fault(f"not found ({said})", False)
    if status in (408, 425, 429) or (status or 0) >= 500:
        return Fault(f"the host fails ({said}); try again later", True)
    if status:
        return Fault(f"the host refuses ({said})", False)
    if any("Connect" in name or "DNS" in name or "Timeout" in name for name in names):
        return Fault(f"cannot be reached ({said}); check the address and the network", True)
    return Fault(f"cannot be read ({said})", _breaks_off(chain))


def persist(action: Callable[[], T], waits_s: tuple[float, ...], prefix: str, raised: type[UserError], end: str) -> T:
    """What `action` returns; it is tried again after transient faults, with pauses of `waits_s` seconds.

    Raises `raised` with `prefix`, the fault, and `end` when it was transient to the last. A UserError passes as it is.
    """
    for wait_s in (*waits_s, None):
        try:
            return action()
        except UserError:
            raise
        except Exception as error:
            text, transient = fault(error)
            if not transient or wait_s is None:
                raise raised(f"{prefix}{text}{end if transient else ''}") from None
        time.sleep(wait_s)
    raise AssertionError


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and its causes, from the outside to the inside."""
    inner: BaseException | None = error
    while inner is not None:
        yield inner
        inner = inner.__cause__


def _status(error: BaseException) -> int | None:
    """The HTTP status in an exception of aiohttp, gcsfs, huggingface_hub or botocore."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for holder, name in ((error, "status"), (response, "status_code"), (error, "code")):
        if isinstance(code := getattr(holder, name, None), int):
            return code
    return response if isinstance(response, int) else None


def _breaks_off(chain: list[BaseException]) -> bool:
    """Whether a transfer broke: errors of the connection, of the payload, and an end before the end."""
    names = ("Disconnected", "Protocol", "Client", "Server", "Connection", "EndOfFile")
    broken = (ConnectionError, EOFError)
    return any(
        isinstance(each, broken)
        or (isinstance(each, OSError) and each.errno in BROKEN_OFF)
        or any(name in type(each).__name__ for name in names)
        for each in chain
    )
