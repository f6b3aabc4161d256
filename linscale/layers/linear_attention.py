"""Linear attention as the layers call it: over whole sequences, or over this rank's piece of them."""

from __future__ import annotations

from torch import Tensor

from linscale.layers.context import Context
from linscale.ops.decay_attention import decay_attention
from linscale.ops.pieces import decay_attention_in_pieces


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, context: Context
) -> tuple[Tensor, Tensor]:
    """o (B, T, H, V) and the state (B, H, K, V) behind the last step; see `decay_attention` for the shapes."""
    if context.piece is not None:
        return decay_attention_in_pieces(q, k, v, log_decay, context.piece)
    return decay_attention(q, k, v, log_decay, state=state, cu_seqlens=context.cu_seqlens)
