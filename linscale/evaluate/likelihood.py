"""Log-likelihoods of continuations: what several texts begin with is read once, and its state forked over the rest.

    texts x y a b, x y c d e, x y f     read x y to a state, whose logits score a, c and f; from two copies of it read a
                                        to score b, and c d to score d and e

A text is a context and its continuation; texts that begin alike form a tree of one trunk and branches. Trunks, and then
branches, are packed end to end, the longest first, so nothing is padded. The head works on scored places alone.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from linscale.data.tokenizer import Tokenizer
from linscale.evaluate.task import device_of
from linscale.evaluate.trees import Text, Tree, batches_of, scored, trees_of
from linscale.generate.states import MOST_STATE, fork
from linscale.models import LanguageModel, State

BATCH_TOKENS = 8192  # of trunks and branches that are read at once
GPU = 8  # a GPU is given so many times as much at once, states too
MOST_LOGITS = 1 << 25  # made at once
Pair: TypeAlias = tuple[Sequence[int], Sequence[int]]
"""Tokens of a context, one or more, and of what follows it."""


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
    (pair,) = encode_pairs(tokenizer, [(context, continuation)])
    return [*pair[0]], [*pair[1]]


def encode_pairs(tokenizer: Tokenizer, texts: Sequence[tuple[str, str]]) -> list[Pair]:
    """`encode_pair` of each; a text that comes again is encoded once."""
    stripped = [context.rstrip() for context, _ in texts]
    distinct = [*dict.fromkeys([*stripped, *(context + continuation for context, continuation in texts)])]
    with collector_paused():
        tokens = {text: ids.tolist() for text, ids in zip(distinct, tokenizer.encode_many(distinct), strict=True)}
    pairs: list[Pair] = []
    for start, (context, continuation) in zip(stripped, texts, strict=True):
        whole = tokens[context + continuation]
        pairs.append((tokens[start], whole[len(tokens[start]) :]) if start else ([tokenizer.bos_id], whole))
    return pairs


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Inside, Python does not look for cycles: among 100,000 new lists that takes a third of the time, for nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def score(model: LanguageModel, pairs: Sequence[Pair], batch_tokens: int | None = None) -> list[Likelihood]:
    """The likelihood of each pair, in order; beyond rounding the same for any `batch_tokens`. An empty continuation
    has 0 nats and is greedy. The caller has set eval mode, no_grad and precision."""
    texts = [(*context, *continuation) for context, continuation in pairs]
    firsts = [len(context) for context, _ in pairs]
    times = GPU if device_of(model).type == "cuda" else 1
    most = batch_tokens or times * BATCH_TOKENS, times * MOST_STATE
    batches = batches_of(model.config, trees_of(texts, firsts), texts, *most)
    found, scored_tokens = [Likelihood(0.0, True)] * len(pairs), []
    for trees in batches:
        work = Work.of(trees, texts, firsts)
        scored_tokens.append((work, _score_batch(model, work)))
    for work, (nats, best) in scored_tokens:  # fetched last: before, the device would be waited for
        for number, likelihood in zip(work.numbers, _likelihoods(nats, best, work.lengths), strict=True):
            found[number] = likelihood
    return found


def score_from(
    model: LanguageModel, state: State | None, lasts: Sequence[int], continuations: Sequence[Sequence[int]]
) -> list[Likelihood]:
    """The likelihood of continuation i behind sequence i of `state` and one more token, lasts[i]; none is empty. All
    are read at once."""
    inputs = [[last, *tokens[:-1]] for last, tokens in zip(lasts, continuations, strict=True)]
    hidden, _ = _read(model, _pack(inputs), state)
    targets = [token for tokens in continuations for token in tokens]
    nats, best = _at_targets(model, hidden, Targets.of(range(len(targets)), targets))
    return _likelihoods(nats, best, [len(tokens) for tokens in continuations])


class Targets(NamedTuple):
    """Tokens and the places whose logits foretell them; places that several share go through the head once."""

    places: Tensor
    "Distinct, ascending (P,)."
    rows: Tensor
    "Of each token, by place (N,): where its place is in `places`."
    tokens: Tensor
    back: Tensor
    "Of each token as they came: where it is in `tokens`."

    @classmethod
    def of(cls, places: Sequence[int], tokens: Sequence[int]) -> Targets:
        wanted, row = torch.tensor(places).unique(return_inverse=True)
        order = row.argsort(stable=True)
        return cls(wanted, row[order], torch.tensor(tokens)[order], order.argsort())


class Work(NamedTuple):
    """A batch of trees as the model takes it."""

    numbers: list[int]
    "Of the texts, in the order of their targets."
    lengths: list[int]
    "Scored tokens of each."
    trunks: tuple[Tensor, Tensor]
    branches: tuple[Tensor, Tensor] | None
    "Those that are not empty."
    forked: Tensor
    "Of each of them: its trunk."
    targets: Targets

    @classmethod
    def of(cls, trees: Sequence[Tree], texts: Sequence[Text], firsts: Sequence[int]) -> Work:
        branches = [(row, texts[n][tree.trunk : -1]) for row, tree in enumerate(trees) for n in tree.texts]
        read = [(row, branch) for row, branch in branches if branch]
        places, targets, lengths = scored(trees, texts, firsts)
        return cls(
            [number for tree in trees for number in tree.texts], lengths,
            _pack([texts[tree.texts[0]][: tree.trunk] for tree in trees]),
            _pack([branch for _, branch in read]) if read else None,
            torch.tensor([row for row, _ in read], dtype=torch.int64), Targets.of(places, targets),
        )  # fmt: skip


def _score_batch(model: LanguageModel, work: Work) -> tuple[Tensor, Tensor]:
    device = device_of(model)
    hidden, state = _read(model, work.trunks, None)
    if work.branches is not None:
        more, _ = _read(model, work.branches, fork(state, work.forked.to(device)))
        hidden = torch.cat([hidden, more])
    return _at_targets(model, hidden, work.targets)


def _likelihoods(nats: Tensor, best: Tensor, lengths: Sequence[int]) -> list[Likelihood]:
    """Of texts with so many scored tokens each, at least one, from those of their tokens end to end."""
    starts = np.cumsum([0, *lengths[:-1]])
    totals = np.add.reduceat(nats.double().cpu().numpy(), starts)
    greedy = np.logical_and.reduceat(best.cpu().numpy(), starts)
    return [Likelihood(float(total), bool(every)) for total, every in zip(totals, greedy, strict=True)]


def _pack(documents: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Tokens (1, T) and cu_seqlens (N+1,) of N documents that are not empty."""
    lengths = torch.tensor([0, *map(len, documents)])
    return torch.tensor([[*chain.from_iterable(documents)]]), lengths.cumsum(0)


def _read(model: LanguageModel, packed: tuple[Tensor, Tensor], state: State | None) -> tuple[Tensor, State]:
    """What the head takes (T, D), and the state of every document."""
    tokens, bounds = (x.to(device_of(model)) for x in packed)
    hidden, after = model.read(tokens, state, bounds)
    return hidden[0], after


def _at_targets(model: LanguageModel, hidden: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """log p of each target at its place of hidden (T, D), and whether it is the most probable token there; (N,)."""
    device, times = hidden.device, GPU if hidden.is_cuda else 1
    step = max(1, times * MOST_LOGITS // model.config.vocab_size)
    parts = -(-len(targets.places) // step)
    bounds = torch.searchsorted(targets.rows, torch.arange(parts + 1) * step).tolist()
    places, rows, tokens = (x.to(device) for x in targets[:3])
    nats, best = [], []
    for part, some in enumerate(places.split(step)):
        logits = model.logits(hidden[some])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        inside = rows[bounds[part] : bounds[part + 1]] - part * step
        token = tokens[bounds[part] : bounds[part + 1]]
        nats.append(logits[inside, token] - logits.logsumexp(1)[inside])
        best.append(logits.argmax(1)[inside] == token)
    back = targets.back.to(device)
    return torch.cat(nats)[back], torch.cat(best)[back]
