"""Softmax attention inside a window: over the keys of a cache and those of the tokens at hand, and no others."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from linscale.layers.rope import rope_frequencies
from linscale.ops import angles, rotate_half


class WindowAttention(nn.Module):
    """o_proj(softmax(q kᵀ / sqrt(K) + mask) v), in two halves, so that what is between them may come from a cache.

    rope_base  of RoPE on places of the window; None: q and k are not turned
    """

    def __init__(self, d_model: int, n_heads: int, rope_base: float | None) -> None:
        super().__init__()
        self.n_heads, self.rope_base = n_heads, rope_base
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def turns(self, width: int, like: Tensor) -> Tensor | None:
        """cos and sin of every place of a window, (2, width, K/2), for `rotated`; None where nothing is turned."""
        if self.rope_base is None:
            return None
        head = self.q_proj.out_features // self.n_heads
        frequencies = rope_frequencies(head, self.rope_base, None, like.device)
        return torch.stack(angles(torch.arange(width, device=like.device), frequencies, like.dtype))

    def rotated(self, x: Tensor, turns: Tensor | None) -> Tensor:
        """Queries or keys (B, m, D), turned by `turns` (2, m, K/2) or (2, B, m, K/2)."""
        if turns is None:
            return x
        cos, sin = turns if turns.ndim == 4 else turns[:, None]
        return rotate_half(x.unflatten(-1, (self.n_heads, -1)), cos, sin).flatten(-2)

    def keys(self, h: Tensor, turns: Tensor | None) -> tuple[Tensor, Tensor]:
        """k, v (B, m, D) of the normed input h (B, m, D)."""
        return self.rotated(self.k_proj(h), turns), self.v_proj(h)

    def queries(self, h: Tensor, turns: Tensor | None) -> Tensor:
        """q (B, m, D) of the normed input h (B, m, D)."""
        return self.rotated(self.q_proj(h), turns)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, dropout: float = 0.0) -> Tensor:
        """o_proj of `weigh`."""
        return self.o_proj(self.weigh(q, k, v, visible, dropout))

    def weigh(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, dropout: float = 0.0) -> Tensor:
        """(B, m, D) from q (B, m, D), k and v (B, S, D); visible (B or 1, 1, m, S), or None: causal with S = m."""
        q, k, v = (x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for x in (q, k, v))
        o = scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=visible is None, dropout_p=dropout)
        return o.transpose(1, 2).flatten(2)
