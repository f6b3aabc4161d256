"""Batch and learning rate for a size and a number of tokens: Step Law (Li et al. 2025, arXiv 2503.04715).

    lr    = 1.79 N^-0.713 D^0.307        N without embeddings, D tokens
    batch = 0.58 D^0.571  tokens

Fitted to 3,700 softmax language models of up to 1B parameters and 100B tokens, whose learning rate decays; our linear
models were not among them. Where it is used far outside it is a guess, and a short sweep of the learning rate at the
smallest rung of a ladder is cheap.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "Step Law, arXiv 2503.04715"
LR_RANGE = (1e-5, 6e-3)  # 6e-3: what the demo's models of 3k to 170k parameters train at
WARMUP = 0.02  # of the tokens, as the fits of a study leave out by default
WARMUP_STEPS = (10, 2000)


@dataclass(frozen=True)
class Recipe:
    """How one run is trained."""

    tokens: int
    """A whole number of steps."""
    batch_tokens: int
    lr: float
    warmup_tokens: int
    wanted_batch: float
    """What the law asks for, before rounding."""

    @property
    def steps(self) -> int:
        return self.tokens // self.batch_tokens


def recipe(params: float, tokens: float, length: int, gpus: int = 1) -> Recipe:
    """The recipe for N params and D tokens in sequences of `length` on so many GPUs.

    Sequences of a step are the multiple of `gpus` nearest to the law that is 2^k or 3 * 2^k a GPU, so that they divide
    into micro-batches; at least one a GPU. Tokens are rounded down to whole steps, at least one.
    """
    wanted = 0.58 * tokens**0.571
    share = _round(wanted / (length * gpus))
    batch = share * length * gpus
    steps = max(1, round(tokens / batch))
    lr = min(max(1.79 * params**-0.713 * tokens**0.307, LR_RANGE[0]), LR_RANGE[1])
    warmup = min(max(round(WARMUP * steps), WARMUP_STEPS[0]), WARMUP_STEPS[1], steps // 5)
    return Recipe(steps * batch, batch, float(f"{lr:.2g}"), warmup * batch, wanted)


def _round(value: float) -> int:
    """The nearest of 1, 2, 3, 4, 6, 8, 12, 16, ... in ratio."""
    grid = [factor << power for power in range(40) for factor in (2, 3)]
    return min([1, *grid], key=lambda each: max(each / value, value / each))
