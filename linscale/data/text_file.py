"""A text file as tokens, a bounded piece at a time: the tokens are those of the whole text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from linscale.config import UserError
from linscale.data.decompress import DECOMPRESSORS
from linscale.data.documents import read_documents
from linscale.data.sources import LocalFile
from linscale.data.tokenizer import LINE_START, Tokenizer

PIECE_BYTES = 1 << 20


def file_tokens(tokenizer: Tokenizer, path: Path) -> Iterator[tuple[np.ndarray, int]]:
    """The tokens of a UTF-8 text file, also .gz, .zst or .xz, with the bytes of the file that were read by then.

    Cut where a line starts with a word, which byte-level tokenizers do as well; a tokenizer of another kind gets the
    whole text at once. Raises UserError naming the file: missing, empty, not UTF-8.
    """
    if not path.is_file():
        raise UserError(f"file {path}: no such file")
    status, suffix = path.stat(), path.suffix.lower()
    if status.st_size == 0:
        raise UserError(f"file {path}: is empty; expected text")
    compression = suffix if suffix in DECOMPRESSORS else ""
    source = LocalFile(f"file {path}", ".txt", compression, status.st_size, str(path), (), "", path)
    left = ""
    for document in read_documents(source, document_bytes=PIECE_BYTES):
        text = left + document.text
        cut = _last_cut(text) if tokenizer.in_pieces else 0
        left = text[cut:]
        if cut:
            yield tokenizer.encode_batch([text[:cut]])[0], document.bytes_read
    yield tokenizer.encode_batch([left])[0], status.st_size


def _last_cut(text: str) -> int:
    """The last place where a word starts a line behind a single line end, or 0."""
    end = len(text)
    while (place := text.rfind("\n", 0, end)) > 0:
        if LINE_START.match(text, place):
            return place + 1
        end = place
    return 0
