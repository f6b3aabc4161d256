"""LRPE: learned rotation angles that give linear attention relative positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from linscale.distributed import copy_into
from linscale.ops import angles, rotate_lrpe


class LRPE(nn.Module):
    """q and k become [q cos(tθ), q sin(tθ)], so that their product is Σ_c q_c k_c cos((t - s) θ_c): twice as wide.

    θ is one angle a head and channel, learned, 10000^(-2m/D) at first for m = 0..D-1 head by head. That is what the
    authors' code of the time does; the paper leaves the initial value and whether it is learned open.
    """

    def __init__(self, n_heads: int, head_dim: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.empty(n_heads, head_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        count = self.theta.numel()
        angle = 10000.0 ** (-2 * torch.arange(count, dtype=torch.float64) / count)
        copy_into(self.theta, angle.view(self.theta.shape))

    def forward(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """q, k (B, T, H, K), positions (B, T) -> q, k (B, T, H, 2K)."""
        cos, sin = angles(positions, self.theta, q.dtype)  # (B, T, H, K)
        return rotate_lrpe(q, cos, sin), rotate_lrpe(k, cos, sin)
