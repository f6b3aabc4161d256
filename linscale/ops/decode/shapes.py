"""What the parts of a decoding step are told: plain data, made once for a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

Decay = Literal["plain", "head", "gated"]


@dataclass(frozen=True)
class Projection:
    """y = a(norm(x) Wᵀ) + residual, x (S, K), y (S, N)."""

    weight: Tensor
    """(N, K); with `paired` (2 N, K), gate rows and then up rows: y = a(gate) * up."""
    normed: bool = False
    """Whether x is divided by its root mean square first."""
    silu_until: int = 0
    """The first outputs that are put through silu."""
    paired: bool = False
    activation: bool = False
    """With `paired`: whether the gate is put through silu."""
    half: Any = None
    """On a CPU, in place of `weight`, which then is a shape alone: float16, multiplied by float32 rows in float32."""


@dataclass(frozen=True)
class Mix:
    """What a linear-attention layer does with its projections (S, 3 D + rank): q, k, v, an output gate's bottleneck.

    kind   plain: no decay. head: log λ a head. gated: the second projection is a forget gate f before its sigmoid,
           decay = β + (1 - β) sigmoid(f) a channel, k = 1 - decay
    """

    kind: Decay
    n_heads: int
    head_dim: int
    decay: Tensor | None = None
    """head: log λ (H,) float32; gated: β (D,) float32, none in the first layer, where it is 0."""
    theta: Tensor | None = None
    """LRPE's angles (H, V) float32: q and k become [x cos(tθ), x sin(tθ)], the state is twice as high."""
    gate: Tensor | None = None
    """(D, rank): o is multiplied by sigmoid(gate · bottleneck) after its norm."""

    @property
    def key_width(self) -> int:
        """K of the state (S, H, K, V)."""
        return self.head_dim * (1 if self.theta is None else 2)
