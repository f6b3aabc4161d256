"""States by name: a folder of files that several processes may use at once.

    <run>/states/NAME.safetensors    see saved_state.py
                 .lock               held while a process writes, copies or deletes

A file is never changed: what has a name is whole, and is replaced as a whole. Reading needs no lock.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import filelock

from linscale.config import UserError
from linscale.data.tokenizer import Tokenizer
from linscale.generate.identity import Identity, identify
from linscale.generate.saved_state import StateRecord, read_record, read_state, write_state
from linscale.generate.session import Session
from linscale.generate.snapshot import Snapshot
from linscale.models import LanguageModel
from linscale.run_folder import disk_errors

FOLDER, SUFFIX, LOCK = "states", ".safetensors", ".lock"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
LOCK_S = 60.0  # how long another process is waited for
logger = logging.getLogger(__name__)


class StateMissingError(UserError):
    """There is no state of a name."""


class StateExistsError(UserError):
    """There is one already."""


class StateStore:
    """The states in one folder, which is made when the first is saved."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def save(
        self, name: str, snapshot: Snapshot, model: LanguageModel, tokenizer: Tokenizer, *, bf16: bool = False,
        replace: bool = False, identity: Identity | None = None,
    ) -> Path:  # fmt: skip
        """Write a state that `model` made of a text of `tokenizer` under a name; returns its file.

        `bf16` halves a state in float32, which it rounds. `identity` is that of a model which was cast since. Raises
        UserError for a name that is not valid or is taken without `replace`, and when the folder cannot be written:
        what was there before stays as it was.
        """
        path = self.require_free(name, replace=replace)
        identity = identity or identify(model, tokenizer)
        with self._locked():
            self.require_free(name, replace=replace)
            write_state(path, snapshot, identity, bf16=bf16)
        return path

    def load(
        self, name: str, model: LanguageModel, tokenizer: Tokenizer, *, identity: Identity | None = None
    ) -> Snapshot:
        """The state of a name, on the device of `model`. Raises UserError when there is none, when it is damaged, and
        when another model or tokenizer made it; `identity` is that of a model which was cast since."""
        path = self.path(name)
        try:
            return read_state(path, model, identity or identify(model, tokenizer))
        except FileNotFoundError:
            raise self._missing(name) from None

    def resume(self, name: str, model: LanguageModel, tokenizer: Tokenizer) -> Session:
        """A session that goes on from the state of a name, as `load` reads it."""
        return Session(model, tokenizer, self.load(name, model, tokenizer))

    def fork(self, name: str, new: str, *, replace: bool = False) -> Path:
        """Copy a state to another name. From then on neither sees what becomes of the other."""
        path = self.require_free(new, replace=replace)
        self.show(name)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with self._locked():
            self.require_free(new, replace=replace)
            try:
                try:
                    shutil.copyfile(self.path(name), temporary)
                except FileNotFoundError:  # deleted meanwhile
                    raise self._missing(name) from None
                with open(temporary, "rb+") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        return path

    def delete(self, name: str) -> None:
        """Delete a state. Raises UserError when there is none of the name."""
        path = self.path(name)
        if not path.exists():
            raise self._missing(name)
        with self._locked():
            path.unlink(missing_ok=True)

    def show(self, name: str) -> StateRecord:
        """What is recorded of a state. Raises UserError when there is none of the name, or it is damaged."""
        try:
            return read_record(self.path(name))
        except FileNotFoundError:
            raise self._missing(name) from None

    def list(self) -> dict[str, StateRecord]:
        """What is recorded of every state, by name in order. A damaged one is passed over with one line to the log."""
        found = {}
        for name in self.names():
            try:
                found[name] = self.show(name)
            except StateMissingError:
                continue  # deleted meanwhile
            except UserError as error:
                logger.warning("passing over a damaged state: %s", error)
        return found

    def names(self) -> tuple[str, ...]:
        """The names of all states, damaged ones too, in order."""
        names = (path.name.removesuffix(SUFFIX) for path in self.folder.glob(f"*{SUFFIX}"))
        return tuple(sorted(name for name in names if NAME.fullmatch(name)))

    def path(self, name: str) -> Path:
        """The file of a name. Raises UserError for a name that is not valid, such as one with a slash."""
        if not NAME.fullmatch(name):
            raise UserError(
                f"state name {name!r}: expected 1 to 100 letters, digits, '.', '_' and '-', the first a letter or digit"
            )
        return self.folder / f"{name}{SUFFIX}"

    def require_free(self, name: str, *, replace: bool = False) -> Path:
        """The file that a new state of a name gets. Raises UserError when the name is taken, without `replace`."""
        path = self.path(name)
        if path.exists() and not replace:
            raise StateExistsError(
                f"state '{name}': there already, in {self.folder}; take another name, delete it, or replace it"
            )
        return path

    def _missing(self, name: str) -> StateMissingError:
        names = self.names()
        some = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        return StateMissingError(f"state '{name}': not in {self.folder}, which has {some or 'none'}")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder for writing, made if need be; what a writer that was killed left half is removed."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"{self.folder}: a file is in the way; expected a folder for states") from None
        except OSError as error:
            raise UserError(f"{self.folder}: cannot make the folder ({error.strerror})") from None
        try:
            with disk_errors(self.folder), filelock.FileLock(self.folder / LOCK, timeout=LOCK_S):
                for left in self.folder.glob(".*.tmp"):
                    left.unlink(missing_ok=True)
                yield
        except filelock.Timeout:
            raise UserError(
                f"{self.folder}: another process has been writing for {LOCK_S:.0f} s; wait for it or stop it"
            ) from None


def states_folder(path: Path) -> Path:
    """Where the states of a run folder are, or of the run that a checkpoint folder is in."""
    resolved = path.resolve()
    return (resolved.parent.parent if resolved.parent.name == "checkpoints" else path) / FOLDER
