"""The next token of every row of a batch, each by its own rules, as if it were alone.

Filters in the order of transformers: repetition penalty, temperature, top-k, top-p, min-p. What is left is drawn
with integer weights floor(2^32 p_i / p_max), whose sums are exact: no order of summation, and so no batch, device or
place in memory, can move a boundary. Nothing waits for the device and all shapes are fixed, so a CUDA graph can
capture it; what no row needs is left out by `Needs`, which the host knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from linscale.generate.noise import uniform
from linscale.generate.sampling import Sampling

ALL = 2**62  # as top_k
FEW = 1024  # highest scores, among which top-p mostly ends: where the host may look, the others need no order
UNIT = 2.0**32  # weight of the most probable token; sums over 2^21 tokens are exact in float64


class Needs(NamedTuple):
    """What some row of a batch asks for. More than that changes no row, it takes time."""

    draws: bool = False
    """A temperature above 0."""
    penalty: bool = False
    """A repetition penalty other than 1."""
    ranks: int = 0
    """How many of the highest logits top-k and top-p must have in order: a power of 2, or ALL; 0 for neither."""
    min_p: bool = False
    """A min-p above 0."""
    logprobs: int | None = None
    """The most alternatives that a row asks for; None where none asks for log-probabilities."""

    @classmethod
    def of(cls, samplings: Sequence[Sampling]) -> Self:
        """What rows with these samplings need together."""
        drawn = [each for each in samplings if each.temperature > 0]
        return cls(
            draws=bool(drawn),
            penalty=any(each.repetition_penalty != 1 for each in samplings),
            ranks=max(map(_ranks, drawn), default=0),
            min_p=any(each.min_p > 0 for each in drawn),
            logprobs=max((each.logprobs for each in samplings if each.logprobs is not None), default=None),
        )


def _ranks(sampling: Sampling) -> int:
    if sampling.top_k is None:
        return ALL if sampling.top_p < 1 else 0
    return min(ALL, 1 << (sampling.top_k - 1).bit_length())  # few values, so that few graphs are captured


class Rows(NamedTuple):
    """The rules of S rows as tensors, changed in place: a captured graph sees what `put` and `advance` write."""

    temperature: Tensor
    """(S,) float64; 0 takes the most probable token."""
    top_k: Tensor
    """(S,) int64; ALL for all tokens."""
    top_p: Tensor
    """(S,) float64"""
    min_p: Tensor
    """(S,) float64"""
    penalty: Tensor
    """(S,) float64"""
    seed: Tensor
    """(S,) int64"""
    step: Tensor
    """(S,) int64, how many tokens the row has drawn."""
    seen: Tensor
    """(S, V) bool, tokens of the prompt and of the text so far; (S, 0) where no row may ask for a penalty."""

    @classmethod
    def empty(cls, slots: int, vocab_size: int, device: torch.device | str = "cpu", *, penalties: bool = True) -> Self:
        """Greedy rows. `vocab_size` is the tokenizer's: V."""

        def full(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((slots,), value, dtype=dtype, device=device)

        whole, real = torch.int64, torch.float64
        numbers = (full(0, real), full(ALL, whole), full(1, real), full(0, real), full(1, real))
        seen = torch.zeros(slots, vocab_size if penalties else 0, dtype=torch.bool, device=device)
        return cls(*numbers, full(0, whole), full(0, whole), seen)

    @classmethod
    def of(
        cls,
        samplings: Sequence[Sampling],
        prompts: Sequence[Sequence[int]],
        vocab_size: int,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Row i continues prompts[i] by samplings[i]."""
        penalties = Needs.of(samplings).penalty
        rows = cls.empty(len(samplings), vocab_size, device, penalties=penalties)
        for slot, (sampling, prompt) in enumerate(zip(samplings, prompts, strict=True)):
            rows.put(slot, sampling, prompt)
        return rows

    def put(
        self, slot: int, sampling: Sampling, prompt: Sequence[int] = (), step: int = 0, *, seed: int | None = None
    ) -> None:
        """Begin a text in row `slot`, or go on with one that has drawn `step` tokens; a penalty counts `prompt` too.
        `seed` is in place of the sampling's."""
        self.temperature[slot] = sampling.temperature
        self.top_k[slot] = min(sampling.top_k or ALL, ALL)
        self.top_p[slot] = sampling.top_p
        self.min_p[slot] = sampling.min_p
        self.penalty[slot] = sampling.repetition_penalty
        self.seed[slot] = (sampling.seed or 0) if seed is None else seed
        self.step[slot] = step
        if sampling.repetition_penalty == 1:
            return  # `seen` of such a row is never looked at
        if not self.seen.shape[1]:
            raise ValueError("repetition_penalty: these rows were made with penalties=False")
        self.seen[slot] = False
        tokens = torch.as_tensor(prompt, dtype=torch.int64)
        self.seen[slot, tokens[tokens < self.seen.shape[1]].to(self.seen.device)] = True

    def advance(self, tokens: Tensor, *, penalties: bool = True) -> None:
        """Note that every row has got its token, (S,) int64; which it was only where some row has a penalty."""
        self.step.add_(1)
        if penalties and self.seen.shape[1]:
            self.seen.scatter_(1, tokens[:, None], True)


class Choice(NamedTuple):
    """The next tokens. Log-probabilities are the model's own, in nats, before penalty, temperature and filters."""

    tokens: Tensor
    """(S,) int64"""
    logprobs: Tensor | None
    """(S,) float32 of these tokens; None where no row asks for them."""
    best_tokens: Tensor | None
    """(S, n) int64, the most probable tokens first."""
    best_logprobs: Tensor | None
    """(S, n) float32"""


@torch.no_grad()
def choose(logits: Tensor, rows: Rows, needs: Needs, vocab_size: int) -> Choice:
    """The next token of every row, from logits (S, at least V): only the first `vocab_size` can be chosen.

    Greedy rows take the most probable token, the lowest of equals. A row's token depends on its logits, its rules,
    its seed and its step, on nothing else. Pure: `rows.advance` is the caller's.
    """
    logits = logits[:, :vocab_size]
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    scores = penalised(logits, rows) if needs.penalty else logits
    tokens = scores.argmax(1)
    if needs.draws:
        greedy = rows.temperature == 0
        tokens = torch.where(greedy, tokens, _draw(weights(scores, rows, needs), uniform(rows.seed, rows.step)))
    if needs.logprobs is None:
        return Choice(tokens, None, None, None)
    return Choice(tokens, *logprobs(logits, tokens, needs.logprobs))


def logprobs(logits: Tensor, tokens: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of logits (S, V): log-probabilities (S,) of tokens (S,), the `count` most probable tokens (S, n), and theirs.

    Summed in float64: the order, which differs between rows whose memory is aligned differently, leaves no trace.
    """
    top = logits.amax(1, keepdim=True)
    whole = top + (logits - top).exp().sum(1, keepdim=True, dtype=torch.float64).log()
    best = logits.topk(min(count, logits.shape[1]), 1)
    own = (logits.gather(1, tokens[:, None]) - whole)[:, 0]
    return own.float(), best.indices, (best.values - whole).float()


def penalised(logits: Tensor, rows: Rows) -> Tensor:
    """Logits (S, V) of seen tokens divided by the penalty where positive, times it where negative: Keskar et al. 2019,
    as transformers has it."""
    factor = rows.penalty.to(logits.dtype)[:, None]
    changed = torch.where(logits < 0, logits * factor, logits / factor)
    return torch.where(rows.seen & (factor != 1), changed, logits)


def weights(scores: Tensor, rows: Rows, needs: Needs) -> Tensor:
    """Weights (S, V) int64 that rows draw with: floor(2^32 p_i / p_max), 0 for what their filters take out.

    Tokens that share the last score let in by top-k or top-p all stay.
    """
    best = scores.amax(1, keepdim=True)
    found = _weights(scores, best, rows)
    if needs.ranks:
        if scores.is_cpu and min(needs.ranks, scores.shape[1]) > FEW:
            least, enough = _least(scores, best, found, rows, FEW)
            if not enough.all():
                least, _ = _least(scores, best, found, rows, needs.ranks)
        else:
            least, _ = _least(scores, best, found, rows, needs.ranks)
        found *= scores >= least
    if needs.min_p:
        found *= found >= rows.min_p[:, None] * UNIT
    return found


def _weights(scores: Tensor, best: Tensor, rows: Rows) -> Tensor:
    # exp in float64, whose last bits may differ between devices, is cut to 32: they agree
    temperature = torch.where(rows.temperature == 0, 1.0, rows.temperature)[:, None]
    return (scores.double() - best.double()).div_(temperature).exp_().mul_(UNIT).long()


def _least(scores: Tensor, best: Tensor, found: Tensor, rows: Rows, ranks: int) -> tuple[Tensor, Tensor]:
    """The lowest score that top-k and top-p let in, (S, 1), and whether the first `ranks` of a row tell it, (S, 1).

    A token stays while those before it have less than top_p of what top-k left; the first always does.
    """
    ranks = min(ranks, scores.shape[1])
    ranked = (scores.topk(ranks, 1) if ranks < scores.shape[1] else scores.sort(1, descending=True)).values
    top_k, top_p = rows.top_k[:, None], rows.top_p[:, None]
    last = ranked.gather(1, top_k.clamp(max=ranks) - 1).masked_fill(top_k > ranks, float("-inf"))
    asked = top_p * (found * (scores >= last)).sum(1, keepdim=True)
    shares = _weights(ranked, best, rows) * (ranked >= last)
    sums = shares.cumsum(1)
    count = (sums - shares < asked).sum(1, keepdim=True).clamp(min=1)
    free = (top_k == ALL) & (top_p >= 1)
    enough = free | (top_k <= ranks) | (top_k == ALL) & (sums[:, -1:] >= asked)
    return ranked.gather(1, count - 1).masked_fill(free, float("-inf")), enough


def _draw(found: Tensor, noise: Tensor) -> Tensor:
    """The token at which the sum of weights (S, V) passes noise (S,) in [0, 1) of the whole."""
    sums = found.cumsum(1)
    place = (noise[:, None] * sums[:, -1:]).long()
    return torch.searchsorted(sums, place, right=True)[:, 0].clamp(max=found.shape[1] - 1)
