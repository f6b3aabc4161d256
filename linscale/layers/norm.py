"""Root-mean-square norms over the last axis, computed in float32 whatever the input is."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SRMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps): RMSNorm without a learned scale (TransNormerLLM, arXiv 2307.14995).

    x (..., D) -> (..., D) in the dtype of x
    """

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.standard(x).to(x.dtype)

    def standard(self, x: Tensor) -> Tensor:
        """x of length sqrt(D), before any scale, at least float32."""
        wide = x if x.dtype == torch.float64 else x.float()
        return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)

    def scaled(self, weight: Tensor) -> Tensor:
        """A weight (out, D) behind the norm, with the norm's scale in it: what takes `standard`."""
        return weight


class RMSNorm(SRMSNorm):
    """SRMSNorm times a learned scale (D,), 1 at first."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__(d_model, eps)
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.weight.to(x.dtype)

    def scaled(self, weight: Tensor) -> Tensor:
        return weight * self.weight


class LayerNorm(RMSNorm):
    """RMSNorm of what is left when the mean is taken off (arXiv 1607.06450), without a bias."""

    def standard(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        return super().standard(wide - wide.mean(-1, keepdim=True))
