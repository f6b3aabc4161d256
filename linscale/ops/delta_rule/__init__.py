"""The gated delta rule: a memory of fixed size that overwrites what it holds under a key, where others only add.

    Sₜ = exp(gₜ) (I - βₜ kₜ kₜᵀ) Sₜ₋₁ + βₜ kₜ vₜᵀ        S in R^{K x V},  g = log_decay <= 0,  |k| = 1
    oₜ = scale · Sₜᵀ qₜ

One step of gradient descent, at rate β, on |Sᵀ k - v|² / 2 (DeltaNet, arXiv 2406.06484; with decay Gated DeltaNet,
arXiv 2412.06464). reference.py steps through time and is the definition; chunk.py computes the same C steps at a time
with matrix products, and walk.py passes the state from chunk to chunk; kernel.py and kernels.py are Triton, for a GPU.
passes.py goes over a sequence. `delta_rule_step` is one step of it, for decoding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from linscale.ops.backend import Backend, without_autocast
from linscale.ops.delta_rule.operator import chunk_delta_rule
from linscale.ops.delta_rule.reference import reference_delta_rule, reference_step
from linscale.ops.packing import check_packing


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    *,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    scale: float = 1.0,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Attend causally through a K x V memory of which every step rewrites one direction, in time linear in T.

    q, k        (B, T, H, K); keys of length 1, or 0
    v           (B, T, H, V)
    beta        (B, T, H), how much of what is held under the key is replaced: 0 nothing, 1 all; 2 at most
    log_decay   None, (H,) or (B, T, H); every entry <= 0
    state       (B, H, K, V), zeros if None; (N, H, K, V) with cu_seqlens
    cu_seqlens  (N+1,) packed documents (B = 1): nothing crosses a boundary

    Returns o (B, T, H, V) in the dtype of v, and the final state, float32 (float64 for float64 inputs).
    Everything is differentiable, the state both ways. Any T is accepted.
    Keys longer than 1 can make the state grow without bound.
    Raises ValueError when shapes do not fit together.
    """
    if cu_seqlens is not None and not torch.compiler.is_compiling():
        check_packing(cu_seqlens, q)
    documents = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    _check(q, k, v, beta, log_decay, state, (documents, *q.shape[2:], v.shape[-1]))
    dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
    if state is None:
        state = q.new_zeros(documents, *q.shape[2:], v.shape[-1], dtype=dtype)
    state = state.to(dtype)
    if backend == "reference":
        decay = None if log_decay is None else log_decay.to(dtype)
        with without_autocast(q.device):
            wide = q.to(dtype) * scale, k.to(dtype), v.to(dtype), beta.to(dtype)
            o, final = reference_delta_rule(*wide, decay, state, cu_seqlens)
        return o.to(v.dtype), final
    return chunk_delta_rule(q, k, v, beta, log_decay, state, cu_seqlens, scale, backend)


def delta_rule_step(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor, *, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """One token of `delta_rule`: what decoding runs.

    q, k (B, H, K), v (B, H, V), beta (B, H), log_decay None, (H,) or (B, H), state (B, H, K, V).
    Returns o (B, H, V) in the dtype of v, and the new state; the old one is left as it was.
    """
    decay = log_decay if log_decay is None or log_decay.ndim == 1 else log_decay[:, None]
    _check(q[:, None], k[:, None], v[:, None], beta[:, None], decay, state, (*q.shape, v.shape[-1]))
    dtype = state.dtype
    log_decay = None if log_decay is None else log_decay.to(dtype)
    with without_autocast(q.device):
        o, state = reference_step(q.to(dtype) * scale, k.to(dtype), v.to(dtype), beta.to(dtype), log_decay, state)
    return o.to(v.dtype), state


def _check(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None,
    state_shape: tuple[int, ...],
) -> None:  # fmt: skip
    """Raise ValueError naming the tensor whose shape does not fit. q, k (B, T, H, K), v (B, T, H, V)."""
    shape = q.shape
    if len(shape) != 4 or k.shape != shape or v.shape[:-1] != shape[:-1]:
        shapes = f"q {tuple(shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        raise ValueError(f"expected q, k (B, T, H, K) and v (B, T, H, V), got {shapes}")
    if beta.shape != shape[:3]:
        raise ValueError(f"beta is {tuple(beta.shape)}, expected (B, T, H) = {tuple(shape[:3])}")
    if log_decay is not None and log_decay.shape not in (shape[2:3], shape[:3]):
        names = f"{tuple(shape[2:3])}, {tuple(shape[:3])}"
        raise ValueError(f"log_decay is {tuple(log_decay.shape)}, expected None, or (H,), (B, T, H) = {names}")
    if state is not None and state.shape != state_shape:
        raise ValueError(f"state is {tuple(state.shape)}, expected {state_shape}")


__all__ = ["delta_rule", "delta_rule_step"]
