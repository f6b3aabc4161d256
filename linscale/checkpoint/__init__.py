"""Checkpoints: a model on disk that is whole or is not there.

    <run>/tokenizer.json
    <run>/checkpoints/step_00001000/model.safetensors       every tensor under its logical name
                                    optimizer.safetensors   '<parameter>.<state>', in the newest ones only
                                    checkpoint.json         step, tokens, model config, size and sha256 of each file

Several ranks write model-00001-of-00004.safetensors and so on, each some of the tensors, whole: what they write is
read by any number of ranks, and by whatever reads a checkpoint of one.

A checkpoint is written to a temporary folder, synced, and renamed into place. Reading verifies the digests, and
refuses tensors that are unknown, missing or of another shape by name.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError
from torch import Tensor

from linscale.checkpoint.tensors import (
    MODEL,
    OPTIMIZER,
    model_tensors,
    optimizer_tensors,
    own,
    part,
    parts,
    read_model,
    read_optimizer,
    sha256,
    take_dtypes,
    write_tensors,
)
from linscale.config import UserError, fingerprint, parse, to_dict
from linscale.data.tokenizer import Tokenizer, load_tokenizer
from linscale.distributed import ALONE, Ranks
from linscale.models import LanguageModel, LanguageModelConfig, ModelConfig, build_model
from linscale.run_folder import CHECKPOINTS, code_version, read_json, write_json

MANIFEST, TOKENIZER = "checkpoint.json", "tokenizer.json"
FORMAT = 1
REMEDY = "delete the folder, or restore the file from a copy"

T = TypeVar("T")
logger = logging.getLogger(__name__)


def save(
    run: Path, step: int, model: LanguageModel, optimizer: torch.optim.Optimizer, extra: Mapping[str, Any],
    ranks: Ranks = ALONE,
) -> Path:  # fmt: skip
    """Write <run>/checkpoints/step_XXXXXXXX and return it; a damaged folder of the same step is replaced.

    `extra` joins the manifest: the trainer gives `tokens` and the `tokenizer` fingerprint. All `ranks` call it.
    Raises UserError, on every rank, when the folder cannot be written; what was there before stays as it was.
    """
    target = run / CHECKPOINTS / f"step_{step:08d}"
    temporary = ranks.share(target.with_name(f".{target.name}.{os.getpid()}.tmp"))
    try:
        _together(ranks, lambda: temporary.mkdir(parents=True) if ranks.first else None)
        sums: dict[str, Any] = {}
        for name, tensors in ((MODEL, model_tensors(model)), (OPTIMIZER, optimizer_tensors(model, optimizer))):
            work = partial(_write_part, temporary / part(name, ranks), own(tensors, ranks))
            sums |= {file: written for done in _together(ranks, work) for file, written in done.items()}
        manifest = {"format": FORMAT, "step": step, **extra, "model": to_dict(model.config), "files": sums}
        manifest["code"] = code_version()
        _together(ranks, lambda: _publish(temporary, target, manifest) if ranks.first else None)
    except _WriteError as error:
        raise UserError(
            f"{target}: cannot write the checkpoint ({error}); earlier checkpoints are intact: "
            "free space or make the folder writable, then run again"
        ) from None
    finally:
        if ranks.first:
            clean(run)
    return target


class _WriteError(Exception):
    """Some rank could not write its part."""


def _together(ranks: Ranks, work: Callable[[], T]) -> list[T]:
    """What `work` gives on every rank. Raises _WriteError on all of them where one cannot write."""
    try:
        done: T | _WriteError = work()
    except (OSError, SafetensorError) as error:
        done = _WriteError(str(error))
    results = ranks.gather(done)
    for result in results:
        if isinstance(result, _WriteError):
            raise result
    return cast("list[T]", results)


def _write_part(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    return {path.name: write_tensors(path, tensors)}


def _publish(temporary: Path, target: Path, manifest: dict[str, Any]) -> None:
    write_json(temporary / MANIFEST, {**manifest, "fingerprint": fingerprint(manifest)})
    _sync_folder(temporary)
    if target.exists():
        target.rename(temporary.with_suffix(".old.tmp"))
    temporary.rename(target)
    _sync_folder(target.parent)


def _has_optimizer(path: Path) -> bool:
    return any(path.glob("optimizer*.safetensors"))


def clean(run: Path) -> None:
    """Remove what writers that were killed left unfinished. The caller holds the run folder's lock."""
    for path in (run / CHECKPOINTS).glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    for path in run.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()


def prune_optimizers(run: Path, keep: int) -> None:
    """Delete the optimizer states of all checkpoints but the `keep` newest."""
    paths = list_checkpoints(run)
    for path in paths[: max(0, len(paths) - keep)]:
        for file in path.glob("optimizer*.safetensors"):
            file.unlink(missing_ok=True)


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
        if resumable and not _has_optimizer(path) and (path / MANIFEST).exists():
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
        raise UserError(f"{run / CHECKPOINTS}: no {needed}; delete the run folder and train or import it again")
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
    for name in [file for kind in names for file in parts(manifest, kind)]:
        recorded = manifest["files"][name]
        if not (path / name).is_file():
            raise UserError(f"{path / name}: no such file; {REMEDY}")
        size = (path / name).stat().st_size
        if size != recorded["bytes"]:
            raise UserError(f"{path / name}: {size} bytes, {recorded['bytes']} expected (truncated?); {REMEDY}")
        if sha256(path / name) != recorded["sha256"]:
            raise UserError(f"{path / name}: corrupt, its sha256 is not the recorded one; {REMEDY}")
    return manifest


def model_config(path: Path) -> LanguageModelConfig:
    """That of a checkpoint folder's model."""
    config: LanguageModelConfig = parse(ModelConfig, read_manifest(path)["model"], source=str(path / MANIFEST))
    return config


def load_model(path: Path) -> LanguageModel:
    """The model of a checkpoint folder, on the CPU: in float32, or as an imported one was stored (`dtype`)."""
    manifest = verify(path, (MODEL,))
    with torch.device("meta"):
        model = build_model(parse(ModelConfig, manifest["model"], source=str(path / MANIFEST)))
    if "dtype" in manifest:
        take_dtypes(path, manifest, model)
    model.to_empty(device="cpu")
    model.reset_buffers()
    read_model(path, manifest, model)
    return model


def restore(path: Path, model: LanguageModel, optimizer: torch.optim.Optimizer, ranks: Ranks = ALONE) -> int:
    """Put a checkpoint's weights and optimizer state into `model` and `optimizer`; returns its step.

    However many ranks wrote it, each of `ranks` reads the rows that it holds; the first one compares checksums.
    """
    manifest = verify(path, (MODEL, OPTIMIZER)) if ranks.first else read_manifest(path)
    read_model(path, manifest, model)
    read_optimizer(path, manifest, model, optimizer)
    return int(manifest["step"])


def fill(path: Path, model: LanguageModel, ranks: Ranks = ALONE) -> None:
    """Put a checkpoint's weights alone into `model`, in the dtypes that it has; ranks as in `restore`."""
    manifest = ranks.lead(lambda: verify(path, (MODEL,)))
    read_model(path, manifest, model, cast=True)


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
        raise UserError(
            f"{chosen}: no {TOKENIZER} beside it; copy the run folder's into the checkpoint (a run on a task or on "
            "labelled sequences has none: there is no text to be written or read)"
        )
    tokenizer = load_tokenizer(str(folders[0] / TOKENIZER))
    expected = read_manifest(chosen).get("tokenizer")
    if expected not in (None, tokenizer.fingerprint):
        raise UserError(
            f"{folders[0] / TOKENIZER}: fingerprint {tokenizer.fingerprint}, "
            f"but {chosen.name} was trained with {expected}; restore the run's own {TOKENIZER}"
        )
    return load_model(chosen), tokenizer


def _sync_folder(path: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened, and renaming is durable by itself
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
