"""Decompression of .gz, .xz and .zst, a bounded piece at a time; damage and truncation are errors."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import zstandard

from linscale.config import UserError

READ_BYTES = 1 << 14
DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".xz": lzma.LZMADecompressor,
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj(),
}


def decompress(name: str, compression: str, file: BinaryIO) -> Iterator[bytes]:
    """The content of an open file: one or more compressed streams end to end, as the command line tools read them.

    `compression` is a key of DECOMPRESSORS. Raises UserError with `name` and the byte for damage and for an incomplete
    stream.
    """
    decompressor = None
    while data := file.read(READ_BYTES):
        while data:
            if decompressor is None:
                data = data.lstrip(b"\0")  # padding between and after streams
                if not data:
                    break
                decompressor = DECOMPRESSORS[compression]()
            try:
                chunk = decompressor.decompress(data)
            except (zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
                place = f"{name}: damaged {compression} file before byte {file.tell()}"
                raise UserError(f"{place} ({error})") from None
            data = decompressor.unused_data
            if decompressor.eof:
                decompressor = None
            if chunk:
                yield chunk
    if decompressor is not None:
        raise UserError(f"{name}: truncated {compression} file: it ends at byte {file.tell()}, mid-stream")
