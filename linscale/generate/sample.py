"""Continue a prompt: it is read once, then one token at a time from the state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from linscale.config import UserError
from linscale.data.tokenizer import Tokenizer
from linscale.generate.continuation import Piece
from linscale.generate.sampling import Sampling
from linscale.generate.session import Session
from linscale.models import LanguageModel


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
    """The tokens of a text that begins with `prompt`, opened as the tokenizer says; an empty one by `bos_id` alone."""
    return [*tokenizer.opening, *encoded(tokenizer, prompt)] or [tokenizer.bos_id]


def encoded(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens of `prompt`. Raises UserError where it is not valid Unicode, as a command line may hold."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"prompt: character {error.start} is not valid Unicode; expected UTF-8 text") from None
    return tokenizer.encode(prompt)


def write(model: LanguageModel, tokenizer: Tokenizer, prompt: Sequence[int], sampling: Sampling) -> Iterator[Piece]:
    """Continue the tokens of `prompt`, read from an empty state: a session of one text.

    Yields a piece a token; the last says why the text ended. Raises UserError for a prompt without tokens.
    """
    session = Session(model, tokenizer)
    session.read(prompt)
    return session.stream(sampling)
