"""The log that Weights & Biases keeps of a run on disk, run-<id>.wandb, read without its package.

    file     ":W&B" magic (2 bytes) version (1 byte), then blocks of 32 KiB
    block    records: checksum (4), length (2), type (1), content; a block's last bytes may be too few for one
    type     1 whole, 2 first, 3 middle, 4 last part of a message                     as in LevelDB's log format
    message  a protobuf Record of wandb_internal.proto

Of a Record these fields are read: history (2), summary (3), config (5) and run (17). A run that was killed has half a
last message, which ends the reading.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linscale.config import UserError

BLOCK, HEAD, START = 32768, 7, b":W&B"
HISTORY, SUMMARY, CONFIG, RUN = 2, 3, 5, 17  # of Record
KEY, NESTED, VALUE = 1, 2, 16  # of the items of history, summary and config
Fields = dict[int, list[Any]]


@dataclass
class Log:
    """What one run recorded."""

    name: str = ""
    run_id: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry a step that was logged, in order."""
    summary: dict[str, Any] = field(default_factory=dict)
    """The last value of every metric."""


def read_log(path: Path) -> Log:
    """Raises UserError for a file that is not such a log."""
    content = path.read_bytes()
    if content[:4] != START:
        raise UserError(f"{path}: is not a log of Weights & Biases")
    log = Log()
    for message in _messages(content):
        record = _fields(message)
        for part in record.get(RUN, ()):
            run = _fields(part)
            log.run_id, log.name = _text(run, 1), _text(run, 8)
            for config in run.get(4, ()):
                log.config |= _items(config)
        for part in record.get(CONFIG, ()):
            log.config |= _items(part)
        for part in record.get(HISTORY, ()):
            log.history.append(_items(part))
        for part in record.get(SUMMARY, ()):
            log.summary |= _items(part)
    return log


def _messages(content: bytes) -> Iterator[bytes]:
    """The parts of messages put together, up to the first that is cut."""
    at, parts = HEAD, b""
    while at + HEAD <= len(content):
        left = BLOCK - at % BLOCK
        if left < HEAD:
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        if kind not in (1, 2, 3, 4) or at + HEAD + length > len(content):
            return
        parts = content[at + HEAD : at + HEAD + length] if kind in (1, 2) else parts + content[at + HEAD :][:length]
        at += HEAD + length
        if kind in (1, 4):
            yield parts


def _items(message: bytes) -> dict[str, Any]:
    """The updated items of a history, summary or config: keys to values, which are JSON in the log."""
    found = {}
    for part in _fields(message).get(1, ()):
        if isinstance(part, bytes):
            item = _fields(part)
            name = _text(item, KEY) or ".".join(key.decode() for key in item.get(NESTED, ()))
            if name and VALUE in item:
                found[name] = json.loads(_text(item, VALUE))
    return found


def _text(fields: Fields, number: int) -> str:
    value = fields.get(number, [b""])[-1]
    return value.decode(errors="replace") if isinstance(value, bytes) else ""


def _fields(message: bytes) -> Fields:
    """The fields of a protobuf message by number: integers, or bytes of texts and messages. Cut ones are left out."""
    found: Fields = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        value: int | bytes
        if tag & 7 == 0:
            value, at = _varint(message, at)
        elif tag & 7 == 2:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        elif tag & 7 in (1, 5):
            length = 8 if tag & 7 == 1 else 4
            value, at = message[at : at + length], at + length
        else:
            return found
        found.setdefault(tag >> 3, []).append(value)
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            break
    return value, at
