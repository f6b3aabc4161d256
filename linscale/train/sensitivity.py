"""Which layers a teacher can least do without: what each costs when it alone is linear.

    increase_l = loss of the teacher with mixer l of the student - loss of the teacher        nats, on validation text

The student's mixers are those of a first stage, which learnt to give what the teacher's give. Layers are tried one at a
time: what two of them cost together is not measured, and a hybrid is trained on afterwards. The order is a guess at
which layers to keep, better founded than even spacing, and no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from linscale.data.loader import Batch, validation_batches
from linscale.data.shards import TokenDataset
from linscale.distributed import ALONE
from linscale.evaluate.perplexity import window_means
from linscale.models import LanguageModel

OnLayer = Callable[[int, int], None]
"""Is told how many layers are done, of how many."""


@dataclass(frozen=True)
class LayerCost:
    """What a layer costs."""

    layer: int
    """Counted from 0."""
    increase: float
    """Of the loss, in nats per token."""
    se: float | None
    """Its standard error over windows, each compared with itself; None for a single window."""


@dataclass(frozen=True)
class Sensitivity:
    """Of every layer."""

    loss: float
    """The teacher's, in nats per token."""
    tokens: int
    """Scored."""
    layers: tuple[LayerCost, ...]
    """In their order."""

    def most(self, count: int) -> tuple[int, ...]:
        """The `count` layers that cost most, ascending: those to keep as softmax attention."""
        dearest = sorted(self.layers, key=lambda each: -each.increase)[:count]
        return tuple(sorted(each.layer for each in dearest))


def measure_sensitivity(
    teacher: LanguageModel, student: LanguageModel, dataset: TokenDataset, *, length: int, tokens: int,
    sequences: int = 8, documents: bool = False, precision: str = "fp32", on_layer: OnLayer | None = None,
) -> Sensitivity:  # fmt: skip
    """Both models on one device, of as many layers; on the first `tokens` of the validation split in windows of
    `length`, `sequences` at a time, whose documents are kept apart where `documents` is true. The teacher is left as
    it was."""

    def losses() -> Tensor:
        batches = validation_batches(
            dataset, "val", length=length, sequences=sequences, max_tokens=tokens, documents=documents
        )
        return _losses(teacher, batches, length, precision)

    before = losses()
    found = []
    for layer, (block, other) in enumerate(zip(teacher.blocks, student.blocks, strict=True)):
        own = block.mixer
        block.mixer = other.mixer
        try:
            added = losses() - before
        finally:
            block.mixer = own
        se = added.std().item() / math.sqrt(len(added)) if len(added) > 1 else None
        found.append(LayerCost(layer, added.mean().item(), se))
        if on_layer:
            on_layer(layer + 1, len(teacher.blocks))
    return Sensitivity(before.mean().item(), len(before) * length, tuple(found))


def _losses(model: LanguageModel, batches: Iterator[Batch], length: int, precision: str) -> Tensor:
    """Of every window, (W,)."""

    def loss(tokens: Tensor, targets: Tensor, cu_seqlens: Tensor | None) -> Tensor:
        found: Tensor = model(tokens, targets=targets, cu_seqlens=cu_seqlens).loss
        return found

    with torch.compiler.set_stance("force_eager"):
        return window_means(model, loss, batches, length, precision, ALONE)
