"""Perplexity of any text: nats per token, word and byte, and the loss by position, in windows of any length.

A window begins with the token that ends texts and is read from an empty state, in pieces: time alone bounds its length,
for a linear model holds a state, and logits are never whole. Windows stand side by side (disjoint), or each moves on by
`stride` tokens and only those it adds are scored (sliding), with window - stride tokens of context or more.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from linscale.config import UserError
from linscale.data.documents import read_documents
from linscale.data.inputs import find_sources
from linscale.data.tokenizer import Tokenizer
from linscale.evaluate.memory import cache_obstacle
from linscale.evaluate.task import Result, losses_in_pieces, mean_result, vocabulary_obstacle
from linscale.models import LanguageModel

PROTOCOL = 1  # to be raised when the same model would get another value


@dataclass(frozen=True)
class TextLoss:
    """The documents of a file, joined by blank lines."""

    path: Path
    window: int
    stride: int | None = None
    "Tokens that a window moves on; None: disjoint windows."

    def __post_init__(self) -> None:
        if self.stride is not None and not 1 <= self.stride <= self.window:
            raise UserError(f"stride = {self.stride}: expected 1 to window = {self.window}")

    @property
    def name(self) -> str:
        name = Path(os.path.abspath(self.path)).name  # of "." as well
        return "text-" + name.removeprefix("builtin:").lstrip(".").split(".")[0]

    @property
    def metrics(self) -> Sequence[str]:
        return ("loss", "nats_per_word", "bits_per_byte")

    def version(self, tokenizer: Tokenizer) -> str:
        return (
            f"{PROTOCOL}-{self.digest}-{tokenizer.fingerprint}-window{self.window}-stride{self.stride or self.window}"
        )

    def obstacle(self, model: LanguageModel, tokenizer: Tokenizer) -> str | None:
        obstacle = vocabulary_obstacle(model, tokenizer)
        # A token has a byte or more: where as many as bytes would fit, nobody counts tokens.
        if obstacle or not cache_obstacle(model, min(self.window, len(self.text.encode()))):
            return obstacle
        return cache_obstacle(model, min(self.window, len(tokenizer.encode(self.text))))

    @cached_property
    def text(self) -> str:
        """The file's documents. Raises UserError where there is no word in them, nor anything to divide by."""
        sources, _ = find_sources([str(self.path)])
        text = "\n\n".join(document.text for source in sources for document in read_documents(source))
        if not text.strip():
            raise UserError(f"text = {self.path}: white space alone; expected a text with words")
        return text

    @cached_property
    def digest(self) -> str:
        """Of the text: asked for at every checkpoint."""
        return hashlib.blake2b(self.text.encode(), digest_size=8).hexdigest()

    def run(self, model: LanguageModel, tokenizer: Tokenizer) -> list[Result]:
        """loss: nats per token. loss_from_N: of the places N to 2N - 1 of windows. Standard errors are over windows, as
        the tokens of one are correlated."""
        ids = torch.tensor([tokenizer.bos_id, *tokenizer.encode(self.text)])
        windows = [self._losses(model, ids, *bounds) for bounds in self._bounds(len(ids) - 1)]
        overall = _over_windows("loss", [nats for _, nats in windows])
        total = overall.value * overall.count
        words, size = len(self.text.split()), len(self.text.encode())
        results = [
            overall,
            Result("nats_per_word", total / words, None, words),
            Result("bits_per_byte", total / math.log(2) / size, None, size),
        ]
        for power in range(max(int(places[-1]) + 1 for places, _ in windows).bit_length()):
            first = (1 << power) - 1  # places count from 0
            there = [nats[(places >= first) & (places <= 2 * first)] for places, nats in windows]
            if any(map(len, there)):
                results.append(_over_windows(f"loss_from_{first + 1}", there))
        return results

    def _bounds(self, count: int) -> Iterator[tuple[int, int, int]]:
        """First target, first one that is scored, and end, of every window over targets 0 to count."""
        stride = self.stride or self.window
        scored = 0
        while scored < count:
            end = min(count, self.window if scored == 0 else scored + stride)
            yield max(0, end - self.window) if self.stride else scored, scored, end
            scored = end

    def _losses(self, model: LanguageModel, ids: Tensor, first: int, scored: int, end: int) -> tuple[Tensor, Tensor]:
        """Places in the window, from 0, and nats, of the targets `scored` to `end`; both on the CPU."""
        window = ids[first : end + 1].clone()
        window[0] = ids[0]  # a window knows nothing of what was before it
        return torch.arange(scored - first, end - first), losses_in_pieces(model, window)[scored - first :]


def _over_windows(metric: str, parts: Sequence[Tensor]) -> Result:
    """The mean of all nats, with the standard error of the means of windows; those without a token do not count."""
    parts = [part for part in parts if len(part)]
    nats = torch.cat(parts)
    spread = mean_result(metric, torch.stack([part.mean() for part in parts]), len(nats))
    return replace(spread, value=nats.mean().item())
