"""Recall: what a model can look up in its own context. Random tokens from a seed: no text, no files, any vocabulary.

    mqar       k1 v1 ... kn vn, then the keys in another order, each with its VALUE behind it     (arXiv 2312.04927)
    copy       x1 ... xn s X1 ... XN
    selective  x1 ... xn spread over 4n places among one token of noise, s, X1 ... XN
    induction  n tokens that differ, one of them again, and WHAT stood behind it

Capitals are scored. n is what has to be held, the axis on which a state of fixed size falls behind a memory that
grows. Every sequence begins with the token that
ends texts, as the documents of training do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from linscale.data.tokenizer import Tokenizer
from linscale.evaluate.task import Result, device_of, mean_result
from linscale.models import LanguageModel

Kind = Literal["mqar", "copy", "selective", "induction"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SIZES = (4, 16, 64)
EXAMPLES = 64
PROTOCOL = 1  # to be raised when the same model would get another value
MOST_LOGITS = 1 << 25  # of a forward pass
SPREAD = 4  # places a token of selective copying
IGNORED = -100


@dataclass(frozen=True)
class Recall:
    """`examples` sequences of one kind with n = `size`, always the same for the same vocabulary."""

    kind: Kind
    size: int
    examples: int = EXAMPLES
    seed: int = 0

    @property
    def name(self) -> str:
        return f"recall-{self.kind}-{self.size}"

    @property
    def metrics(self) -> Sequence[str]:
        return ("accuracy", "loss")

    def version(self, tokenizer: Tokenizer) -> str:
        return f"{PROTOCOL}-vocab{tokenizer.vocab_size}-examples{self.examples}-seed{self.seed}"

    def obstacle(self, model: LanguageModel, tokenizer: Tokenizer) -> str | None:
        needed = 2 * self.size + 2  # keys and values, or tokens that differ, and the special ones
        if tokenizer.vocab_size < needed:
            return f"{self.name} takes {needed} tokens, the vocabulary has {tokenizer.vocab_size}"
        return None

    def run(self, model: LanguageModel, tokenizer: Tokenizer) -> list[Result]:
        """Accuracy: the share of scored places whose most probable token is right; loss: nats there. Over sequences."""
        inputs, targets = self.sequences(tokenizer)
        device, scored = device_of(model), targets[0] != IGNORED  # the same places in every sequence
        rows = max(1, MOST_LOGITS // (inputs.shape[1] * tokenizer.vocab_size))
        right, nats = [], []
        for tokens, wanted in zip(inputs.split(rows), targets[:, scored].split(rows), strict=True):
            logits = model(tokens.to(device)).logits[:, scored.to(device)].float()  # (B, scored, vocab)
            wanted = wanted.to(device)
            right.append((logits.argmax(-1) == wanted).double().mean(1).cpu())
            nats.append(-logits.log_softmax(-1).gather(-1, wanted[..., None])[..., 0].double().mean(1).cpu())
        count = int(scored.sum()) * len(inputs)
        return [mean_result("accuracy", torch.cat(right), count), mean_result("loss", torch.cat(nats), count)]

    def sequences(self, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
        """Inputs and targets (examples, T): the target of a place is the token behind it, or IGNORED."""
        generator = torch.Generator().manual_seed(self.seed)
        words = torch.tensor([word for word in range(tokenizer.vocab_size) if word != tokenizer.eos_id])
        rows = [self._sequence(words[torch.randperm(len(words), generator=generator)], generator)
                for _ in range(self.examples)]  # fmt: skip
        start = torch.full((self.examples, 1), tokenizer.bos_id)
        text = torch.cat([start, torch.stack([text for text, _ in rows])], dim=1)
        scored = torch.cat([torch.zeros_like(start, dtype=torch.bool), torch.stack([mask for _, mask in rows])], dim=1)
        return text[:, :-1], torch.where(scored, text, IGNORED)[:, 1:]

    def _sequence(self, words: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One text from shuffled words that all differ, and which of its tokens are scored."""
        n, special, words = self.size, words[:1], words[1:]
        order = torch.randperm(n, generator=generator)
        if self.kind == "mqar":
            pairs = torch.stack([words[:n], words[n : 2 * n]], dim=1)
            text = torch.cat([pairs, pairs[order]]).flatten()
            scored = torch.arange(len(text)) >= 2 * n
            scored[2 * n :: 2] = False
            return text, scored
        if self.kind == "induction":
            place = int(torch.randint(n - 1, (), generator=generator))
            return torch.cat([words[:n], words[place : place + 2]]), torch.arange(n + 2) == n + 1
        tokens = words[:n]
        shown = tokens
        if self.kind == "selective":
            shown = special.repeat(SPREAD * n)
            places = torch.randperm(len(shown), generator=generator)[:n].sort().values
            shown[places] = tokens
            special = words[n : n + 1]
        return torch.cat([shown, special, tokens]), torch.arange(len(shown) + 1 + n) > len(shown)


def recall_tasks(sizes: Sequence[int] = SIZES, examples: int = EXAMPLES) -> list[Recall]:
    """Every kind at every size."""
    return [Recall(kind, size, examples) for kind in KINDS for size in sizes]
