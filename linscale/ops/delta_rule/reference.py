"""The definition of `delta_rule`: a loop over time, any dtype. Every faster form is tested against it."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from linscale.ops.packing import document_lengths


def reference_step(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """S <- exp(g) S,  S <- S + β k (v - Sᵀ k)ᵀ,  o = Sᵀ q.

    q, k (B, H, K), v (B, H, V), beta (B, H), log_decay None, (H,) or (B, H), state (B, H, K, V)
    -> o (B, H, V), state (B, H, K, V)
    """
    if log_decay is not None:
        state = log_decay.exp()[..., None, None] * state
    error = v - torch.einsum("bhkv,bhk->bhv", state, k)
    state = state + k[..., :, None] * (beta[..., None] * error)[..., None, :]
    return torch.einsum("bhkv,bhk->bhv", state, q), state


def reference_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Shapes as in `delta_rule`; all tensors of one dtype. Packed documents are run one by one."""
    if log_decay is not None:
        log_decay = log_decay.expand(beta.shape)
    if cu_seqlens is not None:
        document_lengths(cu_seqlens, q)
        parts = []
        for document, (first, behind) in enumerate(pairwise(cu_seqlens.tolist())):
            at = slice(first, behind)
            decay, own = None if log_decay is None else log_decay[:, at], state[document : document + 1]
            parts.append(reference_delta_rule(q[:, at], k[:, at], v[:, at], beta[:, at], decay, own, None))
        return torch.cat([o for o, _ in parts], dim=1), torch.cat([end for _, end in parts])
    outputs = []
    for t in range(q.shape[1]):
        decay = None if log_decay is None else log_decay[:, t]
        o, state = reference_step(q[:, t], k[:, t], v[:, t], beta[:, t], decay, state)
        outputs.append(o)
    return torch.stack(outputs, dim=1) if outputs else torch.zeros_like(v), state
