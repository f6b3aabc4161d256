"""How well a model copies: the loss and accuracy at the places of the payload, on sequences that training never had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from linscale.data.copying import Copying
from linscale.data.tokenizer import Tokenizer
from linscale.distributed import ALONE, Ranks
from linscale.evaluate.task import Result, autocast, device_of
from linscale.models import LanguageModel

PROTOCOL = 1
BATCH_TOKENS = 1 << 18  # read at once, at most; at least one sequence


@dataclass(frozen=True)
class CopyingTask:
    """`sequences` of a task with so much noise, from batch `first` on; all ranks call `run`."""

    data: Copying
    noise: int
    sequences: int
    precision: str = "fp32"
    first: int = 0
    ranks: Ranks = ALONE
    batch_tokens: int = BATCH_TOKENS

    @property
    def name(self) -> str:
        return "validation"

    @property
    def metrics(self) -> Sequence[str]:
        return ("loss", "accuracy")

    def version(self, tokenizer: Tokenizer | None = None) -> str:
        return f"{PROTOCOL}-{self.data.fingerprint}-noise{self.noise}-sequences{self.sequences}-seed{self.data.seed}"

    def obstacle(self, model: LanguageModel, tokenizer: Tokenizer | None = None) -> str | None:
        if model.config.vocab_size < self.data.vocab_size:
            return f"the task has {self.data.vocab_size} symbols, the model {model.config.vocab_size}"
        return None

    def run(self, model: LanguageModel, tokenizer: Tokenizer | None = None) -> list[Result]:
        """loss: nats of a payload token; accuracy: the share of them that is most probable. Errors over sequences."""
        device, payload = device_of(model), self.data.task.payload
        at_once = max(1, min(self.sequences, self.batch_tokens // self.data.task.length(self.noise)))
        at_once = -(-at_once // self.data.world) * self.data.world
        nats, right = [], []
        training = model.training
        model.eval()
        for number in range(-(-self.sequences // at_once)):
            batch = self.data.batch(self.first + number, at_once, self.noise, "val")
            tokens, targets = batch.tokens.to(device), batch.targets[:, -payload:].to(device)
            with torch.no_grad(), autocast(self.precision, device):
                x, _ = model.read(tokens)
                logits = model.logits(x[:, -payload:]).float()  # (B, payload, vocab)
            right.append((logits.argmax(-1) == targets).double().mean(1).cpu())
            nats.append(-logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0].double().mean(1).cpu())
        model.train(training)
        return [_mean("loss", nats, self.ranks, payload), _mean("accuracy", right, self.ranks, payload)]


def _mean(metric: str, parts: list[torch.Tensor], ranks: Ranks, payload: int) -> Result:
    values = torch.cat([torch.cat(each) for each in ranks.gather(parts)])
    se = values.std().item() / len(values) ** 0.5 if len(values) > 1 else None
    return Result(metric, values.mean().item(), se, len(values) * payload)
