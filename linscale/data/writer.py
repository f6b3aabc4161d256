"""Writing one split of a corpus, shard by shard; see shards.py for the format."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from linscale.config import UserError, config
from linscale.data.manifest import REMEDY, ShardRecord, SplitRecord, file_record
from linscale.data.shards import START
from linscale.data.tokenizer import Tokenizer


@config
class SplitState:
    """How far a split is written: its closed shards, and what the open one holds."""

    shards: tuple[ShardRecord, ...] = ()
    open_tokens: int = 0
    open_documents: int = 0
    text_bytes: int = 0


class SplitWriter:
    """Writes one split, shard by shard. What `checkpoint` returned, given back as `state`, continues there exactly.

    The open shard is two hidden files, renamed when it is closed.
    """

    def __init__(self, folder: Path, split: str, tokenizer: Tokenizer, state: SplitState) -> None:
        """Raises UserError when files of the open shard are shorter than `state` says."""
        self._folder, self._split = folder, split
        self._dtype = tokenizer.dtype
        self._eos = np.array([tokenizer.eos_id], self._dtype).tobytes()
        self._shards = list(state.shards)
        self._text_bytes = state.text_bytes
        self._open_shard(state.open_tokens, state.open_documents)

    @property
    def tokens(self) -> int:
        """Tokens so far, without the closing eos."""
        return sum(shard.tokens for shard in self._shards) + self.open_tokens

    @property
    def documents(self) -> int:
        """Documents so far."""
        return sum(shard.documents for shard in self._shards) + self._open_documents

    def add(self, tokens: np.ndarray, text_bytes: int) -> None:
        """Append one document to the open shard: `tokens` of the tokenizer's dtype, the length of its text."""
        self._docs.write(self.open_tokens.to_bytes(START.itemsize, "little"))
        self._bin.write(self._eos)
        self._bin.write(tokens.data)
        self.open_tokens += 1 + len(tokens)
        self._open_documents += 1
        self._text_bytes += text_bytes

    def close_shard(self) -> None:
        """Finish the open shard and begin the next."""
        self._seal()
        self._open_shard(0, 0)

    def checkpoint(self) -> SplitState:
        """Bring everything written to the disk; returns what it takes to continue here."""
        self._sync()
        return SplitState(
            shards=tuple(self._shards),
            open_tokens=self.open_tokens,
            open_documents=self._open_documents,
            text_bytes=self._text_bytes,
        )

    def finish(self) -> SplitRecord:
        """Write the closing eos and close the last shard."""
        self._bin.write(self._eos)
        self.open_tokens += 1
        self._seal()
        tokens, closed = sum(shard.tokens for shard in self._shards), tuple(self._shards)
        documents, text_bytes = sum(shard.documents for shard in closed), self._text_bytes
        ratio = text_bytes / tokens
        return SplitRecord(
            tokens=tokens, documents=documents, text_bytes=text_bytes, bytes_per_token=ratio, shards=closed
        )

    def release(self) -> None:
        """Let go of the files as they are, even when the disk takes no more."""
        for file in (self._bin, self._docs):
            with contextlib.suppress(OSError):
                file.close()

    def _final(self, suffix: str) -> Path:
        return self._folder / f"{self._split}-{len(self._shards):05d}{suffix}"

    def _part(self, suffix: str) -> Path:
        return self._folder / f".{self._final(suffix).name}.part"

    def _open_shard(self, tokens: int, documents: int) -> None:
        self.open_tokens, self._open_documents = tokens, documents
        self._bin = self._open_file(".bin", tokens * self._dtype.itemsize)
        self._docs = self._open_file(".docs", documents * START.itemsize)

    def _open_file(self, suffix: str, size: int) -> BinaryIO:
        """A file of the open shard, cut to `size` bytes and ready to append."""
        part, final = self._part(suffix), self._final(suffix)
        if size and not part.exists() and final.exists():
            os.replace(final, part)  # killed after it was renamed and before that was recorded
        if size and not (part.exists() and part.stat().st_size >= size):
            raise UserError(f"{part}: missing or shorter than recorded; {REMEDY}")
        file = open(part, "r+b" if size else "wb")  # noqa: SIM115 (held open until the shard is closed)
        file.truncate(size)
        file.seek(size)
        return file

    def _sync(self) -> None:
        for file in (self._bin, self._docs):
            file.flush()
            os.fsync(file.fileno())

    def _seal(self) -> None:
        self._sync()
        paths = {suffix: self._final(suffix) for suffix in (".bin", ".docs")}
        for suffix, file in ((".bin", self._bin), (".docs", self._docs)):
            file.close()
            os.replace(self._part(suffix), paths[suffix])
        records = {suffix: file_record(path) for suffix, path in paths.items()}
        counts = {"tokens": self.open_tokens, "documents": self._open_documents}
        self._shards.append(ShardRecord(**counts, bin=records[".bin"], docs=records[".docs"]))
