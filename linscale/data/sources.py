"""Sources: the input files of a corpus, in a fixed order.

A source is one file: .txt (one document), .jsonl (one a line) or .parquet (one a row). Folders are searched
recursively in sorted order; hidden files and other suffixes in them are left out. `builtin:NAME` is a text that
ships with the package.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from linscale.config import UserError
from linscale.data.decompress import DECOMPRESSORS

BUILTIN = "builtin:"
CORPORA = Path(__file__).parent / "corpora"
ACCEPTED = ".txt and .jsonl (plain or with .gz, .zst, .xz) and .parquet"


@dataclass(frozen=True)
class Source:
    """One input file: `name` as the user gave it, `size` in bytes on disk, `kind` of .txt, .jsonl, .parquet."""

    name: str
    path: Path
    kind: str
    compression: str
    size: int
    mtime_ns: int

    @property
    def identity(self) -> tuple[str | int, ...]:
        """What changes when the file is another or is written again; a builtin text is the same wherever installed."""
        if self.name.startswith(BUILTIN):
            return self.name, self.size
        return str(self.path), self.size, self.mtime_ns


def find_sources(inputs: Sequence[str]) -> tuple[list[Source], list[str]]:
    """The sources of `inputs` (files, folders, builtin names) in order, and the names of files left out of folders.

    Raises UserError for a missing path, an empty file, a suffix that is not accepted, a file given twice.
    """
    sources: list[Source] = []
    left_out: list[str] = []
    for name in inputs:
        path = CORPORA / f"{name.removeprefix(BUILTIN)}.txt" if name.startswith(BUILTIN) else Path(name)
        if name.startswith(BUILTIN) and not path.is_file():
            known = ", ".join(sorted(BUILTIN + file.stem for file in CORPORA.glob("*.txt")))
            raise UserError(f"input '{name}': no such builtin corpus; there are {known}")
        if not path.exists():
            raise UserError(f"input '{name}': no such file or folder")
        if not path.is_dir():
            sources.append(_source(name, path))
            continue
        inside = [(f"{name.rstrip('/')}/{file.relative_to(path).as_posix()}", file) for file in _files(path)]
        sources += [_source(label, file) for label, file in inside if _suffixes(file)]
        left_out += [label for label, file in inside if not _suffixes(file)]
    if not sources:
        raise UserError(f"input {', '.join(inputs) or '(none)'}: no text in it; accepted are {ACCEPTED}")
    seen: set[Path] = set()
    for source in sources:
        if source.path in seen:
            raise UserError(f"input '{source.name}': given twice")
        seen.add(source.path)
    return sources, left_out


def _files(folder: Path) -> list[Path]:
    """Every file below `folder` that is not hidden, sorted by its path in parts."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    return sorted(found, key=lambda path: path.parts)


def _suffixes(path: Path) -> tuple[str, str] | None:
    """Kind and compression by the name's suffixes, None when they are not accepted."""
    *_, kind, compression = ["", "", *(suffix.lower() for suffix in path.suffixes)]
    if compression in (".txt", ".jsonl", ".parquet"):
        return compression, ""
    if kind in (".txt", ".jsonl") and compression in DECOMPRESSORS:
        return kind, compression
    return None


def _source(name: str, path: Path) -> Source:
    suffixes, status = _suffixes(path), path.stat()
    if suffixes is None:
        raise UserError(f"input '{name}': suffix '{''.join(path.suffixes[-2:])}' is not accepted; {ACCEPTED} are")
    if status.st_size == 0:
        raise UserError(f"input '{name}': empty file")
    return Source(name, path.resolve(), *suffixes, status.st_size, status.st_mtime_ns)
