"""The channel mixers: a gated linear unit, and the two matrices of GPT-2."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu, silu


class GLU(nn.Module):
    """down_proj(a(gate_proj x) * up_proj x), x (..., D) -> (..., D).

    activation  "silu": SwiGLU (LLaMA); None: SGLU, no activation at all (TNL, HGRN2, cosFormer2)
    """

    def __init__(self, d_model: int, d_ff: int, activation: Literal["silu"] | None) -> None:
        super().__init__()
        self.activation = activation
        self.gate_proj = nn.Linear(d_model, d_ff, bias=False)
        self.up_proj = nn.Linear(d_model, d_ff, bias=False)
        self.down_proj = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self._inner(self.gate_proj(x), self.up_proj(x)))

    def _inner(self, gate: Tensor, up: Tensor) -> Tensor:
        return (silu(gate) if self.activation else gate) * up

    def entering(self) -> Tensor:
        """The weights of both products of x as one (2F, D)."""
        return torch.cat([self.gate_proj.weight, self.up_proj.weight])

    def inner(self, x: Tensor) -> Tensor:
        """What down_proj takes, (..., F), from the product with `entering` (..., 2F)."""
        return self._inner(*x.chunk(2, -1))


class MLP(nn.Module):
    """down_proj(a(up_proj x)), x (..., D) -> (..., D)."""

    def __init__(self, d_model: int, d_ff: int, activation: Literal["gelu", "relu"]) -> None:
        super().__init__()
        self.activation = activation
        self.up_proj = nn.Linear(d_model, d_ff, bias=False)
        self.down_proj = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.inner(self.up_proj(x)))

    def entering(self) -> Tensor:
        """The weight of the product of x, (F, D)."""
        return self.up_proj.weight

    def inner(self, x: Tensor) -> Tensor:
        """What down_proj takes, (..., F), from the product with `entering`."""
        return gelu(x) if self.activation == "gelu" else relu(x)
