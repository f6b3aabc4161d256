"""config.json of a run: the config with what follows from it and from the machine, and what makes two the same run."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

from linscale.config import UserError, fingerprint, parse, to_dict
from linscale.data.copying import Copying
from linscale.data.labelled import Labelled
from linscale.data.shards import TokenDataset
from linscale.models import ModelConfig
from linscale.models.count import count_parameters, paper_flops_per_step, paper_parameters
from linscale.run_folder import CONFIG, code_version, read_json, write_json
from linscale.train.config import DataConfig, RunConfig, TrainConfig
from linscale.train.origins import origins


def run_settings(
    config: RunConfig, dataset: TokenDataset | Copying | Labelled, device: str | None = None
) -> dict[str, Any]:
    """The content of config.json: the resolved config with what was derived from it and from the machine.

    Its fingerprint covers what decides the numbers: all but paths, whose content it covers, the device, what is logged
    and kept.
    `device` is where the run is trained, when that is not this machine.
    """
    vocabulary = dataset.vocab_size
    if config.model.vocab_size < vocabulary:
        raise UserError(
            f"model.vocab_size = {config.model.vocab_size}: {_vocabulary_of(config.data)} has {vocabulary} "
            f"tokens; expected at least {vocabulary}"
        )
    device = device or resolve_device(config.train.device)
    settings = {
        "run": config.name,
        "study": config.study,
        "size": config.size,
        "model": to_dict(config.model),
        "data": {**_place(config.data), "fingerprint": dataset.fingerprint},
        "train": to_dict(config.train),
        **origins(config, dataset),
        "params": {
            "non_embedding": paper_parameters(config.model),
            "total": count_parameters(config.model).total,
        },
        "flops_per_token": paper_flops_per_step(config.model, 1, config.train.length) / config.train.length,
        "precision": resolve_precision(config.train.precision, device),
        "device": device,
        "torch": torch.__version__,
    }
    return {**settings, "fingerprint": fingerprint(_identity(settings)), "code": code_version()}


def _place(data: DataConfig) -> dict[str, Any]:
    if data.task is not None:
        return {"task": to_dict(data.task)}
    kind, path = ("path", data.path) if data.labelled is None else ("labelled", data.labelled)
    return {kind: Path(path or "").resolve().as_posix()}


def _vocabulary_of(data: DataConfig) -> str:
    return f"the tokenizer of {data.path}" if data.labelled is None else str(data.labelled)


def require_same_config(
    path: Path, config: RunConfig, dataset: TokenDataset | Copying | Labelled, device: str | None = None
) -> dict[str, Any]:
    """The settings of a run, see run_settings. Raises UserError for a folder `path` that another config made."""
    settings = run_settings(config, dataset, device)
    if not (path / CONFIG).exists():
        return settings
    there, here = _flatten(_identity(_read_config(path))), _flatten(_identity(settings))
    fields = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if fields:
        differences = ", ".join(f"{name} = {there.get(name)!r} there, {here.get(name)!r} here" for name in fields)
        raise UserError(f"{path}: made with another config ({differences}); choose another folder or delete this one")
    return settings


def write_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write config.json once; afterwards only what may change between two sessions of a run."""
    stored = _read_config(path) if (path / CONFIG).exists() else settings
    write_json(
        path / CONFIG,
        {
            **stored,
            **{key: settings[key] for key in ("data", "train", "start", "teacher", "device") if key in settings},
        },
    )


def resolve_device(device: str) -> str:
    """ "cpu" or "cuda"; "auto" is CUDA where there is a device. Raises UserError when CUDA is asked for in vain."""
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UserError("train.device = 'cuda': torch finds no CUDA device; expected 'cpu' or 'auto' on this machine")
    return ("cuda" if available else "cpu") if device == "auto" else device


def resolve_precision(precision: str, device: str) -> str:
    """ "fp32" or "bf16"; "auto" is bf16 on CUDA and fp32 on the CPU."""
    return {"cuda": "bf16", "cpu": "fp32"}[device] if precision == "auto" else precision


def _read_config(path: Path) -> dict[str, Any]:
    """config.json of a run; fields that a later version added have their defaults, with which the run was made."""
    stored = read_json(path / CONFIG)
    if not isinstance(stored, dict) or not all(isinstance(stored.get(key), dict) for key in ("model", "data", "train")):
        raise UserError(f"{path / CONFIG}: not the config of a run; choose another folder, restore or delete this one")
    for key, kind in (("model", ModelConfig), ("train", TrainConfig)):
        with contextlib.suppress(UserError):  # what this version cannot read differs, and is then named as it stands
            stored[key] = to_dict(parse(kind, stored[key]))
    return stored


def _identity(settings: dict[str, Any]) -> dict[str, Any]:
    # The precision that was used counts, not the one that was asked for.
    free = {"device", "precision", "start", "log_every", "keep_optimizer", "max_skipped", "trackers"}
    free |= {"compile", "capture", "activation_checkpointing", "sequence_parallel"}  # how it is computed, not what
    same: dict[str, Any] = {key: settings.get(key) for key in ("run", "study", "size", "model", "precision")}
    train = {key: value for key, value in settings.get("train", {}).items() if key not in free}
    if train.get("teacher"):
        train["teacher"] = {key: value for key, value in train["teacher"].items() if key != "folder"}
    same["train"] = train
    for name in ("data", "start", "teacher"):  # what is in them, wherever they are
        same[name] = {"fingerprint": (settings.get(name) or {}).get("fingerprint")}
    return same


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
