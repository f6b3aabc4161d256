"""The journal of a preparation: where it stands, so that one that was killed goes on from there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from linscale.config import UserError, config, parse, to_dict
from linscale.data.manifest import JOURNAL, Manifest, SourceRecord
from linscale.data.tokenizer import FILE as TOKENIZER_FILE
from linscale.data.writer import SplitState
from linscale.run_folder import read_json, write_json


@config
class Journal:
    """Where an unfinished preparation stands."""

    settings: dict[str, Any]
    inputs_fingerprint: str
    sources: tuple[SourceRecord, ...] = ()
    position: tuple[int, int] = (0, 0)
    """Source and document in it, from which reading goes on."""
    splits: dict[str, SplitState]


def require_same(out: Path, found: Journal | Manifest, wanted: Journal, defaults: dict[str, Any]) -> None:
    """Raises UserError when `out` was made, or begun, from other inputs or with other settings.

    `defaults` are those of settings that a version which did not have them yet has left out.
    """
    there = {**defaults, **found.settings}
    pairs = {name: (there.get(name), wanted.settings.get(name)) for name in sorted({*there, *wanted.settings})}
    changes = [f"{name} {old!r}, now {new!r}" for name, (old, new) in pairs.items() if old != new]
    if found.inputs_fingerprint != wanted.inputs_fingerprint:
        changes.append("other or changed input files" + _moved(found.sources, wanted.sources))
    if changes:
        raise UserError(f"out = {out}: holds another corpus ({'; '.join(changes)}); choose another --out or delete it")


def _moved(there: Sequence[SourceRecord], now: Sequence[SourceRecord]) -> str:
    """The first input that has another revision now, in words, or nothing."""
    for old, new in zip(there, now, strict=False):
        if old.name == new.name and old.revision != new.revision:
            hint = ", which hf:NAME@REVISION pins" if old.name.startswith("hf:") else ""
            return f": {old.name} was at revision {old.revision or '?'}{hint}, and is at {new.revision or '?'} now"
    return ""


def resume_or_begin(out: Path, journal: Journal, defaults: dict[str, Any]) -> Journal:
    """The journal of a preparation that was interrupted, or `journal`, written, in an empty folder.

    A journal that records no closed shard holds nothing worth keeping: with other settings it is begun again.
    """
    path = out / JOURNAL
    if path.exists():
        found: Journal = parse(Journal, read_json(path), source=str(path))
        if found.position == (0, 0) and found != journal:
            write_json(path, to_dict(journal))
            for left in (out / TOKENIZER_FILE, *out.glob("*.bin"), *out.glob("*.docs"), *out.glob(".*.part")):
                left.unlink(missing_ok=True)
            return journal
        require_same(out, found, journal, defaults)
        return found
    if any(not file.name.startswith(".") for file in out.iterdir()):
        raise UserError(f"out = {out}: holds files that are not a linscale corpus; choose an empty or new folder")
    write_json(path, to_dict(journal))
    return journal
