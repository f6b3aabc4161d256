"""The run folder: the one interface between training and everything after it.

    <run>/config.json          what the run is: resolved config, written once
    <run>/status.json          where it stands: replaced atomically by its one writer
    <run>/metrics.jsonl        append-only, one record a metric and step, written by the trainer
    <run>/evaluations.jsonl    append-only, one record a (step, task, metric)
    <run>/checkpoints/step_00001000/

A record holds run, step, tokens, flops, metric, value, code version, and for evaluations task and task
version. A process killed while writing leaves at most half a last line; readers skip it, and the next
writer starts a fresh line. When a record is written again after a resume, the later one counts.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import filelock

from linscale.config import UserError

CONFIG, STATUS, METRICS, EVALUATIONS, CHECKPOINTS = (
    "config.json",
    "status.json",
    "metrics.jsonl",
    "evaluations.jsonl",
    "checkpoints",
)


LOCK = ".lock"
EVALUATION_KEYS = ("step", "task", "task_version", "metric")
"""What tells the values of a run's evaluations apart."""


@cache
def code_version() -> str:
    """The package version, with the git commit when it runs from a checkout: '0.1.0+1a2b3c4d'."""
    from linscale import __version__

    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return __version__
    command = ["git", "-C", str(root), "rev-parse", "--short=8", "HEAD"]
    with contextlib.suppress(OSError):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0:
            return f"{__version__}+{result.stdout.strip()}"
    return __version__


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as JSON, atomically: readers see the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, sort_keys=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged JSON ({error}); restore or delete the file") from None


class RecordWriter:
    """Appends records to a .jsonl file, each line whole before the next; after a kill it starts on a fresh line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab+")  # noqa: SIM115 (held open for the writer's life)
        if self._file.tell() > 0:
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")

    def write(self, *records: Mapping[str, Any]) -> None:
        """Append and flush to the system, so that only a machine failure can lose a written record."""
        self._file.write(b"".join(json.dumps(record).encode() + b"\n" for record in records))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_records(path: Path, containing: str = "") -> Iterator[dict[str, Any]]:
    """Every whole record of a .jsonl file in order; nothing when the file does not exist.

    `containing` passes over lines without these characters before they are parsed, which takes most of the time.
    """
    if not path.exists():
        return
    wanted = containing.encode()
    with open(path, "rb") as file:
        for line in file:
            if wanted not in line:
                continue
            if record := parse_record(line):
                yield record


def parse_record(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None where a kill cut it."""
    with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):
        record = json.loads(line)
        if isinstance(record, dict):
            return record
    return None


def latest_records(
    path: Path, keys: tuple[str, ...] = ("step", "task", "metric"), containing: str = ""
) -> list[dict[str, Any]]:
    """The records of a file, one per distinct `keys`: after a resume the later record replaces the earlier one.

    `containing` as in `read_records`.
    """
    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in read_records(path, containing):
        latest[tuple(record.get(key) for key in keys)] = record
    return list(latest.values())


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns what the system says when files below `folder` cannot be read or written into a UserError."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        problem = f"the disk is full or over quota ({error.strerror})" if full else error.strerror or error
        remedy = "free space" if full else "make the folder readable and writable"
        raise UserError(
            f"{error.filename or folder}: {problem}; {remedy} and run the same command again: it goes on from there"
        ) from None


def is_locked(run: Path) -> bool:
    """Whether a process is writing this run. A status of "running" without one was left by a killed process."""
    if not (run / LOCK).exists():
        return False
    try:
        with locked(run):
            return False
    except (UserError, OSError):  # where we may not even try, the status is taken at its word
        return True


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run folder: one writer at a time, released by the system when the process dies.

    Raises UserError when another process holds it, or there cannot be such a folder.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{run}: a file is in the way; expected a folder, or a path where one can be made") from None
    except OSError as error:
        raise UserError(f"{run}: cannot make the folder ({error.strerror})") from None
    try:
        with filelock.FileLock(run / LOCK, timeout=0):
            yield
    except filelock.Timeout:
        raise UserError(f"{run}: another process is writing this run; wait for it or stop it first") from None
