"""Perplexity of passages: the loss on whole records of LAMBADA, each read by itself behind the end of a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from linscale.data.sets import SETS, read_set, set_name
from linscale.data.tokenizer import Tokenizer
from linscale.evaluate.likelihood import Pair, score
from linscale.evaluate.task import Result, vocabulary_obstacle
from linscale.models import LanguageModel

PROTOCOL = 1  # to be raised when the same model would get another value


@dataclass(frozen=True)
class Passages:
    """The field `text` of every record of a set; `limit` takes the first ones alone."""

    path: Path
    limit: int | None = None
    _pairs: dict[str, list[Pair]] = field(default_factory=dict, compare=False, repr=False)
    "By the fingerprint of the tokenizer."

    @property
    def name(self) -> str:
        return f"text-{set_name(self.path)}"

    @property
    def metrics(self) -> Sequence[str]:
        return ("loss", "nats_per_word", "bits_per_byte")

    def version(self, tokenizer: Tokenizer) -> str:
        first = "" if self.limit is None else f"-first{self.limit}"
        return f"{PROTOCOL}-{SETS[set_name(self.path)].sha256[:16]}-{tokenizer.fingerprint}-passages{first}"

    def obstacle(self, model: LanguageModel, tokenizer: Tokenizer) -> str | None:
        return vocabulary_obstacle(model, tokenizer)

    @cached_property
    def texts(self) -> list[str]:
        """Raises UserError when the file's content has changed."""
        return [record["text"] for record in read_set(self.path)][: self.limit]

    def run(self, model: LanguageModel, tokenizer: Tokenizer) -> list[Result]:
        """loss: nats per token, its standard error that of a ratio of two means over passages."""
        if tokenizer.fingerprint not in self._pairs:
            self._pairs.clear()
            encoded = tokenizer.encode_batch(self.texts)
            self._pairs[tokenizer.fingerprint] = [([tokenizer.bos_id], ids.tolist()) for ids in encoded]
        pairs = self._pairs[tokenizer.fingerprint]
        nats = torch.tensor([-likelihood.nats for likelihood in score(model, pairs)]).double()
        tokens = torch.tensor([len(ids) for _, ids in pairs]).double()
        total, count = nats.sum().item(), int(tokens.sum())
        spread = (nats - total / count * tokens).std().item() / tokens.mean().item()
        words, size = sum(len(text.split()) for text in self.texts), sum(len(text.encode()) for text in self.texts)
        return [
            Result("loss", total / count, spread / math.sqrt(len(pairs)) if len(pairs) > 1 else None, count),
            Result("nats_per_word", total / words, None, words),
            Result("bits_per_byte", total / math.log(2) / size, None, size),
        ]
