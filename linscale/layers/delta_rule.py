"""The gated delta rule as a layer calls it: keys and queries of length 1, and how much of a step is written."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from linscale.layers.context import Context
from linscale.ops.delta_rule import delta_rule, delta_rule_step


def delta_attention(
    q: Tensor, k: Tensor, v: Tensor, write: Tensor, log_decay: Tensor | None, state: Tensor | None, context: Context
) -> tuple[Tensor, Tensor]:
    """o (B, T, H, V) and the state (B, H, K, V) behind the last step, for q, k (B, T, H, K) of any length.

    write (B, T, H) are logits: β is their sigmoid, in float32. One token behind a state is decoding's step, where
    nothing is differentiated. Raises ValueError where ranks share sequences: a rank's piece turns the state that it
    meets by a matrix, which is not passed on.
    """
    if context.piece is not None:
        raise ValueError("the delta rule reads a sequence as one piece; expected sequence_parallel = 1")
    q, k, beta = _unit(q), _unit(k), _wide(write).sigmoid()
    packed = context.cu_seqlens is not None
    if state is None or packed or q.shape[1] != 1 or torch.is_grad_enabled():
        return delta_rule(q, k, v, beta, log_decay, state=state, cu_seqlens=context.cu_seqlens)
    decay = log_decay if log_decay is None or log_decay.ndim == 1 else log_decay[:, 0]
    o, state = delta_rule_step(q[:, 0], k[:, 0], v[:, 0], beta[:, 0], decay, state)
    return o[:, None], state


def _unit(x: Tensor) -> Tensor:
    """x / |x| over the last axis, in the dtype of x; 0 stays 0."""
    return normalize(_wide(x), dim=-1, eps=1e-6).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
