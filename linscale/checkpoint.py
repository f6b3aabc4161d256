"""Checkpoints: a model on disk that is whole or is not there.

    <run>/tokenizer.json
    <run>/checkpoints/step_00001000/model.safetensors       every tensor under its logical name
                                    optimizer.safetensors   '<parameter>.<state>', in the newest ones only
                                    checkpoint.json         step, tokens, model config, size and sha256 of each file

A checkpoint is written to a temporary folder, synced, and renamed into place. Reading verifies the digests, and
refuses tensors that are unknown, missing or of another shape by name.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from linscale.config import UserError, fingerprint, parse, to_dict
from linscale.data.tokenizer import Tokenizer, load_tokenizer
from linscale.models import LanguageModel, ModelConfig, build_model
from linscale.run_folder import CHECKPOINTS, code_version, read_json, write_json

MODEL, OPTIMIZER, MANIFEST, TOKENIZER = (
    "model.safetensors",
    "optimizer.safetensors",
    "checkpoint.json",
    "tokenizer.json",
)
FORMAT = 1
REMEDY = "delete the folder, or restore the file from a copy"

logger = logging.getLogger(__name__)


def save(
    run: Path, step: int, model: LanguageModel, optimizer: torch.optim.Optimizer, extra: Mapping[str, Any]
) -> Path:
    """Write <run>/checkpoints/step_XXXXXXXX and return it; a damaged folder of the same step is replaced.

    `extra` joins the manifest: the trainer gives `tokens` and the `tokenizer` fingerprint.
    Raises UserError when the folder cannot be written; what was there before stays as it was.
    """
    target = run / CHECKPOINTS / f"step_{step:08d}"
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        files = {MODEL: model_tensors(model), OPTIMIZER: optimizer_tensors(model, optimizer)}
        sums = {name: _write_tensors(temporary / name, tensors) for name, tensors in files.items()}
        manifest = {"format": FORMAT, "step": step, **extra, "model": to_dict(model.config), "files": sums}
        manifest["code"] = code_version()
        write_json(temporary / MANIFEST, {**manifest, "fingerprint": fingerprint(manifest)})
        _sync_folder(temporary)
        if target.exists():
            target.rename(temporary.with_suffix(".old.tmp"))
        temporary.rename(target)
        _sync_folder(target.parent)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{target}: cannot write the checkpoint ({error}); earlier checkpoints are intact: "
            "free space or make the folder writable, then run again"
        ) from None
    finally:
        clean(run)
    return target


def clean(run: Path) -> None:
    """Remove what writers that were killed left unfinished. The caller holds the run folder's lock."""
    for path in (run / CHECKPOINTS).glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    for path in run.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()


def prune_optimizers(run: Path, keep: int) -> None:
    """Delete the optimizer states of all checkpoints but the `keep` newest."""
    for path in list_checkpoints(run)[:-keep]:
        (path / OPTIMIZER).unlink(missing_ok=True)


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run, by ascending step."""
    paths = (run / CHECKPOINTS).glob("step_*")
    return sorted((path for path in paths if re.fullmatch(r"step_\d{8,}", path.name)), key=step_of)


def step_of(path: Path) -> int:
    """The step a checkpoint folder's name states."""
    return int(path.name.removeprefix("step_"))


def newest(run: Path, *, resumable: bool = False, report: Callable[[str], None] | None = None) -> Path | None:
    """The newest undamaged checkpoint; with `resumable`, the newest that also holds its optimizer state.

    A damaged one is passed over with one line to `report`. None when the run has no checkpoint yet;
    UserError when it has some and none will do.
    """
    paths = list_checkpoints(run)
    for path in reversed(paths):
        if resumable and not (path / OPTIMIZER).exists() and (path / MANIFEST).exists():
            continue
        try:
            verify(path, (MODEL, OPTIMIZER) if resumable else (MODEL,))
        except UserError as error:
            if report:
                report(f"passing over a damaged checkpoint: {error}")
            continue
        return path
    if paths:
        needed = "undamaged checkpoint with its optimizer state" if resumable else "undamaged checkpoint"
        raise UserError(f"{run / CHECKPOINTS}: no {needed}; delete the run folder to train again from the start")
    return None


def read_manifest(path: Path) -> dict[str, Any]:
    """The checkpoint.json of a checkpoint folder. Raises UserError when it is missing, damaged or of another format."""
    if not (path / MANIFEST).is_file():
        raise UserError(f"{path}: not a checkpoint (no {MANIFEST})")
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path / MANIFEST}: not a checkpoint of format {FORMAT}")
    if manifest.pop("fingerprint", None) != fingerprint(manifest):
        raise UserError(f"{path / MANIFEST}: content does not match its fingerprint; {REMEDY}")
    return manifest


def verify(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Check size and sha256 of the named files and return the manifest. Raises UserError naming the damaged file."""
    manifest = read_manifest(path)
    for name in names:
        recorded = manifest["files"][name]
        if not (path / name).is_file():
            raise UserError(f"{path / name}: no such file; {REMEDY}")
        size = (path / name).stat().st_size
        if size != recorded["bytes"]:
            raise UserError(f"{path / name}: {size} bytes, {recorded['bytes']} expected (truncated?); {REMEDY}")
        if _sha256(path / name) != recorded["sha256"]:
            raise UserError(f"{path / name}: corrupt, its sha256 is not the recorded one; {REMEDY}")
    return manifest


def load_model(path: Path) -> LanguageModel:
    """The model of a checkpoint folder, on the CPU."""
    manifest = verify(path, (MODEL,))
    model = build_model(parse(ModelConfig, manifest["model"], source=str(path / MANIFEST)))
    _read_model(path / MODEL, model)
    return model


def restore(path: Path, model: LanguageModel, optimizer: torch.optim.Optimizer) -> int:
    """Put a checkpoint's weights and optimizer state into `model` and `optimizer`; returns its step."""
    manifest = verify(path, (MODEL, OPTIMIZER))
    _read_model(path / MODEL, model)
    _read_optimizer(path / OPTIMIZER, model, optimizer)
    return int(manifest["step"])


def load(path: str | Path) -> tuple[LanguageModel, Tokenizer]:
    """Model and tokenizer of a run folder (its newest undamaged checkpoint) or of a checkpoint folder."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; expected a run folder or a checkpoint folder")
    chosen = path if (path / MANIFEST).exists() else newest(path, report=logger.warning)
    if chosen is None:
        raise UserError(f"{path}: neither a checkpoint nor a run folder with checkpoints")
    folders = [folder for folder in (chosen, chosen.resolve().parent.parent) if (folder / TOKENIZER).is_file()]
    if not folders:
        raise UserError(f"{chosen}: no {TOKENIZER} beside it; copy the run folder's {TOKENIZER} into the checkpoint")
    tokenizer = load_tokenizer(str(folders[0] / TOKENIZER))
    expected = read_manifest(chosen).get("tokenizer")
    if expected not in (None, tokenizer.fingerprint):
        raise UserError(
            f"{folders[0] / TOKENIZER}: fingerprint {tokenizer.fingerprint}, "
            f"but {chosen.name} was trained with {expected}; restore the run's own {TOKENIZER}"
        )
    return load_model(chosen), tokenizer


def model_tensors(model: LanguageModel) -> dict[str, torch.Tensor]:
    """Every parameter (a tied one once) and persistent buffer under its logical name."""
    persistent = model.state_dict()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return {name: tensor.detach() for name, tensor in {**dict(model.named_parameters()), **buffers}.items()}


def optimizer_tensors(model: LanguageModel, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as '<parameter>.<state>'; parameters that never had a gradient have none."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _read_model(path: Path, model: LanguageModel) -> None:
    tensors = model_tensors(model)
    with safe_open(path, framework="pt") as file, torch.no_grad():
        _compare_names(path, set(file.keys()), set(tensors))
        for name, tensor in tensors.items():
            value = file.get_tensor(name)
            _compare_tensor(path, name, value, tensor)
            tensor.copy_(value)


def _read_optimizer(path: Path, model: LanguageModel, optimizer: torch.optim.Optimizer) -> None:
    parameters = dict(model.named_parameters())
    states: dict[str, dict[str, torch.Tensor]] = {name: {} for name in parameters}
    with safe_open(path, framework="pt") as file:
        for full_name in file.keys():  # noqa: SIM118 (not a dict)
            name, _, key = full_name.rpartition(".")
            if name not in parameters:
                raise UserError(f"{path}: unknown tensor '{full_name}': the model has no parameter '{name}'")
            states[name][key] = file.get_tensor(full_name)
            if states[name][key].dim() > 0:
                _compare_tensor(path, full_name, states[name][key], parameters[name])
    names = {id(parameter): name for name, parameter in parameters.items()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    content = optimizer.state_dict()
    content["state"] = {position: states[name] for position, name in enumerate(order) if states[name]}
    optimizer.load_state_dict(content)


def _compare_names(path: Path, found: set[str], expected: set[str]) -> None:
    if unknown := sorted(found - expected):
        raise UserError(f"{path}: unknown tensor '{unknown[0]}' ({len(unknown)} in all) that the model does not have")
    if missing := sorted(expected - found):
        raise UserError(f"{path}: missing tensor '{missing[0]}' ({len(missing)} in all) that the model needs")


def _compare_tensor(path: Path, name: str, value: torch.Tensor, expected: torch.Tensor) -> None:
    if value.shape != expected.shape or value.dtype != expected.dtype:
        raise UserError(
            f"{path}: tensor '{name}' is {value.dtype} {tuple(value.shape)}, "
            f"the model needs {expected.dtype} {tuple(expected.shape)}"
        )


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(path: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened, and renaming is durable by itself
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
