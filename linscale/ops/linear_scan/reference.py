"""The definition of `linear_scan`: a loop over time, any dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_scan(x: Tensor, decay: Tensor, state: Tensor) -> Tensor:
    """hₜ = decayₜ hₜ₋₁ + xₜ.   x (B, T, ...), decay broadcastable to x, state (B, ...) -> h (B, T, ...)."""
    decay = decay.expand_as(x)
    steps = []
    for t in range(x.shape[1]):
        state = decay[:, t] * state + x[:, t]
        steps.append(state)
    return torch.stack(steps, dim=1)
