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


Features = Literal["none", "silu", "relu", "softmax"]
Rotary = Literal["none", "before", "after", "lrpe"]
Fading = Literal["none", "head", "head_gate", "channel_gate", "forget"]
Divided = Literal["none", "group", "rms", "sum"]


@dataclass(frozen=True)
class LinearMix:
    """What a linearized layer does with its projections (S, WIDTH), to which `bias` is added: q of every head, k and v
    of those that share them, a logit a decay, a logit a head of what is written, and an output gate.

    features   what q and k go through; softmax with `maps`, or, where the projections give what it is taken of, without
    rotary     RoPE before the features or after them; lrpe: [x cos(tθ), x sin(tθ)]
    fading     head: log λ of each. head_gate, channel_gate: sigmoid of logits of the data. forget: of k's own, keys are
               what is left to 1
    divided    group, rms: a norm of each head. sum: by the similarities, whose sums are the state's last column
    """

    n_heads: int
    key_heads: int
    value_heads: int
    head_dim: int
    "d: what the projections give of q and k for a head."
    value_dim: int
    "V"
    features: Features
    rotary: Rotary
    fading: Fading
    divided: Divided
    delta: bool
    "Whether what is held under k is replaced; q and k are then of length 1."
    gate: bool
    bias: Tensor
    "(WIDTH,) float32"
    maps: tuple[Tensor, Tensor] | None = None
    "W of q and of k, (H, d, F)."
    frequencies: Tensor | None = None
    "RoPE's angles a token, float64: (d / 2,) before the features, (K / 2,) after them."
    sharpened: float = 1.0
    "What RoPE's cosines and sines are multiplied by."
    theta: Tensor | None = None
    "LRPE's angles a token, (H, F) float32."
    decay: Tensor | None = None
    "head: log λ (H,); forget: what is added to k, (H, F); float32."
    gain: Tensor | None = None
    "rms: (H V,) float32."
    eps: float = 0.0
    "Of that norm."
    filters: Tensor | None = None
    "A short convolution's, of every channel of q, k and v, (C, taps) float32, the last tap that of the token itself."

    @property
    def features_dim(self) -> int:
        """Features of a head, before `lrpe` doubles them."""
        width = self.head_dim if self.maps is None else self.maps[0].shape[2]
        return width * (2 if self.features == "softmax" else 1)

    @property
    def key_width(self) -> int:
        """K of the state (S, H, K + rows of the convolution, columns)."""
        return self.features_dim * (2 if self.rotary == "lrpe" else 1)

    @property
    def columns(self) -> int:
        """Of the state."""
        return self.value_dim + (self.divided == "sum")

    @property
    def tail_rows(self) -> int:
        """Rows of the state behind K: the last inputs of the convolution, tap by tap, of q, then k, then v."""
        if self.filters is None:
            return 0
        numbers = self.filters.shape[0] * (self.filters.shape[1] - 1)
        return -(-numbers // (self.n_heads * self.columns))

    @property
    def widths(self) -> tuple[int, int, int, int, int, int]:
        """Of the projections: q, k, v, decays, what is written, output gate."""
        decays = {"head_gate": self.n_heads, "channel_gate": self.n_heads * self.features_dim}.get(self.fading, 0)
        return (
            self.n_heads * self.head_dim, self.key_heads * self.head_dim, self.value_heads * self.value_dim, decays,
            self.n_heads * self.delta, self.n_heads * self.value_dim * self.gate,
        )  # fmt: skip
