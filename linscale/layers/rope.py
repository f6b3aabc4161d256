"""RoPE's frequencies, as trained and as scaled to longer texts: linear, Llama 3 and YaRN.

Every one is a function of the place alone, so that a text read in pieces, packed or batched gives what it gives alone.
"Dynamic" scaling is not: its angles depend on the longest text in the batch, and those of earlier keys would change as
the text grows. It is absent for that reason.
"""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from linscale.config import config


@config
class RopeScaling:
    """How the frequencies θ of RoPE are changed for texts longer than those of the training."""

    kind: Literal["linear", "llama3", "yarn"]
    "linear: θ / factor. llama3: slow channels alone (Llama 3.1). yarn: a ramp between both (arXiv 2309.00071)."
    factor: float = Field(ge=1)
    "How many times longer the text may be."
    original_length: PositiveInt | None = None
    "Tokens of a text before scaling; llama3 and yarn need it."
    low_freq_factor: PositiveFloat = 1.0
    "llama3: channels that turn less often than this over original_length are slowed by `factor`."
    high_freq_factor: PositiveFloat = 4.0
    "llama3: channels that turn more often than this stay as they are."
    beta_fast: PositiveFloat = 32.0
    "yarn: channels that turn more often than this over original_length stay as they are."
    beta_slow: PositiveFloat = 1.0
    "yarn: channels that turn less often are slowed by `factor`."
    truncate: bool = True
    "yarn: whether the ramp begins and ends at whole channels."
    attention_factor: NonNegativeFloat | None = None
    "yarn: what q and k are each multiplied by; by default 0.1 log(factor) + 1."

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind != "linear" and self.original_length is None:
            raise ValueError(f"kind = {self.kind!r} needs original_length, the tokens of a text before scaling")
        if self.kind == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor = {self.low_freq_factor} must be below high_freq_factor = {self.high_freq_factor}"
            )
        return self


def rope_frequencies(width: int, base: float, scaling: RopeScaling | None, device: torch.device) -> Tensor:
    """θ_m = base^(-2m/K), scaled: radians a token of each pair of channels, (K/2,) float64, for heads of width K."""
    channels = torch.arange(0, width, 2, device=device, dtype=torch.float64)
    frequencies: Tensor = base ** (-channels / width)
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    keep = _llama3_share(frequencies, scaling) if scaling.kind == "llama3" else _yarn_share(channels, base, scaling)
    return frequencies * keep + frequencies / scaling.factor * (1 - keep)


def attention_factor(scaling: RopeScaling | None) -> float:
    """What q and k are each multiplied by: 1 but for YaRN, whose scores are sharpened (equation 22 of its paper)."""
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0


def _llama3_share(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """How much of each frequency stays, (K/2,): by its turns over the original length, between the two factors."""
    assert scaling.original_length is not None
    turns = scaling.original_length * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return ((turns - low) / (high - low)).clamp(0, 1)


def _yarn_share(channels: Tensor, base: float, scaling: RopeScaling) -> Tensor:
    """The same for YaRN, (K/2,): a ramp over channels, between those that turn beta_fast and beta_slow times.

    channels (K/2,): 0, 2, ..., K - 2
    """
    assert scaling.original_length is not None
    length, width = scaling.original_length, 2 * len(channels)
    first, last = (
        width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    last = last + 0.001 if first == last else last  # as released code has it, where the ramp has no width
    return 1 - ((channels / 2 - first) / (last - first)).clamp(0, 1)
