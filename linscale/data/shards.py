"""The prepared corpus: a folder of token shards with a manifest.

    manifest.json  tokenizer.json
    train-00000.bin   token ids, little-endian uint16, or uint32 for more than 65536 ids
    train-00000.docs  int64, where each document of the shard starts, counted in tokens from the shard's start
    val-00000.bin  val-00000.docs

A document is stored as [eos] + tokens: the end-of-text token opens it, so that it predicts the document's first
token and is itself the target of the last token of the document before. One more eos closes the split. A shard
holds whole documents; those of a split end to end are one sequence, in which positions are counted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from linscale.config import UserError, config, fingerprint, parse
from linscale.data.tokenizer import Tokenizer, load_tokenizer
from linscale.run_folder import read_json

FORMAT, VERSION = "linscale-tokens", 1
MANIFEST, JOURNAL = "manifest.json", "journal.json"
SPLITS = ("train", "val")
START = np.dtype("<i8")
REMEDY = "delete the folder and run `linscale data prepare` again"


@config
class FileRecord:
    """A file of the folder."""

    name: str
    bytes: int
    sha256: str


@config
class ShardRecord:
    """A finished shard: its counts and its two files."""

    tokens: int
    documents: int
    bin: FileRecord
    docs: FileRecord


@config
class SplitRecord:
    """One split. `tokens` counts one eos a document and the closing one; `text_bytes` is UTF-8, without any eos."""

    tokens: int
    documents: int
    text_bytes: int
    bytes_per_token: float
    shards: tuple[ShardRecord, ...]


@config
class TokenizerRecord:
    """What `tokenizer.json` of the folder holds."""

    name: str
    fingerprint: str
    vocab_size: int
    eos_id: int


@config
class SourceRecord:
    """An input file, as the user named it."""

    name: str
    bytes: int


@config
class Manifest:
    """What a prepared corpus holds and how it was made."""

    format: str = FORMAT
    version: int = VERSION
    code_version: str
    dtype: Literal["uint16", "uint32"]
    tokenizer: TokenizerRecord
    settings: dict[str, Any]
    inputs_fingerprint: str
    """Digits of the path, size and modification time of every source."""
    sources: tuple[SourceRecord, ...]
    left_out: tuple[str, ...]
    """Files found in input folders whose suffix is not accepted."""
    splits: dict[str, SplitRecord]
    """'train' and 'val'."""


def file_record(path: Path) -> FileRecord:
    """Size and SHA-256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(name=path.name, bytes=path.stat().st_size, sha256=digest)


def tokenizer_record(tokenizer: Tokenizer) -> TokenizerRecord:
    """What the manifest says of a tokenizer."""
    names = ("name", "fingerprint", "vocab_size", "eos_id")
    return TokenizerRecord(**{name: getattr(tokenizer, name) for name in names})


class TokenDataset:
    """A prepared corpus, memory-mapped. `split` is 'train' or 'val'; positions count tokens from the split's start."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Use `open`, which checks the folder."""
        self.folder = folder
        self.manifest = manifest
        self.vocab_size = manifest.tokenizer.vocab_size
        self.eos_id = manifest.tokenizer.eos_id
        self._dtype = np.dtype(manifest.dtype).newbyteorder("<")
        # Where each shard begins in its split, and after the last one where the split ends.
        self._bounds = {
            name: np.cumsum([0, *(shard.tokens for shard in split.shards)]) for name, split in manifest.splits.items()
        }
        self._maps: dict[str, np.ndarray] = {}

    @classmethod
    def open(cls, folder: str | Path, verify: bool = False) -> TokenDataset:
        """Open a folder that `linscale data prepare` made; checks every file's size, with `verify` its checksum.

        Raises UserError when the folder is not a finished corpus, or a file is missing or damaged.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.is_file() and (folder / JOURNAL).is_file():
            raise UserError(f"{folder}: unfinished corpus; run the same `linscale data prepare` again to finish it")
        if not path.is_file():
            raise UserError(f"{folder}: not a prepared corpus (no {MANIFEST}); make one with `linscale data prepare`")
        values = read_json(path)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise UserError(f"{path}: not the manifest of a linscale corpus")
        if values.get("version") != VERSION:
            raise UserError(f"{path}: format version {values.get('version')!r}; this linscale reads version {VERSION}")
        dataset = cls(folder, parse(Manifest, values, source=str(path)))
        for name, split in dataset.manifest.splits.items():
            stored = sum(shard.bin.bytes for shard in split.shards)
            if not split.tokens == dataset._bounds[name][-1] == stored // dataset._dtype.itemsize:
                raise UserError(f"{path}: the counts of split '{name}' contradict each other; {REMEDY}")
        for record in dataset._files():
            dataset._check_size(record)
        if verify:
            dataset.verify()
        return dataset

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the tokenizer and of all checksums: equal digits, equal tokens."""
        return fingerprint([self.manifest.tokenizer.fingerprint, *(file.sha256 for file in self._files())])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer the corpus was made with. Raises UserError when the folder holds another one."""
        tokenizer = load_tokenizer(self.folder)
        if tokenizer.fingerprint != self.manifest.tokenizer.fingerprint:
            raise UserError(f"{self.folder / 'tokenizer.json'}: not the tokenizer this corpus was made with; {REMEDY}")
        return tokenizer

    def tokens(self, split: str) -> int:
        """The number of tokens of a split, all eos included."""
        return self._split(split).tokens

    def bytes_per_token(self, split: str) -> float:
        """Bytes of text per token: bits per byte = nats per token / (ln 2 * bytes per token)."""
        return self._split(split).bytes_per_token

    def verify(self, *, at_most: int | None = None) -> None:
        """Read every file and compare its SHA-256; does nothing for a corpus of more than `at_most` bytes.

        Raises UserError naming the first file that differs.
        """
        if at_most is not None and sum(record.bytes for record in self._files()) > at_most:
            return
        for record in self._files():
            self._check_size(record)
            if file_record(self.folder / record.name) != record:
                raise UserError(f"{self.folder / record.name}: damaged (its checksum differs); {REMEDY}")

    def read(self, split: str, start: int, stop: int) -> np.ndarray:
        """The tokens at positions [start, stop), int64. Raises UserError when they are not all inside the split."""
        parts = [np.empty(0, np.int64)]
        for shard, begin in self._shards_of(split, start, stop):
            parts.append(self._map(shard.bin, self._dtype)[max(start - begin, 0) : stop - begin])
        return np.concatenate(parts, dtype=np.int64)

    def document_starts(self, split: str, start: int, stop: int) -> np.ndarray:
        """The positions in [start, stop) that open a document, ascending, int64."""
        parts = [np.empty(0, np.int64)]
        for shard, begin in self._shards_of(split, start, stop):
            starts = self._map(shard.docs, START)
            first, last = np.searchsorted(starts, [start - begin, stop - begin])
            parts.append(starts[first:last] + begin)
        return np.concatenate(parts, dtype=np.int64)

    def windows(self, split: str, starts: np.ndarray, width: int) -> np.ndarray:
        """The `width` tokens from each of `starts`, int64 of shape (len(starts), width)."""
        bounds, shards = self._bounds[split], self._split(split).shards
        tokens = np.empty((len(starts), width), np.int64)
        which = np.searchsorted(bounds, starts, side="right") - 1
        whole = starts + width <= bounds[which + 1]
        for number in np.unique(which[whole]):
            rows = whole & (which == number)
            views = np.lib.stride_tricks.sliding_window_view(self._map(shards[number].bin, self._dtype), width)
            tokens[rows] = views[starts[rows] - bounds[number]]
        for row in np.flatnonzero(~whole):
            tokens[row] = self.read(split, int(starts[row]), int(starts[row]) + width)
        return tokens

    def _split(self, split: str) -> SplitRecord:
        if split not in self.manifest.splits:
            raise UserError(f"split = {split!r}: expected one of {', '.join(self.manifest.splits)}")
        return self.manifest.splits[split]

    def _shards_of(self, split: str, start: int, stop: int) -> Iterator[tuple[ShardRecord, int]]:
        """The shards that hold positions [start, stop), each with the position where it begins."""
        record, bounds = self._split(split), self._bounds[split]
        if not 0 <= start <= stop <= record.tokens:
            raise UserError(f"tokens [{start}, {stop}) of split '{split}': it holds {record.tokens} tokens")
        first, last = np.searchsorted(bounds, [start, stop], side="right") - 1
        for number in range(first, min(last + 1, len(record.shards))):
            yield record.shards[number], int(bounds[number])

    def _files(self) -> list[FileRecord]:
        splits = self.manifest.splits.values()
        return [file for split in splits for shard in split.shards for file in (shard.bin, shard.docs)]

    def _check_size(self, record: FileRecord) -> None:
        path = self.folder / record.name
        try:
            size = os.stat(path).st_size
        except OSError:
            raise UserError(f"{path}: missing; {REMEDY}") from None
        if size != record.bytes:
            raise UserError(f"{path}: damaged ({size} bytes, the manifest says {record.bytes}); {REMEDY}")

    def _map(self, record: FileRecord, dtype: np.dtype[Any]) -> np.ndarray:
        """The file, mapped once. Its size is checked every time: reading beyond a shrunken file kills the process."""
        self._check_size(record)
        if record.name not in self._maps:
            path = self.folder / record.name
            self._maps[record.name] = np.memmap(path, dtype, mode="r") if record.bytes else np.empty(0, dtype)
        return self._maps[record.name]


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
