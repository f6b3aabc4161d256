"""Continue a prompt: one forward pass over the prompt, then one token at a time from the state."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from linscale.config import UserError
from linscale.data.tokenizer import Tokenizer
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
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"prompt: character {error.start} is not valid Unicode; expected UTF-8 text") from None
    tokens = stream(
        model,
        tokenizer,
        [tokenizer.bos_id, *tokenizer.encode(prompt)],
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
    )
    continuation = []
    for token in tokens:
        if stop_at_eos and token == tokenizer.eos_id:
            break
        continuation.append(token)
    return tokenizer.decode(continuation)


def stream(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: list[int],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """Yield the `max_tokens` tokens after the tokens of `prompt`, one by one; the caller stops where it likes.

    Only tokens of the tokenizer are drawn, where the model's vocabulary is padded beyond it.
    """
    _check(prompt, max_tokens, temperature, top_k, seed)
    return _stream(model, tokenizer.vocab_size, prompt, max_tokens, temperature, top_k, seed)


def _stream(
    model: LanguageModel,
    vocab_size: int,
    prompt: list[int],
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
) -> Iterator[int]:
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    tokens, state = torch.tensor([prompt], device=device), None  # (1, T)
    for _ in range(max_tokens):
        with torch.no_grad():
            output = model(tokens, state=state)
        state = output.state
        token = _choose(output.logits[0, -1, :vocab_size].double().cpu(), temperature, top_k, generator)
        yield token
        tokens = torch.tensor([[token]], device=device)


def _choose(logits: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    """One token from logits (V,)."""
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < len(logits):
        least = logits.topk(top_k).values[-1]
        logits = logits.masked_fill(logits < least, float("-inf"))
    return int(torch.multinomial(((logits - logits.max()) / temperature).softmax(0), 1, generator=generator))


def _check(prompt: list[int], max_tokens: int, temperature: float, top_k: int | None, seed: int) -> None:
    if not prompt:
        raise UserError("prompt: no tokens; expected at least one, such as the end-of-text token that opens a document")
    if max_tokens < 1:
        raise UserError(f"max_tokens = {max_tokens}: expected at least 1")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature = {temperature}: expected a number of at least 0")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k = {top_k}: expected at least 1, or none for all tokens")
    if not 0 <= seed < 2**63:
        raise UserError(f"seed = {seed}: expected 0 to 2^63 - 1")
