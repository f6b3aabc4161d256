"""A folder that is whole or not there: made beside its place, and renamed into it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from linscale.config import UserError
from linscale.run_folder import disk_errors


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` when all went well, and is removed otherwise.

    Raises UserError where something is at `out` already, or the disk does not take it.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"out = {out}: exists already; expected the path of a new folder")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(out):
            temporary.mkdir(parents=True)
            yield temporary
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
