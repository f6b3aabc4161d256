"""Validation loss: nats per token and bits per byte on held-out text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from linscale.data.loader import Batch, validation_batches
from linscale.data.shards import TokenDataset
from linscale.data.tokenizer import Tokenizer
from linscale.distributed import ALONE, Ranks, piece_of
from linscale.evaluate.task import Result, autocast
from linscale.models import LanguageModel

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
    batches = validation_batches(
        dataset, split, length=length, sequences=sequences, max_tokens=max_tokens, documents=documents
    )

    def loss_of(tokens: Tensor, targets: Tensor, cu_seqlens: Tensor | None) -> Tensor:
        found: Tensor = model(tokens, targets=targets, cu_seqlens=cu_seqlens).loss
        return found

    means = window_means(model, loss_of, batches, length, precision, ranks)
    loss = means.mean().item()
    se = means.std().item() / math.sqrt(len(means)) if len(means) > 1 else None
    to_bits = 1.0 / math.log(2.0) / dataset.bytes_per_token(split)
    return Score(loss, se, len(means) * length, loss * to_bits, None if se is None else se * to_bits)


Measure = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""tokens, targets (B, T) and boundaries of documents -> values of every token, (B, T) or (B, T, M)."""


def window_means(
    model: LanguageModel, measure: Measure, batches: Iterator[Batch], length: int, precision: str, ranks: Ranks
) -> Tensor:
    """Means of every window in order, (W,) or (W, M) float64 on the CPU. Replicas take turns, all in as many passes."""
    mine: dict[int, Tensor] = {}
    number, device, training = ranks.replica, next(model.parameters()).device, model.training
    model.eval()
    with torch.no_grad(), autocast(precision, device):
        while group := list(islice(batches, ranks.replicas)):
            batch = group[min(ranks.replica, len(group) - 1)]
            bounds = None if batch.cu_seqlens is None else batch.cu_seqlens.to(device)
            tokens, targets = (x.to(device) for x in piece_of(batch.tokens, batch.targets, ranks=ranks))
            values = measure(tokens, targets, bounds)
            if ranks.replica < len(group):
                windows = values.reshape(-1, length // ranks.pieces, *values.shape[2:])
                mine[number] = windows.double().mean(1).cpu()
            number += ranks.replicas
    model.train(training)
    parts = ranks.gather(mine)
    numbers = sorted({number for part in parts for number in part})
    return torch.cat([torch.stack([part[n] for part in parts if n in part]).mean(0) for n in numbers])


@dataclass(frozen=True)
class Validation:
    """The validation loss of a run, on its own data, as the task that training records at every checkpoint."""

    dataset: TokenDataset
    settings: Mapping[str, Any]
    "The content of the run's config.json."
    ranks: Ranks = ALONE
    "All of them call `run`."

    @property
    def name(self) -> str:
        return "validation"

    @property
    def metrics(self) -> Sequence[str]:
        return ("loss", "bits_per_byte")

    def version(self, tokenizer: Tokenizer) -> str:
        train = self.settings["train"]
        packing = "-documents" if train["documents"] else ""
        windows = f"length{train['length']}-tokens{train['validation_tokens']}{packing}"
        return f"{PROTOCOL}-{self.dataset.fingerprint}-{windows}"

    def obstacle(self, model: LanguageModel, tokenizer: Tokenizer) -> str | None:
        return None  # it was trained on these tokens

    def run(self, model: LanguageModel, tokenizer: Tokenizer) -> list[Result]:
        """loss: nats per token; bits_per_byte."""
        train = self.settings["train"]
        score = validation_loss(
            model,
            self.dataset,
            length=train["length"],
            sequences=self._sequences,
            max_tokens=train["validation_tokens"],
            documents=train["documents"],
            precision=self.settings["precision"],
            ranks=self.ranks,
        )
        return [
            Result("loss", score.loss, score.se, score.count),
            Result("bits_per_byte", score.bits_per_byte, score.bits_per_byte_se, score.count),
        ]

    def means(self, model: LanguageModel, measure: Measure) -> tuple[Tensor, int]:
        """Means of every window of the same texts, (W, M), of M other values a token; and the number of tokens."""
        train = self.settings["train"]
        batches = validation_batches(
            self.dataset, "val", length=train["length"], sequences=self._sequences,
            max_tokens=train["validation_tokens"], documents=train["documents"],
        )  # fmt: skip
        found = window_means(model, measure, batches, train["length"], self.settings["precision"], self.ranks)
        return found, len(found) * train["length"]

    @property
    def _sequences(self) -> int:
        train = self.settings["train"]
        share = max(1, int(train["batch_tokens"]) // train["length"] // self.ranks.replicas)
        return min(train["micro_batch"] or share, share)
