"""Linear attention as the layers call it: over whole sequences, or over this rank's piece of them."""

from __future__ import annotations

import torch
from torch import Tensor

from linscale.layers.context import Context
from linscale.ops.decay_attention import decay_attention, decay_attention_step
from linscale.ops.pieces import decay_attention_in_pieces


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, context: Context
) -> tuple[Tensor, Tensor]:
    """o (B, T, H, V) and the state (B, H, K, V) behind the last step; see `decay_attention` for the shapes."""
    if context.piece is not None:
        return decay_attention_in_pieces(q, k, v, log_decay, context.piece)
    return decay_attention(q, k, v, log_decay, state=state, cu_seqlens=context.cu_seqlens)


def stepped_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, context: Context
) -> tuple[Tensor, Tensor]:
    """`linear_attention`, by decoding's step where one token follows a state and nothing is differentiated."""
    packed = context.cu_seqlens is not None or context.piece is not None
    if state is None or packed or q.shape[1] != 1 or torch.is_grad_enabled():
        return linear_attention(q, k, v, log_decay, state, context)
    if log_decay is not None and log_decay.ndim > 1:
        log_decay = log_decay[:, 0]
    o, state = decay_attention_step(q[:, 0], k[:, 0], v[:, 0], log_decay, state)
    return o[:, None], state
