"""Greedy continuations of many prompts at once, from any states.

Prompts are packed end to end, so nothing is padded; a prompt longer than a batch is read in pieces, its state carried.
All sequences then take one step together, (B, 1), whatever their lengths, and those that are done leave the batch.
What each gets is what it would get alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from linscale.config import UserError
from linscale.data.tokenizer import Tokenizer
from linscale.generate.states import fork, join, most_states
from linscale.models import LanguageModel, State

BATCH_TOKENS = 8192  # read at once
MOST_LOGITS = 1 << 25  # made at once
Tokens: TypeAlias = "Sequence[int] | np.ndarray"
SPARE = 8  # tokens before those that a stop string may be in, as the first of a text can read otherwise


def greedy(
    model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[Tokens], *, max_tokens: int,
    stop: Sequence[str] = (), batch_tokens: int = BATCH_TOKENS,
) -> list[list[int]]:  # fmt: skip
    """The most probable tokens behind each prompt, in order: what `sample.stream` with temperature 0 gives, up to
    the end-of-text token (left out), `max_tokens`, or the first text with one of the `stop` strings in it (kept: see
    `text_before`). Only tokens of the tokenizer are made.

    Beyond rounding the same for any `batch_tokens` and order. Raises UserError for a prompt without tokens.
    """
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise UserError(f"prompt {number}: no tokens; expected at least one, such as the end-of-text token")
    found: dict[int, list[int]] = {}
    for numbers in _batches(model, prompts, max_tokens, batch_tokens):
        chosen = [prompts[number] for number in numbers]
        options = {"max_tokens": max_tokens, "batch_tokens": batch_tokens}
        found.update(zip(numbers, continue_greedily(model, tokenizer, None, chosen, stop=stop, **options), strict=True))
    return [found[number] for number in range(len(prompts))]


def continue_greedily(
    model: LanguageModel, tokenizer: Tokenizer, state: State | None, documents: Sequence[Tokens], *,
    max_tokens: int, stop: Sequence[str] = (), batch_tokens: int = BATCH_TOKENS,
) -> list[list[int]]:  # fmt: skip
    """`greedy` behind document i read from sequence i of `state`, or from an empty one; all take their steps together,
    so that their number is the caller's to bound (`states.most_states`)."""
    if max_tokens < 1:
        raise UserError(f"max_tokens = {max_tokens}: expected at least 1")
    made: list[list[int]] = [[] for _ in documents]
    rows = list(range(len(documents)))
    with torch.no_grad():
        x, state = read_documents(model, documents, state, batch_tokens)
        while True:
            tokens = model.logits(x)[:, : tokenizer.vocab_size].argmax(1)
            stay = []
            for place, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
                if token != tokenizer.eos_id:
                    made[row].append(token)
                    if len(made[row]) < max_tokens and not _stopped(tokenizer, made[row], stop):
                        stay.append(place)
            if not stay:
                return made
            if len(stay) < len(rows):
                kept = torch.tensor(stay, device=tokens.device)
                state, tokens, rows = fork(state, kept), tokens[kept], [rows[place] for place in stay]
            x, state = model.read(tokens[:, None], state)
            x = x[:, 0]


def text_before(tokenizer: Tokenizer, tokens: Sequence[int], stop: Sequence[str] = ()) -> str:
    """The text of `tokens`, up to the first place where a stop string begins."""
    text = tokenizer.decode(tokens)
    return text[: min((text.index(ending) for ending in stop if ending in text), default=len(text))]


def read_documents(
    model: LanguageModel, documents: Sequence[Tokens], state: State | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> tuple[Tensor, State]:  # fmt: skip
    """Read document i from sequence i of `state`, at most `batch_tokens` tokens at once, packed.

    Returns what the head takes at the last token of each, (N, D), and the state behind it. No document is empty.
    """
    last, states = [], []
    for rows in _packs(documents, batch_tokens):
        device = model.embedding.weight.device
        before = None if state is None else fork(state, torch.tensor(rows, device=device))
        for tokens, bounds in _reads([documents[row] for row in rows], batch_tokens):
            cu_seqlens = bounds.to(device)
            x, before = model.read(tokens.to(device), before, cu_seqlens)
        last.append(x[0, cu_seqlens[1:] - 1])
        assert before is not None
        states.append(before)
    return torch.cat(last), join(states)


def _packs(documents: Sequence[Tokens], batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of documents that are read together, in order; one that is longer than a batch is alone."""
    rows: list[int] = []
    room = batch_tokens
    for row, document in enumerate(documents):
        if rows and len(document) > room:
            yield rows
            rows, room = [], batch_tokens
        rows.append(row)
        room -= len(document)
    yield rows


def _reads(documents: Sequence[Tokens], batch_tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens (1, T) and cu_seqlens (N+1,): of all documents, or of one alone piece by piece."""
    pieces = [documents]
    if len(documents) == 1:
        (document,) = documents
        pieces = [[document[first : first + batch_tokens]] for first in range(0, len(document), batch_tokens)]
    for parts in pieces:
        tokens = torch.cat([torch.as_tensor(part, dtype=torch.int64) for part in parts])
        yield tokens[None], torch.tensor([0, *map(len, parts)]).cumsum(0)


def _batches(
    model: LanguageModel, prompts: Sequence[Tokens], max_tokens: int, batch_tokens: int
) -> Iterator[list[int]]:
    """Numbers of prompts that take their steps together, the longest first."""
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]), reverse=True)
    while order:
        states = most_states(model.config, len(prompts[order[0]]) + max_tokens)
        most = max(1, min(states, batch_tokens, MOST_LOGITS // model.config.vocab_size))
        yield order[:most]
        order = order[most:]


def _stopped(tokenizer: Tokenizer, made: Sequence[int], stop: Sequence[str]) -> bool:
    """Whether the last of the tokens brought a stop string, which ends in it: only the last tokens are decoded, and
    the whole text where they have one."""
    if not stop:
        return False
    tail = tokenizer.decode(made[-max(len(ending.encode()) for ending in stop) - SPARE :])
    if not any(ending in tail for ending in stop):
        return False
    text = tokenizer.decode(made)
    return any(ending in text for ending in stop)
