"""The tensors of a checkpoint: whole under their logical names on disk, sharded or not where they train."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from linscale.config import UserError
from linscale.distributed import Ranks, local_rows, sharded
from linscale.models import LanguageModel

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""What weights may be stored as, by safetensors' names."""
MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"


def model_tensors(model: LanguageModel) -> dict[str, Tensor]:
    """Every parameter (a tied one once) and persistent buffer under its logical name."""
    persistent = model.state_dict()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return {name: tensor.detach() for name, tensor in {**dict(model.named_parameters()), **buffers}.items()}


def optimizer_tensors(model: LanguageModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as '<parameter>.<state>'; parameters that never had a gradient have none."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def own(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """The tensors that this rank writes, whole: of neighbours in size each rank gets one; gathered one at a time."""
    by_size = sorted(tensors, key=lambda name: (-tensors[name].numel(), name))
    writer = {name: place % ranks.size for place, name in enumerate(by_size)}
    own = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if sharded(tensor) else tensor
        if writer[name] == ranks.rank:
            own[name] = whole.cpu()
    return own


def part(name: str, ranks: Ranks) -> str:
    """The file of this rank."""
    stem, suffix = name.split(".")
    return name if ranks.size == 1 else f"{stem}-{ranks.rank + 1:05d}-of-{ranks.size:05d}.{suffix}"


def parts(manifest: Mapping[str, Any], name: str) -> list[str]:
    """The files that make up MODEL or OPTIMIZER."""
    return [part for part in manifest["files"] if part.split(".")[0].split("-")[0] == name.split(".")[0]]


class Tensors:
    """The tensors of several safetensors files, by name."""

    def __init__(self, paths: list[Path], files: contextlib.ExitStack) -> None:
        self._files = {path: files.enter_context(safe_open(path, framework="pt")) for path in paths}
        self.path = {name: path for path, file in self._files.items() for name in file.keys()}  # noqa: SIM118

    def dtype(self, name: str) -> torch.dtype:
        """That of a tensor, which is not read."""
        lazy = self._files[self.path[name]].get_slice(name)
        return DTYPES[lazy.get_dtype()]

    def read(self, name: str, expected: Tensor | None, *, cast: bool = False) -> Tensor:
        """A tensor, or where `expected` is sharded the rows of it that this rank holds. Raises UserError if it is of
        another shape, or dtype unless that may be `cast`; `expected` None takes it as it is."""
        path = self.path[name]
        if expected is None or expected.ndim == 0:
            value: Tensor = self._files[path].get_tensor(name)
            found = tuple(value.shape)
        else:
            lazy = self._files[path].get_slice(name)
            found = tuple(lazy.get_shape())
            value = lazy[local_rows(expected)[1]] if len(found) else self._files[path].get_tensor(name)
        if expected is not None and (found != expected.shape or (value.dtype != expected.dtype and not cast)):
            raise UserError(
                f"{path}: tensor '{name}' is {value.dtype} {found}, "
                f"the model needs {expected.dtype} {tuple(expected.shape)}"
            )
        return value


def read_model(path: Path, manifest: Mapping[str, Any], model: LanguageModel, *, cast: bool = False) -> None:
    """Fill a model, sharded or not, with a checkpoint's tensors: in their dtype, or with `cast` in its own."""
    expected, paths = model_tensors(model), [path / part for part in parts(manifest, MODEL)]
    with contextlib.ExitStack() as files, torch.no_grad():
        tensors = Tensors(paths, files)
        _compare_names(paths[0], set(tensors.path), set(expected))
        for name, tensor in expected.items():
            local_rows(tensor)[0].copy_(tensors.read(name, tensor, cast=cast))


def take_dtypes(path: Path, manifest: Mapping[str, Any], model: LanguageModel) -> None:
    """Give the parameters of a model on the meta device the dtypes that they have in the files."""
    with contextlib.ExitStack() as files:
        tensors = Tensors([path / part for part in parts(manifest, MODEL)], files)
        for name, parameter in model.named_parameters():
            if name in tensors.path:
                parameter.data = parameter.data.to(tensors.dtype(name))


def read_optimizer(
    path: Path, manifest: Mapping[str, Any], model: LanguageModel, optimizer: torch.optim.Optimizer
) -> None:
    parameters = dict(model.named_parameters())
    states: dict[str, dict[str, Tensor]] = {name: {} for name in parameters}
    with contextlib.ExitStack() as files:
        tensors = Tensors([path / part for part in parts(manifest, OPTIMIZER)], files)
        for full_name, place in tensors.path.items():
            name, _, key = full_name.rpartition(".")
            if name not in parameters:
                raise UserError(f"{place}: unknown tensor '{full_name}': the model has no parameter '{name}'")
            states[name][key] = _state(tensors, full_name, key, parameters[name])
    names = {id(parameter): name for name, parameter in parameters.items()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    content = optimizer.state_dict()
    content["state"] = {position: states[name] for position, name in enumerate(order) if states[name]}
    optimizer.load_state_dict(content)


def _state(tensors: Tensors, full_name: str, key: str, parameter: Tensor) -> Tensor:
    """One tensor of the optimizer's state, sharded as its parameter is; a count of steps is not."""
    value = tensors.read(full_name, None if key == "step" else parameter)
    if key == "step" or not sharded(parameter):
        return value
    from torch.distributed.tensor import DTensor

    local = value.to(parameter.device)
    return DTensor.from_local(
        local, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )


def _compare_names(path: Path, found: set[str], expected: set[str]) -> None:
    if unknown := sorted(found - expected):
        raise UserError(f"{path}: unknown tensor '{unknown[0]}' ({len(unknown)} in all) that the model does not have")
    if missing := sorted(expected - found):
        raise UserError(f"{path}: missing tensor '{missing[0]}' ({len(missing)} in all) that the model needs")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
