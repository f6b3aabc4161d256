"""Documents: the texts of a source, in order, a bounded piece of text at a time."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple, TypeAlias

from linscale.config import UserError
from linscale.data.decompress import decompress
from linscale.data.hub import KIND, DatasetFile
from linscale.data.parquet import parquet_texts
from linscale.data.sources import Source

READ_BYTES = 1 << 20


class Document(NamedTuple):
    """A text, and how many bytes of its source file had been read when it was complete."""

    text: str
    bytes_read: int


Documents: TypeAlias = Iterator[Document]


def read_documents(
    source: Source, *, text_field: str = "text", document_bytes: int | None = None
) -> Iterator[Document]:
    """The documents of one source in order. Empty texts are skipped, a byte order mark at the start of a file too.

    With `document_bytes`, a longer document comes as several: it is cut after the last line end within the limit
    (between characters where a line is longer), and the pieces concatenate to it. A .txt is then streamed.
    Raises UserError naming the file, and line, row or byte: damaged compression, bytes that are not UTF-8 text,
    bad JSON, a missing field, a source without text.
    """
    empty = True
    try:
        for document in READERS[source.kind](source, text_field, document_bytes):
            if document.text:
                empty = False
                yield document
    except OSError as error:
        raise UserError(f"{source.name}: cannot be read: {error.strerror or error}") from None
    if empty:
        raise UserError(f"{source.name}: no text in it")


def _read_txt(source: Source, text_field: str, document_bytes: int | None) -> Documents:
    offset = 0
    with source.open() as file:
        chunks = _chunks(source, file)
        pieces = cut(chunks, document_bytes) if document_bytes else [b"".join(chunks)]
        for piece in pieces:
            yield Document(_decode(piece, source.name, offset), file.tell())
            offset += len(piece)


def _read_jsonl(source: Source, text_field: str, document_bytes: int | None) -> Documents:
    with source.open() as file:
        for number, line in enumerate(_lines(_chunks(source, file)), start=1):
            if line.isspace() or not line:
                continue
            place = f"{source.name} line {number}"
            try:
                record = json.loads(_decode(line, place))
            except (json.JSONDecodeError, RecursionError) as error:
                raise UserError(f"{place}: not JSON ({error}); expected one object a line") from None
            text = record.get(text_field) if isinstance(record, dict) else None
            if not isinstance(text, str):
                found = f"keys {', '.join(record)}" if isinstance(record, dict) else type(record).__name__
                raise UserError(f"{place}: no string in field '{text_field}' (found {found}); set text_field")
            for piece in _cut_text(text, document_bytes, place):
                yield Document(piece, file.tell())


def _read_parquet(source: Source, text_field: str, document_bytes: int | None) -> Documents:
    for number, (text, total) in enumerate(parquet_texts(source, text_field), start=1):
        for piece in _row(source, number, text, text_field, document_bytes):
            yield Document(piece, source.size * number // total)


def _read_dataset(source: Source, text_field: str, document_bytes: int | None) -> Documents:
    assert isinstance(source, DatasetFile)
    read = 0
    for number, text in enumerate(source.texts(text_field), start=1):
        for piece in _row(source, number, text, text_field, document_bytes):
            read += len(piece)
            yield Document(piece, min(source.size, source.size * read // source.text_bytes))


def _row(source: Source, number: int, text: object, text_field: str, document_bytes: int | None) -> Iterator[str]:
    """The pieces of what a column holds in a row."""
    place = f"{source.name} row {number}"
    if not isinstance(text, str):
        found = "null" if text is None else type(text).__name__
        raise UserError(f"{place}: column '{text_field}' is {found}; expected text")
    return _cut_text(text, document_bytes, place)


READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet, KIND: _read_dataset}


def _chunks(source: Source, file: BinaryIO) -> Iterator[bytes]:
    """The decompressed bytes of an open file, without a byte order mark at its start."""
    chunks = iter(lambda: file.read(READ_BYTES), b"")
    if source.compression:
        chunks = decompress(source.name, source.compression, file)
    for first in chunks:
        yield first.removeprefix(codecs.BOM_UTF8)
        break
    yield from chunks


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        parts.append(first)
        if rest:
            yield b"".join(parts)
            yield from rest[:-1]
            parts = [rest[-1]]
    yield b"".join(parts)


def cut(chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """Cut a stream of UTF-8 into pieces of at most `limit` bytes (at least 4), each as long as whole lines allow.

    A line longer than `limit` is cut between characters. Where the cuts fall does not depend on the chunks.
    """
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
        start = 0
        while len(buffer) - start > limit:
            end = buffer.rfind(b"\n", start, start + limit) + 1
            if not end:
                end = start + limit
                while buffer[end] & 0xC0 == 0x80 and end > start + limit - 3:  # inside a character
                    end -= 1
            yield bytes(buffer[start:end])
            start = end
        del buffer[:start]
    if buffer:
        yield bytes(buffer)


def _cut_text(text: str, limit: int | None, place: str) -> Iterator[str]:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{place}: half a surrogate pair in the text; expected valid Unicode") from None
    if limit is None or len(data) <= limit:
        yield text
    else:
        yield from (piece.decode() for piece in cut([data], limit))


def _decode(data: bytes, place: str, offset: int = 0) -> str:
    """UTF-8 text without NUL bytes; errors name the byte, counted from the start of the decompressed file or line."""
    nul = data.find(b"\0")
    if nul >= 0:
        raise UserError(f"{place}: NUL at byte {offset + nul}: binary or UTF-16; expected UTF-8 text")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: byte {offset + error.start} is not UTF-8; expected UTF-8 text") from None
