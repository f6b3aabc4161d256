"""TNL, TransNormerLLM: linear attention whose memory fades at a fixed rate a head (arXiv 2307.14995, 2405.17381).

    q, k = swish(x W_q), swish(x W_k);  v = x W_v                      per head, K = V = head_dim
    S_t  = λ S_{t-1} + k_t v_tᵀ,   o_t = S_tᵀ q_t                        λ = exp(-rate), one a head and layer
    y    = [norm(o) * sigmoid(x W_down W_up)] W_o                      norm over all heads together

Early layers forget fast and the last one hardly at all: rate = slope_head · (1 - layer/(L-1) + 1e-5). Two definitions
are in print; this is the one of the released checkpoints. Rates are fixed: learned ones gave NaN (TransNormerLLM).
Layer 1 also has LRPE; the others know positions by the decay alone. The gate reads the normed input, as in the
released code (the paper's equation writes the input before the norm), and W_o comes after it. No scale on q and no
denominator: a norm follows.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from linscale.config import config
from linscale.layers import LRPE, Context, LowRankGate, SRMSNorm, linear_attention
from linscale.models.language_model import LanguageModel, LanguageModelConfig


@config
class TNLConfig(LanguageModelConfig):
    """Shape of a TNL."""

    arch: Literal["tnl"] = "tnl"


class TNLMixer(nn.Module):
    log_decay: Tensor

    def __init__(self, config: TNLConfig, layer: int) -> None:
        super().__init__()
        self.n_heads, self.layer, self.n_layers = config.n_heads, layer, config.n_layers
        self.q_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.lrpe = LRPE(config.n_heads, config.head_dim) if layer == 0 else None
        self.norm = SRMSNorm(config.d_model, config.norm_eps)
        self.gate = LowRankGate(config.d_model, rank=config.head_dim)
        self.o_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.register_buffer("log_decay", torch.empty(config.n_heads), persistent=False)
        self.reset_log_decay()

    def reset_log_decay(self) -> None:
        with torch.no_grad():
            self.log_decay.copy_(-torch.tensor(decay_rates(self.n_heads, self.layer, self.n_layers)))

    def forward(self, x: Tensor, state: Tensor | None, context: Context) -> tuple[Tensor, Tensor]:
        """x (B, T, D), state (B, H, K, V); K = 2V in the layer with LRPE."""
        heads = (self.n_heads, -1)
        q = silu(self.q_proj(x)).unflatten(-1, heads)  # (B, T, H, K)
        k = silu(self.k_proj(x)).unflatten(-1, heads)
        v = self.v_proj(x).unflatten(-1, heads)
        if self.lrpe is not None:
            q, k = self.lrpe(q, k, context.positions)
        o, state = linear_attention(q, k, v, self.log_decay, state, context)
        return self.o_proj(self.norm(o.flatten(2)) * self.gate(x)), state


class TNL(LanguageModel):
    def __init__(self, config: TNLConfig) -> None:
        super().__init__(config, mixer=TNLMixer, norm=SRMSNorm, activation=None)

    def reset_own_parameters(self) -> None:
        self.reset_buffers()

    def reset_buffers(self) -> None:
        super().reset_buffers()
        for module in self.modules():
            if isinstance(module, TNLMixer):
                module.reset_log_decay()


def decay_slopes(n_heads: int) -> list[float]:
    """ALiBi's slopes: 2^(-8h/H) for heads h = 1..H where H is a power of two; else those of the power of two below,
    then every second one of the next power's until there are enough."""
    below = 2 ** int(math.log2(n_heads))
    slopes = [2 ** (-8 * head / below) for head in range(1, below + 1)]
    between = [2 ** (-8 * head / (2 * below)) for head in range(1, 2 * below + 1, 2)]
    return slopes + between[: n_heads - below]


def decay_rates(n_heads: int, layer: int, n_layers: int) -> list[float]:
    """-log λ of each head in layer `layer`, counted from 0: slope · (1 - layer/(L-1) + 1e-5)."""
    fade = 1 - layer / max(n_layers - 1, 1) + 1e-5
    return [slope * fade for slope in decay_slopes(n_heads)]
