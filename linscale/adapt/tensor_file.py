"""Safetensors files read and written one tensor at a time: memory is that of the largest tensor, whatever the file.

Format: 8 bytes of length, little-endian; that many of JSON, name -> dtype, shape, place; the tensors end to end.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from linscale.checkpoint.tensors import DTYPES
from linscale.config import UserError
from linscale.run_folder import read_json

NAMES = {dtype: name for name, dtype in DTYPES.items()}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ALIGNMENT = 8  # bytes, at which the tensors begin


@dataclass(frozen=True)
class Entry:
    """What a file says of a tensor before it is read."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


def entries_of(folder: Path) -> dict[str, Entry]:
    """The tensors of model.safetensors, or of the shards that its index names, by name.

    Raises UserError where there is neither, a shard lacks a tensor that the index places there, or a dtype is not a
    plain float.
    """
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        places = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(places, dict) or not places:
            raise UserError(f"{folder / INDEX}: no weight_map; expected the index of a sharded safetensors model")
    elif (folder / SINGLE).is_file():
        places = None
    else:
        raise UserError(
            f"{folder}: no {SINGLE} and no {INDEX}; expected safetensors weights "
            "(convert others with transformers' save_pretrained)"
        )
    files = sorted(set(places.values())) if places else [SINGLE]
    found: dict[str, Entry] = {}
    for file in files:
        if Path(str(file)).name != file or not (folder / file).is_file():
            raise UserError(f"{folder / str(file)}: no such file, but {INDEX} names it")
        found.update(entries_of_file(folder / file))
    for name, file in (places or {}).items():
        if name not in found:
            raise UserError(f"{folder / str(file)}: missing tensor '{name}', which {INDEX} places there")
    return found


def entries_of_file(path: Path) -> Iterator[tuple[str, Entry]]:
    """The tensors of one file, by name."""
    try:
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                lazy = tensors.get_slice(name)
                dtype = lazy.get_dtype()
                if dtype not in DTYPES:
                    raise UserError(f"{path}: tensor '{name}' is {dtype}; expected one of {', '.join(DTYPES)}")
                yield name, Entry(path, DTYPES[dtype], tuple(lazy.get_shape()))
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); download or copy it again") from None


def read_tensor(name: str, entry: Entry, rows: int | None = None) -> Tensor:
    """One tensor, or its first rows, read when asked for."""
    with safe_open(entry.path, framework="pt") as tensors:
        value: Tensor = tensors.get_tensor(name) if rows is None else tensors.get_slice(name)[:rows]
    return value


def write_file(path: Path, tensors: Mapping[str, Entry], read: Callable[[str], Tensor]) -> dict[str, Any]:
    """Write `tensors` in the dtypes and shapes that their entries name (their paths are not looked at), each from
    `read(name)` when its turn comes. Returns size and sha256 of the file, which is synced.

    The order is safetensors' own, wide dtypes first and then by name, so that its save_file gives the same bytes.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name in order:
        entry = tensors[name]
        header[name] = {
            "dtype": NAMES[entry.dtype], "shape": entry.shape, "data_offsets": [place, place + entry.bytes],
        }  # fmt: skip
        place += entry.bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    digest, size = hashlib.sha256(), 0
    with open(path, "wb") as file:
        size += _put(file, digest, len(text).to_bytes(8, "little") + text)
        for name in order:
            size += _put(file, digest, _data(name, tensors[name], read(name)))
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _put(file: BinaryIO, digest: Any, data: Any) -> int:
    """Write and digest some bytes; what they are of is let go before the next is read."""
    digest.update(data)
    return file.write(data)


def _data(name: str, entry: Entry, value: Tensor) -> Any:
    """The bytes of a tensor in its entry's dtype."""
    if tuple(value.shape) != entry.shape:
        raise ValueError(f"tensor '{name}' is {tuple(value.shape)}, announced as {entry.shape}")
    return value.to(entry.dtype).contiguous().reshape(-1).view(torch.uint8).numpy().data


def shards_of(tensors: Mapping[str, Entry], shard_bytes: float) -> list[dict[str, Entry]]:
    """The tensors in files of at most `shard_bytes` each, in order; a larger tensor has a file of its own."""
    shards: list[dict[str, Entry]] = [{}]
    room = shard_bytes
    for name, entry in tensors.items():
        if shards[-1] and entry.bytes > room:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = entry
        room -= entry.bytes
    return shards
