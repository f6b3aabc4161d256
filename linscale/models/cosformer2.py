"""cosFormer2: linear attention that never forgets and re-weights by cosines of distance (arXiv 2406.16690).

    x    = TPE(embed(tokens))                                          once, before the first layer
    q, k = swish(x W_q), swish(x W_k);  v = x W_v                      per head
    q, k = [q cos(tθ), q sin(tθ)], [k cos(tθ), k sin(tθ)]              LRPE in every layer: K = 2V
    S_t  = S_{t-1} + k_t v_tᵀ,   o_t = S_tᵀ q_t                         no decay
    y    = [norm(o) * sigmoid(x W_down W_up)] W_o                      norm over all heads together

So the weight of step s at step t is Σ_c q_tc k_sc cos((t - s) θ_c): where cosFormer had one cosine for all channels,
each has its own. The output is normed, not divided by the sum of weights. The norm's type is not stated; SRMSNorm by
analogy with TNL, where the choice is worth less than 0.001 in loss.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import silu

from linscale.config import config
from linscale.layers import LRPE, Context, LowRankGate, SRMSNorm, ToeplitzEncoding, linear_attention
from linscale.models.language_model import LanguageModel, LanguageModelConfig


@config
class CosFormer2Config(LanguageModelConfig):
    """Shape of a cosFormer2."""

    arch: Literal["cosformer2"] = "cosformer2"


class CosFormer2Mixer(nn.Module):
    def __init__(self, config: CosFormer2Config, layer: int) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.q_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.lrpe = LRPE(config.n_heads, config.head_dim)
        self.norm = SRMSNorm(config.d_model, config.norm_eps)
        self.gate = LowRankGate(config.d_model, rank=config.head_dim)
        self.o_proj = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x: Tensor, state: Tensor | None, context: Context) -> tuple[Tensor, Tensor]:
        """x (B, T, D), state (B, H, 2V, V)."""
        heads = (self.n_heads, -1)
        q = silu(self.q_proj(x)).unflatten(-1, heads)
        k = silu(self.k_proj(x)).unflatten(-1, heads)
        v = self.v_proj(x).unflatten(-1, heads)  # (B, T, H, V)
        q, k = self.lrpe(q, k, context.positions)  # (B, T, H, 2V)
        o, state = linear_attention(q, k, v, None, state, context)
        return self.o_proj(self.norm(o.flatten(2)) * self.gate(x)), state


class CosFormer2(LanguageModel):
    def __init__(self, config: CosFormer2Config) -> None:
        super().__init__(config, mixer=CosFormer2Mixer, norm=SRMSNorm, activation=None)
        self.position_encoder = ToeplitzEncoding(config.d_model, width=config.head_dim)
