"""Sources: what a corpus is read from. A source is one file: .txt (one document), .jsonl (one a line) or .parquet
(one a row), on this machine or behind a URL; or one file of a dataset in the layout of the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from linscale.config import UserError
from linscale.data.decompress import DECOMPRESSORS

BUILTIN = "builtin:"
CORPORA = Path(__file__).parent / "corpora"
ACCEPTED = ".txt and .jsonl (plain or with .gz, .zst, .xz) and .parquet"


class UnavailableInputError(UserError):
    """An input that is missing, out of reach, or needs a package that is not installed."""


@dataclass(frozen=True)
class Source:
    """One input file: `name` as the user gave it, `kind` of .txt, .jsonl, .parquet, dataset, `size` in bytes."""

    name: str
    kind: str
    compression: str
    size: int
    location: str
    """The path or URL in full: no two sources of a corpus share it."""
    identity: tuple[str | int, ...]
    """What changes when the file is another or is written again."""
    revision: str
    """The commit of a dataset on the Hub; the checksum or time by which a host tells versions apart; else empty."""

    def open(self) -> BinaryIO:
        """The bytes of the file, from its start."""
        raise NotImplementedError


@dataclass(frozen=True)
class LocalFile(Source):
    """A file on this machine."""

    path: Path

    def open(self) -> BinaryIO:
        return open(self.path, "rb")


def local_file(name: str, path: Path) -> LocalFile:
    """The source at `path`. Raises UserError for an empty file and a suffix that is not accepted."""
    (kind, compression), status, full = accepted(name, path.name), path.stat(), path.resolve()
    require_content(name, status.st_size)
    identity: tuple[str | int, ...] = (str(full), status.st_size, status.st_mtime_ns)
    if name.startswith(BUILTIN):
        identity = name, status.st_size  # the same wherever it is installed
    return LocalFile(name, kind, compression, status.st_size, str(full), identity, "", full)


def suffixes(name: str) -> tuple[str, str] | None:
    """Kind and compression by the suffixes of a file's name, None when they are not accepted."""
    *_, kind, compression = ["", "", *(suffix.lower() for suffix in PurePosixPath(name).suffixes)]
    if compression in (".txt", ".jsonl", ".parquet"):
        return compression, ""
    if kind in (".txt", ".jsonl") and compression in DECOMPRESSORS:
        return kind, compression
    return None


def accepted(name: str, file: str) -> tuple[str, str]:
    """Kind and compression of an input `name` whose file name is `file`, or a UserError."""
    found = suffixes(file)
    if found is None:
        ending = "".join(PurePosixPath(file).suffixes[-2:])
        raise UserError(f"input '{name}': suffix '{ending}' is not accepted; {ACCEPTED} are")
    return found


def require_content(name: str, size: int) -> None:
    """Raises UserError for an empty file."""
    if size == 0:
        raise UserError(f"input '{name}': empty file")
