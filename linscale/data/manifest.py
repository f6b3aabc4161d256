"""The manifest of a prepared corpus: what it holds, and how it was made."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from linscale.config import config
from linscale.data.tokenizer import Tokenizer

FORMAT, VERSION = "linscale-tokens", 1
MANIFEST, JOURNAL = "manifest.json", "journal.json"
SPLITS = ("train", "val")
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
    revision: str = ""
    """The commit of a dataset on the Hub; the checksum or time by which a host tells versions apart; else empty."""


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
    """Digits of what identifies every source: path or URL, size, and modification time, checksum or revision."""
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
