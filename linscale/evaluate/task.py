"""What can be measured on a checkpoint: the contract between tasks and the job that runs them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from linscale.data.tokenizer import Tokenizer
from linscale.models import LanguageModel

PIECE = 8192  # tokens of a long text that are read at once


@dataclass(frozen=True)
class Result:
    """One number about one model."""

    metric: str
    value: float
    se: float | None
    """Standard error of `value` over independent examples; None where there is one alone."""
    count: int
    """What was scored, in the unit of the task."""
    cells: tuple[float, ...] | None = None
    """Values of the parts that `value` is the mean of, such as one per depth; None where they are not kept."""


class Task(Protocol):
    """Something that a model is measured on. The same answer for any batch size."""

    @property
    def name(self) -> str:
        """Unique; the `task` of its records."""

    @property
    def metrics(self) -> Sequence[str]:
        """The metrics that it always gives: a checkpoint with records of all of them is done."""

    def version(self, tokenizer: Tokenizer) -> str:
        """What two values must share to be comparable: protocol, content, options."""

    def obstacle(self, model: LanguageModel, tokenizer: Tokenizer) -> str | None:
        """Why it cannot be run on this model, in one line, or None."""

    def run(self, model: LanguageModel, tokenizer: Tokenizer) -> list[Result]:
        """Measure. The caller has set eval mode, no_grad and precision."""


@runtime_checkable
class PerRun(Protocol):
    """A task that depends on how the run was trained, such as on its length."""

    def for_run(self, settings: Mapping[str, Any]) -> Task:
        """The task for the run with this config.json, of the same name and metrics."""


def tasks_of_run(tasks: Sequence[Task], settings: Mapping[str, Any]) -> list[Task]:
    """What tasks are for the run with this config.json."""
    return [task.for_run(settings) if isinstance(task, PerRun) else task for task in tasks]


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context of a forward pass: "bf16" is mixed precision, "fp32" leaves everything as it is."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def mean_result(metric: str, values: Tensor, count: int) -> Result:
    """The mean of independent values (n,) with its standard error."""
    values = values.double()
    se = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None
    return Result(metric, values.mean().item(), se, count)


def device_of(model: LanguageModel) -> torch.device:
    """Where a model's weights are."""
    return next(model.parameters()).device


def vocabulary_obstacle(model: LanguageModel, tokenizer: Tokenizer) -> str | None:
    """Why a model cannot read this tokenizer's text, or None."""
    if tokenizer.vocab_size > model.config.vocab_size:
        return f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}"
    return None


def losses_in_pieces(model: LanguageModel, ids: Tensor) -> Tensor:
    """Nats of every token (T,) but the first, (T - 1,) float64 on the CPU; read `PIECE` tokens at once, of any T."""
    state, found = None, []
    for tokens, targets in zip(ids[:-1].split(PIECE), ids[1:].split(PIECE), strict=True):
        output = model(tokens[None].to(device_of(model)), targets[None].to(device_of(model)), state)
        state = output.state
        found.append(output.loss[0].double().cpu())
    return torch.cat(found)
