"""Validation loss: nats per token and bits per byte on held-out text."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from linscale.checkpoint import list_checkpoints, load_model, step_of
from linscale.config import UserError
from linscale.data.loader import Batch, validation_batches
from linscale.data.shards import TokenDataset
from linscale.distributed import ALONE, Ranks, piece_of
from linscale.models import LanguageModel
from linscale.run_folder import (
    CONFIG,
    EVALUATIONS,
    RecordWriter,
    code_version,
    disk_errors,
    latest_records,
    locked,
    read_json,
)

PROTOCOL = 1  # to be raised when the same model on the same data would get another value


@dataclass(frozen=True)
class Score:
    """Mean loss over the tokens of a split."""

    loss: float
    """Nats per token."""
    se: float | None
    """Standard error of `loss` over windows, whose tokens are correlated; None for a single window."""
    count: int
    """Tokens scored."""
    bits_per_byte: float
    """loss / ln 2 / bytes per token: comparable between tokenizers."""
    bits_per_byte_se: float | None
    """Standard error of `bits_per_byte`."""


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context of a forward pass: "bf16" is mixed precision, "fp32" leaves everything as it is."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def validation_loss(
    model: LanguageModel,
    dataset: TokenDataset,
    *,
    length: int,
    sequences: int,
    max_tokens: int,
    split: str = "val",
    documents: bool = False,
    precision: str = "fp32",
    ranks: Ranks = ALONE,
) -> Score:
    """Score the first `max_tokens` tokens of a split, in windows of `length`, `sequences` of them at a time.

    Every window starts without context. The result does not depend on `sequences` or `ranks` beyond rounding.
    """
    device = next(model.parameters()).device
    batches = validation_batches(
        dataset, split, length=length, sequences=sequences, max_tokens=max_tokens, documents=documents
    )
    training = model.training
    model.eval()
    with torch.no_grad(), autocast(precision, device):
        means = _window_means(model, batches, length, device, ranks)
    model.train(training)
    loss = means.mean().item()
    se = means.std().item() / math.sqrt(len(means)) if len(means) > 1 else None
    to_bits = 1.0 / math.log(2.0) / dataset.bytes_per_token(split)
    return Score(loss, se, len(means) * length, loss * to_bits, None if se is None else se * to_bits)


def _window_means(
    model: LanguageModel, batches: Iterator[Batch], length: int, device: torch.device, ranks: Ranks
) -> Tensor:
    """The mean loss of every window, in order, float64 on the CPU. Replicas take turns, all in as many passes."""
    mine: dict[int, Tensor] = {}
    number = ranks.replica
    while group := list(islice(batches, ranks.replicas)):
        batch = group[min(ranks.replica, len(group) - 1)]
        bounds = None if batch.cu_seqlens is None else batch.cu_seqlens.to(device)
        tokens, targets = (x.to(device) for x in piece_of(batch.tokens, batch.targets, ranks=ranks))
        output = model(tokens, targets=targets, cu_seqlens=bounds)
        if ranks.replica < len(group):
            mine[number] = output.loss.view(-1, length // ranks.pieces).double().mean(1).cpu()
        number += ranks.replicas
    parts = ranks.gather(mine)
    numbers = sorted({number for part in parts for number in part})
    return torch.cat([torch.stack([part[n] for part in parts if n in part]).mean(0) for n in numbers])


def task_version(dataset: TokenDataset, train: Mapping[str, Any]) -> str:
    """What two validation losses must share to be comparable: protocol, data, window length, tokens, packing."""
    packing = "-documents" if train["documents"] else ""
    return f"{PROTOCOL}-{dataset.fingerprint}-length{train['length']}-tokens{train['validation_tokens']}{packing}"


def missing_steps(run: Path, version: str, steps: list[int]) -> list[int]:
    """Those of `steps` without a validation record of this task version in the run folder."""
    keys = ("step", "task", "task_version", "metric")
    found = {tuple(record.get(key) for key in keys) for record in latest_records(run / EVALUATIONS, keys)}
    metrics = ("loss", "bits_per_byte")
    return [step for step in steps if any((step, "validation", version, metric) not in found for metric in metrics)]


def record_validation(
    run: Path, settings: Mapping[str, Any], step: int, model: LanguageModel, dataset: TokenDataset,
    ranks: Ranks = ALONE,
) -> Score:  # fmt: skip
    """Evaluate the model of one step and append its records to the run's evaluations.

    `settings` is the content of the run's config.json. The caller holds the run folder's lock; of several ranks, which
    all call this, the first one does.
    """
    train = settings["train"]
    share = max(1, train["batch_tokens"] // train["length"] // ranks.replicas)
    score = validation_loss(
        model,
        dataset,
        length=train["length"],
        sequences=min(train["micro_batch"] or share, share),
        max_tokens=train["validation_tokens"],
        documents=train["documents"],
        precision=settings["precision"],
        ranks=ranks,
    )
    if not ranks.first:
        return score
    tokens = step * train["batch_tokens"]
    head = {"run": settings["run"], "step": step, "tokens": tokens, "flops": tokens * settings["flops_per_token"]}
    head |= {"task": "validation", "task_version": task_version(dataset, train)}
    tail = {"count": score.count, "code": code_version()}
    with disk_errors(run / EVALUATIONS), contextlib.closing(RecordWriter(run / EVALUATIONS)) as writer:
        writer.write(
            {**head, "metric": "loss", "value": score.loss, "se": score.se, **tail},
            {**head, "metric": "bits_per_byte", "value": score.bits_per_byte, "se": score.bits_per_byte_se, **tail},
        )
    return score


def evaluate_run(run: Path, dataset: TokenDataset | None = None) -> int:
    """Make the validation records that a run's checkpoints lack, under the run's lock; returns how many it evaluated.

    `dataset` is the run's data where the caller has it open; by default the folder that the run was trained from.
    Raises UserError when the folder is not a run, its data is gone or has changed, or a checkpoint is damaged.
    """
    settings = read_json(run / CONFIG)
    with locked(run):
        dataset = dataset or TokenDataset.open(Path(settings["data"]["path"]))
        if dataset.fingerprint != settings["data"]["fingerprint"]:
            raise UserError(
                f"{dataset.folder}: holds data {dataset.fingerprint}, "
                f"but {run} was trained on {settings['data']['fingerprint']}; restore that data"
            )
        paths = {step_of(path): path for path in list_checkpoints(run)}
        missing = missing_steps(run, task_version(dataset, settings["train"]), list(paths))
        device = "cuda" if torch.cuda.is_available() and settings["device"] == "cuda" else "cpu"
        for step in missing:
            record_validation(run, settings, step, load_model(paths[step]).to(device), dataset)
    return len(missing)
