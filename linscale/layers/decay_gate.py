"""Decays that the data choose, as logarithms: a gate for each head or channel, first near no decay."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, logsigmoid

from linscale.distributed import copy_into

FORGETS = 2.0, 3.0  # -log10 of what a step forgets at first, from the first head to the last: decays 0.99 to 0.999
SPREAD = 0.1  # of what the input first adds to a gate's logit, where it is normed


class DecayGate(nn.Module):
    """log sigmoid(W x + b), x (B, T, D) -> (B, T, H), or (B, T, H, K) with one a channel; at least float32.

    No nn.Linear: weight decay would draw it to forgetting half of the past a step, and in 8 bits a bias of 7 is off by
    what it forgets.
    """

    def __init__(self, d_model: int, n_heads: int, channels: int | None = None) -> None:
        super().__init__()
        self.n_heads, self.channels = n_heads, channels
        self.weight = nn.Parameter(torch.empty(n_heads * (channels or 1), d_model))
        self.bias = nn.Parameter(torch.empty(n_heads * (channels or 1)))

    def forward(self, x: Tensor) -> Tensor:
        log_decay = logsigmoid(_wide(linear(x, self.weight.to(x.dtype))) + self.bias)
        return log_decay if self.channels is None else log_decay.unflatten(-1, (self.n_heads, self.channels))

    def reset(self, generator: torch.Generator) -> None:
        """Biases by head, and weights that change them little at first."""
        std = SPREAD * self.weight.shape[1] ** -0.5
        copy_into(self.weight, std * torch.randn(self.weight.shape, generator=generator))
        copy_into(self.bias, first_logits(self.n_heads, self.channels or 1).flatten())


class ForgetGate(nn.Module):
    """Keys that are what is forgotten (HGRN2, arXiv 2404.07904): of x (B, T, H, K), f = sigmoid(x + b).

    Gives 1 - f in the dtype of x, and log f, at least float32.
    """

    def __init__(self, n_heads: int, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(n_heads, width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = _wide(x) + self.bias
        return (-logits).sigmoid().to(x.dtype), logsigmoid(logits)

    def reset(self) -> None:
        """Biases by head."""
        copy_into(self.bias, first_logits(*self.bias.shape))


def first_logits(n_heads: int, channels: int) -> Tensor:
    """(H, K) logits of decays from 0.99 in the first head to 0.999 in the last, what is forgotten evenly in its
    logarithm."""
    low, high = FORGETS
    forgets = [10 ** -(low + (high - low) * head / max(n_heads - 1, 1)) for head in range(n_heads)]
    return torch.tensor([math.log((1 - x) / x) for x in forgets])[:, None].repeat(1, channels)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
