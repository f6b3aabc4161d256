"""How a text is to be continued: what a request may ask for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ValidationError, model_validator

from linscale.config import UserError, config, explain

MOST_LOGPROBS = 20  # alternatives of a token, as in the OpenAI API
MOST_STOPS = 16
SEEDS = 2**63


def _within(accepts: Callable[[Any], bool], expected: str) -> AfterValidator:
    def check(value: Any) -> Any:
        if not accepts(value):
            raise ValueError(f"expected {expected}")
        return value

    return AfterValidator(check)


def _strings(value: Any) -> Any:
    """One string stands for a list of one, None for none, as in the OpenAI API."""
    return () if value is None else (value,) if isinstance(value, str) else value


def _are_stops(strings: tuple[str, ...]) -> bool:
    return len(strings) <= MOST_STOPS and all(strings)


@config
class Sampling:
    """How tokens are drawn, and where a text ends."""

    max_tokens: Annotated[int, _within(lambda count: count >= 1, "at least 1")] = 200
    """The most tokens to write."""
    temperature: Annotated[float, _within(lambda value: 0 <= value < math.inf, "a number of at least 0")] = 1.0
    """Logits are divided by it; 0 always takes the most probable token."""
    top_k: Annotated[int, _within(lambda count: count >= 1, "at least 1, or none for all tokens")] | None = None
    """Draw among this many of the most probable tokens."""
    top_p: Annotated[float, _within(lambda value: 0 <= value <= 1, "0 to 1")] = 1.0
    """Draw among the fewest tokens that together have this probability."""
    min_p: Annotated[float, _within(lambda value: 0 <= value <= 1, "0 to 1")] = 0.0
    """Draw among tokens that have at least this share of the most probable one's probability."""
    repetition_penalty: Annotated[float, _within(lambda value: 0.01 <= value <= 100, "0.01 to 100")] = 1.0
    """Above 1, tokens of the prompt and of the text so far become less probable; below 1, more."""
    seed: Annotated[int, _within(lambda value: 0 <= value < SEEDS, "0 to 2^63 - 1")] | None = None
    """The same seed writes the same text, whatever else is written beside it. Unset it is 0, or where a saved state has
    drawn, its draws go on."""
    stop: Annotated[
        tuple[str, ...],
        BeforeValidator(_strings),
        _within(_are_stops, f"at most {MOST_STOPS} strings, none of them empty"),
    ] = ()
    """Strings that end the text; neither they nor what comes behind them is shown."""
    stop_tokens: Annotated[tuple[int, ...], _within(lambda tokens: min(tokens, default=0) >= 0, "ids of tokens")] = ()
    """Tokens that end the text besides the end-of-text token; they are part of it. Special ones show nothing."""
    logprobs: Annotated[int, _within(lambda count: 0 <= count <= MOST_LOGPROBS, f"0 to {MOST_LOGPROBS}")] | None = None
    """Give the log-probability of each token and of this many of the most probable ones."""
    ignore_eos: bool = False
    """Go on behind the end-of-text token."""

    @model_validator(mode="wrap")  # also where it is called as Sampling(...), without `parse`
    @classmethod
    def _in_one_line(cls, values: Any, build: Any) -> Any:
        try:
            return build(values)
        except ValidationError as error:
            raise UserError(explain(error, cls)) from None
