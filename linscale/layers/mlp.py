"""The channel mixers: a gated linear unit, and the two matrices of GPT-2."""

from __future__ import annotations

from typing import Literal

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
        gate = self.gate_proj(x)
        return self.down_proj((silu(gate) if self.activation else gate) * self.up_proj(x))


class MLP(nn.Module):
    """down_proj(a(up_proj x)), x (..., D) -> (..., D)."""

    def __init__(self, d_model: int, d_ff: int, activation: Literal["gelu", "relu"]) -> None:
        super().__init__()
        self.activation = activation
        self.up_proj = nn.Linear(d_model, d_ff, bias=False)
        self.down_proj = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.up_proj(x)
        return self.down_proj(gelu(inner) if self.activation == "gelu" else relu(inner))
