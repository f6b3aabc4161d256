"""The definition of `decay_attention`: a loop over time, any dtype. Every faster form is tested against it."""

from __future__ import annotations

import torch
from torch import Tensor

from linscale.ops.packing import document_lengths


def reference_step(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """S <- diag(exp g) S + k vᵀ,  o = Sᵀ q.

    q, k (B, H, K), v (B, H, V), log_decay None, (H,), (B, H) or (B, H, K), state (B, H, K, V)
    -> o (B, H, V), state (B, H, K, V)
    """
    if log_decay is not None:
        per_channel = log_decay.ndim == 3
        decay = log_decay.exp() if per_channel else log_decay.exp()[..., None]  # (B, H, K) or (..., H, 1)
        state = decay[..., None] * state
    state = state + k[..., :, None] * v[..., None, :]
    return torch.einsum("bhkv,bhk->bhv", state, q), state


def reference_decay_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Shapes as in `decay_attention`; all tensors of one dtype. Packed documents are run one by one."""
    if cu_seqlens is not None:
        lengths = document_lengths(cu_seqlens, q).tolist()
        constant = log_decay is None or log_decay.ndim == 1
        decays = [log_decay] * len(lengths) if constant else log_decay.split(lengths, dim=1)  # type: ignore[union-attr]
        rows = zip(q.split(lengths, 1), k.split(lengths, 1), v.split(lengths, 1), decays, state.split(1), strict=True)
        parts = [reference_decay_attention(*row, None) for row in rows]
        return torch.cat([o for o, _ in parts], dim=1), torch.cat([end for _, end in parts])
    outputs = []
    for t in range(q.shape[1]):
        decay = log_decay if log_decay is None or log_decay.ndim == 1 else log_decay[:, t]
        o, state = reference_step(q[:, t], k[:, t], v[:, t], decay, state)
        outputs.append(o)
    return torch.stack(outputs, dim=1) if outputs else torch.zeros_like(v), state
