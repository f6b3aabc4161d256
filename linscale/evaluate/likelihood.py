"""Log-likelihoods of continuations: what several texts begin with is read once, and its state forked over the rest.

    texts x y a b, x y c d e, x y f     read x y to a state, whose logits score a, c and f; from two copies of it read a
                                        to score b, and c d to score d and e

A text is a context and its continuation; texts that begin alike form a tree of one trunk and branches. Trunks, and then
branches, are packed end to end, the longest first, so nothing is padded. The head works on scored places alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from linscale.data.tokenizer import Tokenizer
from linscale.evaluate.task import device_of
from linscale.generate.states import MOST_STATE, fork
from linscale.models import LanguageModel, State
from linscale.models.count import state_elements

BATCH_TOKENS = 8192  # of trunks and branches that are read at once
GPU = 4  # a GPU is given so many times as much at once, states too
MOST_LOGITS = 1 << 25  # made at once
WORTH = 8  # tokens that a branch must save: about what a fork of the state costs
Pair: TypeAlias = tuple[Sequence[int], Sequence[int]]
"""Tokens of a context, one or more, and of what follows it."""
Text: TypeAlias = tuple[int, ...]


class Likelihood(NamedTuple):
    nats: float
    """log p(continuation | context), at most 0; over the model's whole vocabulary."""
    greedy: bool
    """Whether every token of the continuation is the most probable one."""


class Tree(NamedTuple):
    """Texts that begin with the same `trunk` tokens, at least one; none of them ends inside of it."""

    trunk: int
    texts: list[int]
    "Their numbers."


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
    tokens = {text: ids.tolist() for text, ids in zip(distinct, tokenizer.encode_many(distinct), strict=True)}
    pairs: list[Pair] = []
    for start, (context, continuation) in zip(stripped, texts, strict=True):
        whole = tokens[context + continuation]
        pairs.append((tokens[start], whole[len(tokens[start]) :]) if start else ([tokenizer.eos_id], whole))
    return pairs


def score(model: LanguageModel, pairs: Sequence[Pair], batch_tokens: int | None = None) -> list[Likelihood]:
    """The likelihood of each pair, in order; beyond rounding the same for any `batch_tokens`. An empty continuation
    has 0 nats and is greedy. The caller has set eval mode, no_grad and precision."""
    texts = [(*context, *continuation) for context, continuation in pairs]
    firsts = [len(context) for context, _ in pairs]
    found = [Likelihood(0.0, True)] * len(pairs)
    for trees in _batches(model, _trees(texts, firsts), texts, batch_tokens):
        numbers = [number for tree in trees for number in tree.texts]
        for number, likelihood in zip(numbers, _score_batch(model, trees, texts, firsts), strict=True):
            found[number] = likelihood
    return found


def score_from(
    model: LanguageModel, state: State | None, lasts: Sequence[int], continuations: Sequence[Sequence[int]]
) -> list[Likelihood]:
    """The likelihood of continuation i behind sequence i of `state` and one more token, lasts[i]; none is empty. All
    are read at once."""
    inputs = [[last, *tokens[:-1]] for last, tokens in zip(lasts, continuations, strict=True)]
    tokens, bounds = _pack(inputs, device_of(model))
    hidden, _ = model.read(tokens, state, bounds)
    targets = [token for tokens in continuations for token in tokens]
    nats, best = _at_targets(model, hidden[0], range(len(targets)), targets)
    return _likelihoods(nats, best, [len(tokens) for tokens in continuations])


def _trees(texts: Sequence[Text], firsts: Sequence[int]) -> list[Tree]:
    """Every text that has something to score in one tree, which saves tokens over reading each by itself; the longest
    trunk first. In sorted order a text begins like its neighbours, and joins them while that saves WORTH or more."""
    order = sorted((n for n, text in enumerate(texts) if len(text) > firsts[n]), key=lambda n: texts[n])
    trees: list[Tree] = []
    for number in order:
        if trees:
            trunk, members = trees[-1]
            alike = min(trunk, _common(texts[members[-1]], texts[number]), len(texts[number]) - 1)
            shorter = (len(members) - 1) * (trunk - alike)
            if alike - shorter >= WORTH:
                trees[-1] = Tree(alike, [*members, number])
                continue
        trees.append(Tree(len(texts[number]) - 1, [number]))
    return sorted(trees, key=lambda tree: -tree.trunk)


def _common(a: Text, b: Text) -> int:
    """How many tokens two texts begin with alike."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low


def _batches(
    model: LanguageModel, trees: Sequence[Tree], texts: Sequence[Text], batch_tokens: int | None
) -> Iterator[list[Tree]]:
    """Trees that are scored together; one whose branches are too many for a batch comes in several parts. A batch is
    over `batch_tokens` only where one text alone is."""
    times = GPU if device_of(model).type == "cuda" else 1
    most_tokens, elements = batch_tokens or times * BATCH_TOKENS, times * MOST_STATE
    batch: list[Tree] = []
    room = states = 0
    for tree in trees:
        most_states = max(1, elements // max(1, state_elements(model.config, batch[0].trunk if batch else tree.trunk)))
        part: list[int] = []
        for number in tree.texts:
            branch = len(texts[number]) - 1 - tree.trunk
            cost = branch + (0 if part else tree.trunk)
            if (batch or part) and (cost > room or states >= most_states):
                if part:
                    batch.append(Tree(tree.trunk, part))
                yield batch
                batch, part, cost = [], [], branch + tree.trunk
            if not batch and not part:
                room, states = most_tokens, 0
            part.append(number)
            room, states = room - cost, states + 1
        batch.append(Tree(tree.trunk, part))
    if batch:
        yield batch


def _score_batch(
    model: LanguageModel, trees: Sequence[Tree], texts: Sequence[Text], firsts: Sequence[int]
) -> list[Likelihood]:
    device = device_of(model)
    trunks = [texts[tree.texts[0]][: tree.trunk] for tree in trees]
    branches = [texts[number][tree.trunk : -1] for tree in trees for number in tree.texts]
    tokens, bounds = _pack(trunks, device)
    hidden, state = model.read(tokens, cu_seqlens=bounds)
    rows = [row for row, tree in enumerate(trees) for _ in tree.texts]
    forked = [row for row, branch in zip(rows, branches, strict=True) if branch]
    if forked:
        tokens, bounds = _pack([branch for branch in branches if branch], device)
        more, _ = model.read(tokens, fork(state, torch.tensor(forked, device=device)), bounds)
        hidden = torch.cat([hidden, more], dim=1)
    places, targets, lengths = _scored(trees, texts, firsts)
    nats, best = _at_targets(model, hidden[0], places, targets)
    return _likelihoods(nats, best, lengths)


def _likelihoods(nats: np.ndarray, best: np.ndarray, lengths: Sequence[int]) -> list[Likelihood]:
    """Of texts with so many scored tokens each, at least one, from those of their tokens end to end."""
    starts = np.cumsum([0, *lengths[:-1]])
    totals, greedy = np.add.reduceat(nats, starts), np.logical_and.reduceat(best, starts)
    return [Likelihood(float(total), bool(every)) for total, every in zip(totals, greedy, strict=True)]


def _scored(
    trees: Sequence[Tree], texts: Sequence[Text], firsts: Sequence[int]
) -> tuple[list[int], list[int], list[int]]:
    """Of all scored tokens, text by text: the place among trunks and then branches whose logits foretell it, and the
    token; and of every text how many there are."""
    places: list[int] = []
    targets: list[int] = []
    lengths: list[int] = []
    start, place = 0, sum(tree.trunk for tree in trees)
    for trunk, numbers in trees:
        for number in numbers:
            text, first = texts[number], firsts[number]
            # The token t is foretold where t - 1 is read: in the trunk up to t = trunk, and else in the branch.
            places += range(start + first - 1, start + min(len(text) - 1, trunk))
            places += range(place + max(0, first - 1 - trunk), place + len(text) - 1 - trunk)
            targets += text[first:]
            lengths.append(len(text) - first)
            place += len(text) - 1 - trunk
        start += trunk
    return places, targets, lengths


def _pack(documents: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens (1, T) and cu_seqlens (N+1,) of N documents that are not empty."""
    lengths = torch.tensor([0, *map(len, documents)])
    tokens = torch.tensor([[*chain.from_iterable(documents)]])
    return tokens.to(device), lengths.cumsum(0).to(device)


def _at_targets(
    model: LanguageModel, hidden: Tensor, places: Sequence[int], targets: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """log p of each target at its place of hidden (T, D), float64, and whether it is the most probable token there.
    Places that several targets share are put through the head once."""
    wanted, row = torch.tensor(places).unique(return_inverse=True)
    order = row.argsort(stable=True)
    device, step = hidden.device, max(1, MOST_LOGITS // model.config.vocab_size)
    bounds = torch.searchsorted(row[order], torch.arange(0, len(wanted) + step, step)).tolist()
    rows, tokens = row[order].to(device), torch.tensor(targets)[order].to(device)
    nats, best = [], []
    for part, (some, start, end) in enumerate(zip(wanted.to(device).split(step), bounds, bounds[1:], strict=False)):
        logits = model.logits(hidden[some])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        inside, token = rows[start:end] - part * step, tokens[start:end]
        nats.append(logits[inside, token] - logits.logsumexp(1)[inside])
        best.append(logits.argmax(1)[inside] == token)
    back = order.argsort()
    return torch.cat(nats).double().cpu()[back].numpy(), torch.cat(best).cpu()[back].numpy()
