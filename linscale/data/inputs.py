"""Inputs: what the user names, looked up; every input becomes sources, in a fixed order.

PATH                                 a file, or a folder, searched recursively
builtin:NAME                         a text that ships with the package
hf:NAME[@REVISION][:CONFIG][:SPLIT]  a dataset on the Hugging Face Hub, or a folder laid out like one
PROTOCOL://...                       what fsspec opens: s3, gs, https, ...; a file, a folder, or a pattern
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from linscale.config import UserError
from linscale.data.hub import dataset_files
from linscale.data.remote import remote_files
from linscale.data.sources import ACCEPTED, BUILTIN, CORPORA, Source, UnavailableInputError, local_file, suffixes

DATASET = "hf:"
LOCAL = ("file://", "local://")


def find_sources(inputs: Sequence[str]) -> tuple[list[Source], list[str]]:
    """The sources of `inputs` in order, and the names of files left out of folders.

    Hidden files of folders are passed over. Raises UserError for what is missing, empty, out of reach or given twice,
    and for a suffix that is not accepted.
    """
    sources: list[Source] = []
    left_out: list[str] = []
    for name in inputs:
        if name.startswith(DATASET) and not name.startswith(f"{DATASET}//"):
            found, others = list[Source](dataset_files(name, name.removeprefix(DATASET))), list[str]()
        elif "://" in name and not name.startswith(LOCAL):
            found, others = remote_files(name)
        else:
            found, others = _local_files(name)
        sources += found
        left_out += others
    if not sources:
        raise UserError(f"input {', '.join(inputs) or '(none)'}: no text in it; accepted are {ACCEPTED}")
    seen: set[str] = set()
    for source in sources:
        if source.location in seen:
            raise UserError(f"input '{source.name}': given twice")
        seen.add(source.location)
    return sources, left_out


def _local_files(name: str) -> tuple[list[Source], list[str]]:
    path = Path(name.split("://", 1)[1] if name.startswith(LOCAL) else name)
    if name.startswith(BUILTIN):
        path = CORPORA / f"{name.removeprefix(BUILTIN)}.txt"
        if not path.is_file():
            known = ", ".join(sorted(BUILTIN + file.stem for file in CORPORA.glob("*.txt")))
            raise UserError(f"input '{name}': no such builtin corpus; there are {known}")
    if not path.exists():
        raise UnavailableInputError(f"input '{name}': no such file or folder")
    if not path.is_dir():
        return [local_file(name, path)], []
    inside = [(f"{name.rstrip('/')}/{file.relative_to(path).as_posix()}", file) for file in _files(path)]
    sources: list[Source] = [local_file(label, file) for label, file in inside if suffixes(file.name)]
    return sources, [label for label, file in inside if not suffixes(file.name)]


def _files(folder: Path) -> list[Path]:
    """Every file below `folder` that is not hidden, sorted by its path in parts."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    return sorted(found, key=lambda path: path.parts)
