"""A folder that is whole or not there: made beside its place, and renamed into it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from linscale.config import UserError, human
from linscale.run_folder import LOCK, disk_errors, locked


@contextlib.contextmanager
def new_folder(out: Path, needed: int = 0) -> Iterator[Path]:
    """A temporary folder that becomes `out` when all went well, and is removed otherwise.

    What a writer of `out` left that was killed is removed first. Raises UserError where something is at `out` already,
    the disk has no room for `needed` bytes, or it does not take them after all.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"out = {out}: exists already; expected the path of a new folder")
    _remove_abandoned(out)
    require_room(out, needed)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(out), locked(temporary):
            yield temporary
        (temporary / LOCK).unlink(missing_ok=True)
        with disk_errors(out):
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_room(out: Path, needed: int) -> None:
    """Raise UserError where the disk that `out` will be on has less than `needed` bytes free."""
    place = next((folder for folder in (out, *out.resolve().parents) if folder.is_dir()), None)
    if place is None:
        return
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"out = {out}: needs {human(needed, 'B')}, its disk has {human(free, 'B')} free; "
            "free space, or choose a place on another disk"
        )


def _remove_abandoned(out: Path) -> None:
    """Temporary folders of `out` that no process holds any more."""
    beside = list(out.parent.iterdir()) if out.parent.is_dir() else []
    for path in beside:
        if path.name.startswith(f".{out.name}.") and path.suffix == ".tmp":
            with contextlib.suppress(UserError):
                with locked(path):
                    pass
                shutil.rmtree(path, ignore_errors=True)
