"""What a block of a recurrent transformer takes over from the blocks before: u + alpha p, position by position.

On the residual path y_{j+1} = alpha y_j + alpha y_{j-1} + x_j: its root is (alpha + sqrt(alpha² + 4 alpha)) / 2. Below
alpha = 0.5 the past fades, at 0.5 it adds up, above it grows without bound (at 0.6 a million times in 100 blocks). The
published form learns one alpha up to 1; where there are more than one, they stay below 0.5.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from linscale.layers.norm import RMSNorm

AlphaForm = Literal["fixed", "learned", "channel", "gated"]
MOST = 0.5  # where the past adds up


class LeftState(nn.Module):
    """u + alpha p, or u + alpha norm(p), with alpha in one of four forms:

    fixed    a constant
    learned  one number, clamped to [0, 1] (the published form)
    channel  0.5 sigmoid(a), one a channel
    gated    0.5 sigmoid(a + W norm(u)), one a head, by the data
    """

    def __init__(self, d_model: int, n_heads: int, form: AlphaForm, alpha: float, normed: bool, eps: float) -> None:
        super().__init__()
        self.form, self.first, self.n_heads = form, alpha, n_heads
        self.norm = RMSNorm(d_model, eps) if normed else None
        width = {"fixed": 0, "learned": 1, "channel": d_model, "gated": n_heads}[form]
        self.alpha = nn.Parameter(torch.empty(width)) if width else None
        self.gate_norm = RMSNorm(d_model, eps) if form == "gated" else None
        self.gate = nn.Linear(d_model, n_heads, bias=False) if form == "gated" else None

    def reset_parameters(self, gain: float) -> None:
        """The first alpha, and `gain` on the normed left state: what embeddings are as large as."""
        if self.alpha is not None:
            value = self.first if self.form == "learned" else math.log(self.first / (MOST - self.first))
            self.alpha.fill_(value)
        if self.norm is not None:
            self.norm.weight.fill_(gain)

    def values(self, u: Tensor) -> Tensor | float:
        """alpha for the inputs u (B, m, D): a number, or what broadcasts against them."""
        if self.alpha is None:
            return self.first
        if self.form == "learned":
            return self.alpha.clamp(0, 1).to(u.dtype)
        if self.gate is None or self.gate_norm is None:
            return (MOST * self.alpha.sigmoid()).to(u.dtype)
        gate = (self.gate(self.gate_norm(u)) + self.alpha).sigmoid()  # (B, m, H)
        return (MOST * gate).to(u.dtype).repeat_interleave(u.shape[-1] // self.n_heads, dim=-1)

    def forward(self, u: Tensor, p: Tensor) -> Tensor:
        """u, p (B, m, D) -> (B, m, D)."""
        return u + self.values(u) * (p if self.norm is None else self.norm(p))

    def scale(self) -> Tensor | float:
        """What p (its direction, where it is normed) is multiplied by whatever the inputs are: (D,), (1,), a number."""
        gain = 1.0 if self.norm is None else self.norm.weight
        if self.form == "gated":
            return gain
        if self.form == "channel":
            assert self.alpha is not None
            return MOST * self.alpha.sigmoid() * gain
        return (self.first if self.alpha is None else self.alpha.clamp(0, 1)) * gain
