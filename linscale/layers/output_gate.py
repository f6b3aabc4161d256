"""The low-rank output gate of TNL and cosFormer2."""

from __future__ import annotations

from torch import Tensor, nn


class LowRankGate(nn.Module):
    """sigmoid(up_proj(down_proj x)), x (..., D) -> (..., D) in (0, 1); the bottleneck has `rank` channels."""

    def __init__(self, d_model: int, rank: int) -> None:
        super().__init__()
        self.down_proj = nn.Linear(d_model, rank, bias=False)
        self.up_proj = nn.Linear(rank, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.up_proj(self.down_proj(x)).sigmoid()
