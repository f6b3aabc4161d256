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

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from linscale.config import UserError, fingerprint, parse
from linscale.data.manifest import (
    FORMAT,
    JOURNAL,
    MANIFEST,
    REMEDY,
    VERSION,
    FileRecord,
    Manifest,
    ShardRecord,
    SplitRecord,
    file_record,
)
from linscale.data.tokenizer import Tokenizer, load_tokenizer
from linscale.run_folder import read_json

START = np.dtype("<i8")

QUICK_BYTES = 1 << 30  # up to this size a corpus is compared with its checksums whenever it is used: a second or two


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
