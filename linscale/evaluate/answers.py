"""A model's answers to samples: generated greedily, or the likeliest choice.

Every document is read once, in pieces where it is long, and its state forked over its questions; a question's state is
forked over its choices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from linscale.data.tokenizer import Tokenizer
from linscale.evaluate.likelihood import score_from
from linscale.evaluate.prompts import Prompts, Sample
from linscale.evaluate.task import device_of
from linscale.generate.batch import MOST_LOGITS, continue_greedily, read_documents, text_before
from linscale.generate.states import fork, most_states
from linscale.models import LanguageModel

MOST_SEQUENCES = 1024  # that are continued at once, at most
STOP = ("\n",)  # ends a generated answer, and is not part of it


def answer(
    model: LanguageModel, tokenizer: Tokenizer, samples: Sequence[Sample], prompts: Prompts, max_tokens: int
) -> list[str]:
    """The answer to every sample, in order: one of its choices, or up to `max_tokens` tokens of one line."""
    found: dict[int, str] = {}
    for numbers in _batches(model, prompts, max_tokens):
        asked = [prompts.prompts[number] for number in numbers]
        documents = list(dict.fromkeys(prompt.document for prompt in asked))
        _, state = read_documents(model, [prompts.documents[document] for document in documents])
        places = {document: row for row, document in enumerate(documents)}
        rows = torch.tensor([places[prompt.document] for prompt in asked], device=device_of(model))
        state, endings = fork(state, rows), [prompt.ending for prompt in asked]
        if not asked[0].choices:
            made = continue_greedily(model, tokenizer, state, endings, max_tokens=max_tokens, stop=STOP)
            found |= {n: text_before(tokenizer, tokens, STOP) for n, tokens in zip(numbers, made, strict=True)}
            continue
        _, state = read_documents(model, [ending[:-1] for ending in endings], state)
        rows = torch.tensor([row for row, prompt in enumerate(asked) for _ in prompt.choices], device=device_of(model))
        lasts = [prompt.ending[-1] for prompt in asked for _ in prompt.choices]
        choices = [choice for prompt in asked for choice in prompt.choices]
        likelihoods = iter(score_from(model, fork(state, rows), lasts, choices))
        for number in numbers:
            found[number] = likeliest(samples[number], [next(likelihoods).nats for _ in samples[number].choices])
    return [found[number] for number in range(len(samples))]


def likeliest(sample: Sample, nats: Sequence[float]) -> str:
    """The choice with most nats, per character where the sample says so; the first of equal ones."""
    choices = zip(nats, sample.choices, strict=True)
    each = [total / len(choice) if sample.per_character else total for total, choice in choices]
    return sample.choices[each.index(max(each))]


def _batches(model: LanguageModel, prompts: Prompts, max_tokens: int) -> Iterator[list[int]]:
    """Numbers of samples that are answered together: all chosen or all generated, those of a document side by side,
    long documents first, as many as there may be states."""

    def rank(number: int) -> tuple[bool, int, int]:
        prompt = prompts.prompts[number]
        return not prompt.choices, -len(prompts.documents[prompt.document]), prompt.document

    order = sorted(range(len(prompts.prompts)), key=rank)
    while order:
        first = prompts.prompts[order[0]]
        length = len(prompts.documents[first.document]) + first.behind(max_tokens)
        states = min(MOST_SEQUENCES, most_states(model.config, length), MOST_LOGITS // model.config.vocab_size)
        most = max(1, states // max(1, len(first.choices)))
        batch = [n for n in order[:most] if bool(prompts.prompts[n].choices) == bool(first.choices)]
        yield batch
        order = order[len(batch) :]
