"""The states of a server: those of a StateStore, off the event loop, with the last used kept in memory."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from linscale.config import UserError, to_dict
from linscale.data.tokenizer import Tokenizer
from linscale.generate.identity import Identity
from linscale.generate.snapshot import Snapshot
from linscale.generate.state_store import NAME, StateStore
from linscale.models import LanguageModel
from linscale.serve.errors import ApiError

T = TypeVar("T")
SHOWN = ("tokens", "model", "model_name", "tokenizer", "dtype", "created", "kept")
"""What of a state's record clients see."""


class Version(NamedTuple):
    """A file as it is: another process may replace it."""

    name: str
    inode: int
    changed_ns: int
    size: int


class SavedStates:
    """States by name. All methods raise ApiError: 400 for a name that is not one, 404 for one that is not there, 409
    for one that is taken or cannot be used with this model."""

    def __init__(
        self, store: StateStore, model: LanguageModel, tokenizer: Tokenizer, identity: Identity, most_bytes: int
    ) -> None:
        """`most_bytes` of loaded states are kept in memory. `identity`: see StateStore."""
        self.identity = identity
        self._store, self._model, self._tokenizer = store, model, tokenizer
        self._most_bytes = most_bytes
        self._loaded: OrderedDict[Version, Snapshot] = OrderedDict()
        self._loading: dict[Version, asyncio.Task[Snapshot]] = {}

    async def load(self, name: str, param: str = "state") -> Snapshot:
        """The state of a name, from memory where it is there and its file has not changed."""
        version = self._version(self._existing(name, param), name)
        if version in self._loaded:
            self._loaded.move_to_end(version)
            return self._loaded[version]
        if version not in self._loading:
            task = asyncio.create_task(self._read(version, param))
            self._loading[version] = task
            task.add_done_callback(lambda _: self._loading.pop(version))
        return await asyncio.shield(self._loading[version])  # others may wait for it too

    async def _read(self, version: Version, param: str) -> Snapshot:
        load = partial(self._store.load, version.name, self._model, self._tokenizer, identity=self.identity)
        snapshot = await self._in_thread(load, 409, param)
        self._keep(version, snapshot)
        return snapshot

    def require_free(self, name: str, replace: bool, param: str) -> None:
        """Raises ApiError when a new state cannot have the name."""
        if not NAME.fullmatch(name):
            raise ApiError(400, self._said(_complaint(self._store.path, name)), param=param, code="invalid_value")
        if self._store.path(name).exists() and not replace:
            raise ApiError(
                409, f"state '{name}': there already; take another name, delete it, or set replace",
                param=param, code="state_exists",
            )  # fmt: skip

    async def save(self, name: str, snapshot: Snapshot, replace: bool) -> dict[str, Any]:
        """Save a state, and keep it in memory; returns what `show` does."""
        write = partial(self._store.save, name, snapshot, self._model, self._tokenizer)
        path = await self._in_thread(lambda: write(replace=replace, identity=self.identity), 409, "name")
        self._keep(self._version(path, name), snapshot)
        return await self.show(name)

    async def show(self, name: str) -> dict[str, Any]:
        """What clients are told of a state."""
        path = self._existing(name, "name")
        record = await self._in_thread(lambda: self._store.show(name), 409, "name")
        return _described(name, path, to_dict(record))

    async def list(self) -> list[dict[str, Any]]:
        """What clients are told of all states."""
        found = await self._in_thread(self._store.list, 409, None)
        return [
            _described(name, path, to_dict(record))
            for name, record in found.items()
            if (path := self._store.path(name)).exists()
        ]

    async def fork(self, name: str, new: str, replace: bool) -> dict[str, Any]:
        """Copy a state to another name."""
        self._existing(name, "name")
        self.require_free(new, replace, "name")
        await self._in_thread(lambda: self._store.fork(name, new, replace=replace), 409, "name")
        return await self.show(new)

    async def delete(self, name: str) -> None:
        """Delete a state."""
        self._existing(name, "name")
        await self._in_thread(lambda: self._store.delete(name), 409, "name")

    def _existing(self, name: str, param: str) -> Path:
        if not NAME.fullmatch(name):
            raise ApiError(400, self._said(_complaint(self._store.path, name)), param=param, code="invalid_value")
        path = self._store.path(name)
        if not path.is_file():
            raise self._missing(name, param)
        return path

    def _missing(self, name: str, param: str) -> ApiError:
        return ApiError(404, f"state '{name}': there is none of this name", param=param, code="state_not_found")

    def _version(self, path: Path, name: str) -> Version:
        try:
            stat = path.stat()
        except OSError:
            raise self._missing(name, "state") from None
        return Version(name, stat.st_ino, stat.st_mtime_ns, stat.st_size)

    def _keep(self, version: Version, snapshot: Snapshot) -> None:
        """Keep a state in memory, in place of others of its name and of those that were used longest ago."""
        for other in [each for each in self._loaded if each.name == version.name]:
            del self._loaded[other]
        self._loaded[version] = snapshot
        while self._loaded and sum(map(_bytes, self._loaded.values())) > self._most_bytes:
            self._loaded.popitem(last=False)

    async def _in_thread(self, work: Callable[[], T], status: int, param: str | None) -> T:
        try:
            return await asyncio.to_thread(work)
        except UserError as error:
            raise ApiError(status, self._said(str(error)), param=param, code="state_unusable") from None

    def _said(self, message: str) -> str:
        """A message without the place of the folder, which is nobody's business."""
        folder = str(self._store.folder)
        return re.sub(rf"{re.escape(folder)}/?", lambda found: "" if found[0].endswith("/") else "the store", message)


def _complaint(work: Callable[[str], Any], name: str) -> str:
    try:
        work(name)
    except UserError as error:
        return str(error)
    raise AssertionError(name)


def _described(name: str, path: Path, record: dict[str, Any]) -> dict[str, Any]:
    return {
        "object": "state",
        "name": name,
        "bytes": path.stat().st_size,
        **{key: record[key] for key in SHOWN},
        "created": int(record["created"]),
    }


def _bytes(snapshot: Snapshot) -> int:
    """The memory of a state."""
    tensors: list[Tensor] = [x for x in (snapshot.state.position, snapshot.state.embedding) if x is not None]
    for layer in snapshot.state.layers:
        tensors += [layer] if isinstance(layer, Tensor) else list(layer)
    tensors += [] if snapshot.logits is None else [snapshot.logits]
    arrays = [x for x in (snapshot.tokens, snapshot.seen) if isinstance(x, np.ndarray)]
    return sum(x.numel() * x.element_size() for x in tensors) + sum(x.nbytes for x in arrays)
