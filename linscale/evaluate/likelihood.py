"""Log-likelihoods of continuations: every distinct context is read once, and its state forked over what may follow.

    context c1 ... cn, continuations a, b     read c1 ... cn-1 to a state; from two copies of it read
                                              cn a1 ... and cn b1 ..., whose logits are those of a and b

Contexts and forks are packed end to end, the longest first, so nothing is padded. The head works on scored places
alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from linscale.data.tokenizer import Tokenizer
from linscale.evaluate.task import device_of
from linscale.generate.states import fork, most_states
from linscale.models import LanguageModel, State

BATCH_TOKENS = 8192  # of contexts and continuations that are read at once
MOST_LOGITS = 1 << 25  # made at once
Pair: TypeAlias = tuple[Sequence[int], Sequence[int]]
"""Tokens of a context, one or more, and of what follows it."""
Fork: TypeAlias = tuple[tuple[int, ...], list[int]]
"""A context, and the numbers of the pairs that begin with it."""


class Likelihood(NamedTuple):
    nats: float
    """log p(continuation | context), at most 0; over the model's whole vocabulary."""
    greedy: bool
    """Whether every token of the continuation is the most probable one."""


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens of both, as lm-evaluation-harness 0.4.13 cuts them (TemplateLM._encode_pair and .loglikelihood).

    White space that ends the context goes to the continuation, which is what the tokens of both together have beyond
    the number of the context's own. Nothing is put before a context, but for an empty one stands the end of text.
    """
    stripped = context.rstrip()
    whole = tokenizer.encode(context + continuation)
    if not stripped:
        return [tokenizer.eos_id], whole
    tokens = tokenizer.encode(stripped)
    return tokens, whole[len(tokens) :]


def encode_pairs(tokenizer: Tokenizer, texts: Sequence[tuple[str, str]]) -> list[Pair]:
    """Tokens of every context and continuation."""
    return [encode_pair(tokenizer, *pair) for pair in texts]


def score(model: LanguageModel, pairs: Sequence[Pair], batch_tokens: int = BATCH_TOKENS) -> list[Likelihood]:
    """The likelihood of each pair, in order; beyond rounding the same for any `batch_tokens`. An empty continuation
    has 0 nats and is greedy. The caller has set eval mode, no_grad and precision."""
    found: dict[int, Likelihood] = {}
    for forks in _batches(model, pairs, batch_tokens):
        numbers = [number for _, numbers in forks for number in numbers]
        found.update(zip(numbers, _score_batch(model, forks, [pairs[number][1] for number in numbers]), strict=True))
    return [found.get(number, Likelihood(0.0, True)) for number in range(len(pairs))]


def _batches(model: LanguageModel, pairs: Sequence[Pair], batch_tokens: int) -> Iterator[list[Fork]]:
    """Forks that are scored together. A batch is over `batch_tokens` only where one pair alone is; contexts of one
    token, which are read with their continuations, come apart from the others."""
    batch: list[Fork] = []
    room = states = 0
    for context, numbers in _forks(model, pairs, batch_tokens):
        cost = len(context) + sum(len(pairs[number][1]) for number in numbers)
        most = most_states(model.config, len(batch[0][0]) if batch else len(context))
        if batch and (cost > room or states + len(numbers) > most or len(context) == 1 < len(batch[0][0])):
            yield batch
            batch = []
        if not batch:
            room, states = batch_tokens, 0
        batch.append((context, numbers))
        room, states = room - cost, states + len(numbers)
    if batch:
        yield batch


def _forks(model: LanguageModel, pairs: Sequence[Pair], batch_tokens: int) -> Iterator[Fork]:
    """Every context with all of its pairs, the longest first; again where its pairs are too many for one batch."""
    together: dict[tuple[int, ...], list[int]] = {}
    for number, (context, continuation) in enumerate(pairs):
        if len(continuation):
            together.setdefault(tuple(context), []).append(number)
    for context in sorted(together, key=len, reverse=True):
        most, room = most_states(model.config, len(context)), batch_tokens - len(context)
        numbers: list[int] = []
        for number in together[context]:
            room -= len(pairs[number][1])
            if numbers and (room < 0 or len(numbers) == most):
                yield context, numbers
                room, numbers = batch_tokens - len(context) - len(pairs[number][1]), []
            numbers.append(number)
        yield context, numbers


def _score_batch(
    model: LanguageModel, forks: Sequence[Fork], continuations: Sequence[Sequence[int]]
) -> list[Likelihood]:
    device = device_of(model)
    rows = [row for row, (_, numbers) in enumerate(forks) for _ in numbers]
    state = None
    if len(forks[0][0]) > 1:
        tokens, bounds = _pack([context[:-1] for context, _ in forks], device)
        _, state = model.read(tokens, cu_seqlens=bounds)
        state = fork(state, torch.tensor(rows, device=device))
    return score_from(model, state, [forks[row][0][-1] for row in rows], continuations)


def score_from(
    model: LanguageModel, state: State | None, lasts: Sequence[int], continuations: Sequence[Sequence[int]]
) -> list[Likelihood]:
    """The likelihood of continuation i behind sequence i of `state` and one more token, lasts[i]; none is empty. All
    are read at once."""
    device = device_of(model)
    inputs = [[last, *tokens[:-1]] for last, tokens in zip(lasts, continuations, strict=True)]
    tokens, bounds = _pack(inputs, device)
    x, _ = model.read(tokens, state, bounds)
    targets = torch.tensor([token for tokens in continuations for token in tokens], device=device)
    nats, best = _at_targets(model, x[0], targets)
    lengths = [len(tokens) for tokens in continuations]
    return [
        Likelihood(part.sum().item(), bool(right.all()))
        for part, right in zip(nats.split(lengths), best.split(lengths), strict=True)
    ]


def _pack(documents: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens (1, T) and cu_seqlens (N+1,) of N documents that are not empty."""
    lengths = torch.tensor([0, *map(len, documents)])
    tokens = torch.tensor([[token for document in documents for token in document]])
    return tokens.to(device), lengths.cumsum(0).to(device)


def _at_targets(model: LanguageModel, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log p of each target (T,), float64, and whether it is the most probable token; x (T, D). Both on the CPU."""
    nats, best = [], []
    places = max(1, MOST_LOGITS // model.config.vocab_size)
    for part, wanted in zip(x.split(places), targets.split(places), strict=True):
        logits = model.logits(part)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nats.append(logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(1))
        best.append(logits.argmax(1) == wanted)
    return torch.cat(nats).double().cpu(), torch.cat(best).cpu()
