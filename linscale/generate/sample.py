"""Continue a prompt: it is read once, then one token at a time from the state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from linscale.config import UserError
from linscale.data.tokenizer import Tokenizer
from linscale.generate.batch import read_documents
from linscale.generate.choice import Choice, Needs, Rows, choose
from linscale.generate.continuation import Continuation, Piece
from linscale.generate.sampling import Sampling
from linscale.models import LanguageModel, State


def sample(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_tokens: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    stop_at_eos: bool = True,
) -> str:
    """The text that continues `prompt`, without the prompt; an empty prompt begins a document.

    temperature 0 takes the most probable token each time; `top_k` draws among the k most probable ones.
    The draw depends on `seed` alone. Raises UserError for a value out of range.
    """
    sampling = Sampling(
        max_tokens=max_tokens, temperature=temperature, top_k=top_k, seed=seed, ignore_eos=not stop_at_eos
    )
    return "".join(piece.text for piece in write(model, tokenizer, opened(tokenizer, prompt), sampling))


def stream(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """Yield the `max_tokens` tokens after the tokens of `prompt`, one by one; the caller stops where it likes.

    Only tokens of the tokenizer are drawn, where the model's vocabulary is padded beyond it.
    """
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_k=top_k, seed=seed, ignore_eos=True)
    return (piece.token for piece in write(model, tokenizer, prompt, sampling))


def opened(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens of a document that begins with `prompt`, with the end-of-text token in front."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"prompt: character {error.start} is not valid Unicode; expected UTF-8 text") from None
    return [tokenizer.eos_id, *tokenizer.encode(prompt)]


def write(
    model: LanguageModel, tokenizer: Tokenizer, prompt: Sequence[int], sampling: Sampling, state: State | None = None
) -> Iterator[Piece]:
    """Continue the tokens of `prompt`, read from an empty state or behind the one sequence of `state`.

    Yields a piece a token; the last says why the text ended. A penalty counts the tokens of `prompt` alone, not
    those in `state`. Raises UserError for a prompt without tokens, before anything is read.
    """
    if not len(prompt):
        raise UserError("prompt: no tokens; expected at least one, such as the end-of-text token that opens a document")
    return _write(model, tokenizer, prompt, sampling, state)


def _write(
    model: LanguageModel, tokenizer: Tokenizer, prompt: Sequence[int], sampling: Sampling, state: State | None
) -> Iterator[Piece]:
    size, needs = tokenizer.vocab_size, Needs.of([sampling])
    rows = Rows.of([sampling], [prompt], size, model.embedding.weight.device)
    text = Continuation(tokenizer, sampling, prompt)
    with torch.no_grad():
        x, state = read_documents(model, [prompt], state)
    while True:
        with torch.no_grad():
            choice = choose(model.logits(x), rows, needs, size)
            rows.advance(choice.tokens)
        piece = text.add(*added(choice, 0))
        yield piece
        if piece.finish_reason is not None:
            return
        with torch.no_grad():
            x, state = model.read(choice.tokens[:, None], state)
            x = x[:, 0]


def added(choice: Choice, row: int) -> tuple[int, float | None, list[tuple[int, float]]]:
    """What `Continuation.add` takes, of one row of a choice."""
    token = int(choice.tokens[row])
    if choice.logprobs is None or choice.best_tokens is None or choice.best_logprobs is None:
        return token, None, []
    best = zip(choice.best_tokens[row].tolist(), choice.best_logprobs[row].tolist(), strict=True)
    return token, float(choice.logprobs[row]), list(best)
