"""How well a model tells the class of a sequence: loss and accuracy at its last token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from linscale.data.labelled import Labelled
from linscale.data.tokenizer import Tokenizer
from linscale.distributed import ALONE, Ranks
from linscale.evaluate.task import Result, autocast, device_of, mean_result
from linscale.models import LanguageModel

PROTOCOL = 1
BATCH_TOKENS = 1 << 18  # read at once, at most; at least one sequence


@dataclass(frozen=True)
class ClassesTask:
    """The first `sequences` of a set's validation split; all ranks call `run`."""

    data: Labelled
    sequences: int
    precision: str = "fp32"
    ranks: Ranks = ALONE

    @property
    def name(self) -> str:
        return "validation"

    @property
    def metrics(self) -> Sequence[str]:
        return ("loss", "accuracy")

    @property
    def count(self) -> int:
        """Sequences that are read: no more than there are."""
        return min(self.sequences, len(self.data.labels["val"]))

    def version(self, tokenizer: Tokenizer | None = None) -> str:
        return f"{PROTOCOL}-{self.data.fingerprint}-sequences{self.count}"

    def obstacle(self, model: LanguageModel, tokenizer: Tokenizer | None = None) -> str | None:
        if model.config.vocab_size < self.data.vocab_size:
            return f"the set has {self.data.vocab_size} tokens and classes, the model {model.config.vocab_size}"
        return None

    def run(self, model: LanguageModel, tokenizer: Tokenizer | None = None) -> list[Result]:
        """loss: nats of the class among the classes, other tokens left aside; accuracy: the share of sequences whose
        class is the most probable one of them. Errors over sequences."""
        device, at_once = device_of(model), max(1, BATCH_TOKENS // self.data.length)
        # As many for every rank, for they pass through the model together; what is read twice is cut off below.
        mine = (
            np.arange(self.data.rank, -(-self.count // self.data.world) * self.data.world, self.data.world) % self.count
        )
        nats, right = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        training = model.training
        model.eval()
        for places in np.array_split(mine, -(-len(mine) // at_once)):
            batch = self.data.take("val", places)
            with torch.no_grad(), autocast(self.precision, device):
                x, _ = model.read(batch.tokens.to(device))
                logits = model.logits(x[:, -1]).float()  # (B, vocab)
            logits = logits[:, self.data.symbols : self.data.vocab_size].cpu()
            labels = batch.targets[:, -1] - self.data.symbols
            right = torch.cat([right, (logits.argmax(-1) == labels).double()])
            nats = torch.cat([nats, -logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0].double()])
        model.train(training)
        values = {
            name: torch.stack(self.ranks.gather(x), 1).flatten()[: self.count]
            for name, x in (("loss", nats), ("accuracy", right))
        }
        return [mean_result(metric, each, self.count) for metric, each in values.items()]
