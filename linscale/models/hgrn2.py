"""HGRN2: a gated linear RNN whose every channel decides from the data how fast it forgets (arXiv 2404.07904).

    f_t = β + (1 - β) sigmoid(x W_f)          forget gate, one a channel, never below β
    q   = swish(x W_q),  k = 1 - f,  v = x W_i
    S_t = diag(f_t) S_{t-1} + k_t v_tᵀ,   o_t = S_tᵀ q_t        S (K, V) per head: the decay acts on the key axis
    y   = norm(o) W_o                                          norm over all heads together

What is written is what is forgotten, k = 1 - f: each state channel stays an average of its inputs. What HGRN calls the
output gate is the query here, and the outer product with the value is the "state expansion" of the second version:
a state of K x V a head without one more parameter. There is no other gate and no position encoding.

β, the lower bound, rises with depth, so that high layers keep what low ones let go. It is learned and shared:

    β_s = cumsum(softmax(Γ over layers))_s - softmax(Γ)_1        Γ (L, D);  β_1 = 0, β_L < 1

The paper prints the sum without the subtraction, which would freeze the last layer's gate at 1; all code subtracts.
W_f is f_proj, and W_q, W_i, W_o are q_proj, v_proj, o_proj. Swish on the query and nothing on the value, as in the
authors' language models (their generic module differs).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, silu

from linscale.config import config
from linscale.layers import Context, SRMSNorm, linear_attention
from linscale.models.language_model import LanguageModel, LanguageModelConfig


@config
class HGRN2Config(LanguageModelConfig):
    """Shape of an HGRN2."""

    arch: Literal["hgrn2"] = "hgrn2"


class HGRN2Mixer(nn.Module):
    def __init__(self, config: HGRN2Config, layer: int) -> None:
        super().__init__()
        self.n_heads, self.first = config.n_heads, layer == 0
        self.q_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.f_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.norm = SRMSNorm(config.d_model, config.norm_eps)
        self.o_proj = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x: Tensor, state: Tensor | None, context: Context) -> tuple[Tensor, Tensor]:
        """x (B, T, D), state (B, H, K, V)."""
        assert context.shared is not None
        log_f, k = forget_gate(self.f_proj(x), context.shared, first=self.first)
        q, v = silu(self.q_proj(x)), self.v_proj(x)
        q, k, v, log_f = (z.unflatten(-1, (self.n_heads, -1)) for z in (q, k, v, log_f))  # (B, T, H, K)
        o, state = linear_attention(q, k, v, log_f, state, context)
        return self.o_proj(self.norm(o.flatten(2))), state


class HGRN2(LanguageModel):
    def __init__(self, config: HGRN2Config) -> None:
        super().__init__(config, mixer=HGRN2Mixer, norm=SRMSNorm, activation=None)
        self.lower_bound_logits = nn.Parameter(torch.ones(config.n_layers, config.d_model))  # Γ

    def shared(self) -> Tensor:
        return lower_bounds(self.lower_bound_logits)

    def reset_own_parameters(self) -> None:
        self.lower_bound_logits.fill_(1.0)


def lower_bounds(logits: Tensor) -> Tensor:
    """β (L, D) from Γ (L, D), at least float32: 0 in the first layer, rising with depth, below 1.

    Above the first layer β keeps a hair's breadth from 0 and 1, where rounding would make log β or log(1 - β) infinite.
    """
    p = (logits if logits.dtype == torch.float64 else logits.float()).softmax(dim=0)
    return torch.cat([torch.zeros_like(p[:1]), p[1:].cumsum(dim=0).clamp(1e-12, 1 - 2**-20)])


def forget_gate(f: Tensor, lower_bound: Tensor, *, first: bool) -> tuple[Tensor, Tensor]:
    """log f and k = 1 - f from the pre-activation f (..., D) and β (D,), in the dtype of β, finite for any input.

    f itself is never far below β, so its logarithm is exact where it matters; in the first layer β = 0 exactly.
    """
    f = f.to(lower_bound.dtype)
    if first:
        return logsigmoid(f), (-f).sigmoid()
    log_f = (lower_bound + (1 - lower_bound) * f.sigmoid()).log()
    return log_f.clamp(max=0), (1 - lower_bound) * (-f).sigmoid()  # where f is 1, it can be rounded to 1 + 1e-7
