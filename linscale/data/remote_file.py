"""A remote file as a file object that outlasts transient faults: it goes on at the byte where the transfer broke."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any

from linscale.config import UserError
from linscale.data.faults import WAITS_S, persist

BLOCK_BYTES = 8 << 20
"""Fetched by one request; memory holds about two of them."""
SILENCE_S = 60
"""A web host that sends nothing for so long counts as broken off."""
NO_RANGES = "the host serves no byte ranges, which reading Parquet needs; download it and give the file"
AGAIN = "; run the same command again to go on from there"


class RemoteReader(io.RawIOBase):
    """Reads a file of `filesystem` from `path`, in blocks by range requests.

    A web server that serves no ranges is streamed; after a fault its file is read again from the start and thrown
    away up to where it was. `require_same` is called before every (re)opening and at the end.
    """

    def __init__(self, name: str, filesystem: Any, path: str, size: int, require_same: Callable[[], None]) -> None:
        super().__init__()
        self._name, self._filesystem, self._path, self.size = name, filesystem, path, size
        self._require_same = require_same
        self._position, self._ranges, self._jumped = 0, True, False
        self._file: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        """Bytes before the next one read."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a byte. Where the host serves no ranges, the next read raises a UserError."""
        target = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if target != self._position:
            self._drop()
            self._position, self._jumped = target, True
        return self._position

    def read(self, size: int = -1) -> bytes:
        """`size` bytes, or all, less only at the end. Raises UserError when the fault stays, or is not transient."""
        left = self.size - self._position if size < 0 else min(size, self.size - self._position)
        parts = []
        while left > 0:
            prefix = f"{self._name}: byte {self._position}: "
            parts.append(persist(lambda: self._part(left), WAITS_S, prefix, UserError, AGAIN))  # noqa: B023
            left -= len(parts[-1])
            self._position += len(parts[-1])
            if self._position == self.size:
                persist(self._require_same, WAITS_S, prefix, UserError, AGAIN)
        return b"".join(parts)

    def close(self) -> None:
        """Let go of the connection for good."""
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _part(self, size: int) -> bytes:
        """At least one byte from the current position, at most `size`."""
        try:
            if self._file is None:
                self._require_same()
                self._file = self._opened()
            data: bytes = self._file.read(size)
            if not data:
                raise EOFError(f"the host ends it there, of {self.size} bytes")
            return data
        except Exception as error:
            self._drop()
            if self._ranges and isinstance(error, ValueError) and "range requests" in str(error):
                if self._jumped:
                    raise UserError(f"{self._name}: {NO_RANGES}") from None
                self._ranges = False
                return self._part(size)
            raise

    def _opened(self) -> Any:
        """The file at the current position."""
        web = "http" in self._filesystem.protocol
        options: dict[str, Any] = {"block_size": BLOCK_BYTES, "cache_type": "readahead"}
        if web:
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_S, sock_read=SILENCE_S)
            options |= {"timeout": timeout, "size": self.size, "headers": {"Accept-Encoding": "identity"}}
        if self._ranges:
            file = self._filesystem.open(self._path, "rb", **options)
            file.seek(self._position)
            return file
        file = self._filesystem.open(self._path, "rb", **options | {"block_size": 0})
        left = self._position
        while left > 0:
            skipped = len(file.read(min(left, BLOCK_BYTES)))
            if not skipped:
                raise EOFError(f"the host ends it at byte {self._position - left}")
            left -= skipped
        return file
