"""Linear attention with decay: one recurrence, the operator of every linear-attention model here.

    Sₜ = diag(exp gₜ) Sₜ₋₁ + kₜ vₜᵀ        S in R^{K x V},  g = log_decay <= 0
    oₜ = scale · Sₜᵀ qₜ

reference.py steps through time and is the definition; chunk.py computes the same C steps at a time with
matrix products, and is how a CPU trains; kernel.py and kernels/ are Triton, and are how a GPU trains.
`decay_attention_step` is one step of it, for decoding.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from linscale.ops.backend import Backend, Choice, choose, constant_result, without_autocast
from linscale.ops.decay_attention.chunk import chunk_decay_attention
from linscale.ops.decay_attention.reference import reference_decay_attention, reference_step
from linscale.ops.packing import check_packing

WIDEST = 256  # K and V that the kernels take


def decay_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    scale: float = 1.0,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Attend causally through a decaying K x V memory, in time linear in T.

    q, k        (B, T, H, K)
    v           (B, T, H, V)
    log_decay   None            no decay                 cosFormer2
                (H,)            constant per head        TNL, SUPRA
                (B, T, H)       per token and head
                (B, T, H, K)    per channel              HGRN2
                every entry <= 0; below -80 a step, down to -inf, it forgets everything
    state       (B, H, K, V), zeros if None; (N, H, K, V) with cu_seqlens
    cu_seqlens  (N+1,) packed documents (B = 1): nothing crosses a boundary

    Returns o (B, T, H, V) in the dtype of v, and the final state, float32 (float64 for float64 inputs).
    Everything is differentiable, the state both ways. Any T is accepted.
    Raises ValueError when shapes do not fit together.
    """
    if cu_seqlens is not None and not torch.compiler.is_compiling():
        check_packing(cu_seqlens, q)
    documents = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    _check(q, k, v, log_decay, state, (documents, *q.shape[2:], v.shape[-1]))
    form = serving(backend, q, v, state).form
    if form == "triton":
        if scale == 0.0:  # the kernels divide gradients of states by it
            q, scale = q * 0.0, 1.0
        state = None if state is None else state.float()
        if not q.dtype == k.dtype == v.dtype:
            q, k = q.to(v.dtype), k.to(v.dtype)
        save = _differentiated(q, k, v, log_decay, state)
        if torch.compiler.is_compiling() or type(q) is not Tensor:
            _load_kernels()
            o, final, _ = torch.ops.linscale.decay_attention(q, k, v, log_decay, state, cu_seqlens, scale, save)
            return o, final
        result: tuple[Tensor, Tensor] = _kernels().run(q, k, v, log_decay, state, cu_seqlens, scale, save)
        return result
    dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
    if state is None:
        state = q.new_zeros(documents, *q.shape[2:], v.shape[-1], dtype=dtype)
    run = reference_decay_attention if form == "reference" else chunk_decay_attention
    decay = None if log_decay is None else log_decay.to(dtype)
    query = q.to(dtype) if scale == 1.0 else q.to(dtype) * scale
    with without_autocast(q.device):
        o, final = run(query, k.to(dtype), v.to(dtype), decay, state.to(dtype), cu_seqlens)
    return o.to(v.dtype), final


def serving(backend: Backend, q: Tensor, v: Tensor, state: Tensor | None = None) -> Choice:
    """Which form serves `decay_attention` for these tensors, and why. Raises ValueError as `backend.choose` does."""
    obstacle = None
    if max(q.shape[-1], v.shape[-1]) > WIDEST:
        obstacle = f"the kernels take head widths up to {WIDEST}, got K = {q.shape[-1]}, V = {v.shape[-1]}"
    elif q.numel() == 0 or v.numel() == 0:
        obstacle = "there is nothing to compute"
    elif state is not None and state.dtype == torch.float64:
        obstacle = "the state is float64, the kernels keep it in float32"
    return choose(backend, q.device, v.dtype, obstacle)


def _differentiated(*inputs: Tensor | None) -> bool:
    """Whether autograd records what becomes of the inputs."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


@cache
def _kernels() -> ModuleType:
    """Not imported with this module: a process without a GPU never imports Triton."""
    return importlib.import_module("linscale.ops.decay_attention.kernel")


@constant_result
def _load_kernels() -> None:
    """Register the custom operators, once."""
    _kernels()


def decay_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    *,
    scale: float = 1.0,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """One token of `decay_attention`: what decoding runs.

    q, k (B, H, K), v (B, H, V), log_decay None, (H,), (B, H) or (B, H, K), state (B, H, K, V).
    Returns o (B, H, V) in the dtype of v, and the new state; the old one is left as it was.
    """
    if log_decay is not None and log_decay.ndim > 1:
        log_decay = log_decay[:, None]
    _check(q[:, None], k[:, None], v[:, None], log_decay, state, (*q.shape, v.shape[-1]))
    if log_decay is not None and log_decay.ndim > 1:
        log_decay = log_decay[:, 0]
    if not _differentiated(q, k, v, log_decay, state) and serving(backend, q, v, state).form == "triton":
        if torch.compiler.is_compiling() or type(q) is not Tensor:
            _load_kernels()
            step = torch.ops.linscale.decay_attention_step
        else:
            step = _kernels().step
        stepped: tuple[Tensor, Tensor] = step(q, k, v, log_decay, state, scale)
        return stepped
    if log_decay is not None:
        log_decay = log_decay.to(state.dtype)
    with without_autocast(q.device):
        o, state = reference_step(q.to(state.dtype) * scale, k.to(state.dtype), v.to(state.dtype), log_decay, state)
    return o.to(v.dtype), state


def _check(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, state_shape: tuple[int, ...]
) -> None:
    """Raise ValueError naming the tensor whose shape does not fit. q, k (B, T, H, K), v (B, T, H, V)."""
    shape = q.shape
    if len(shape) != 4 or k.shape != shape or v.shape[:-1] != shape[:-1]:
        shapes = f"q {tuple(shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        raise ValueError(f"expected q, k (B, T, H, K) and v (B, T, H, V), got {shapes}")
    accepted = (shape[2:3], shape[:3], shape)
    if log_decay is not None and log_decay.shape not in accepted:
        names = ", ".join(str(tuple(shape)) for shape in accepted)
        raise ValueError(
            f"log_decay is {tuple(log_decay.shape)}, expected None, or (H,), (B, T, H), (B, T, H, K) = {names}"
        )
    if state is not None and state.shape != state_shape:
        raise ValueError(f"state is {tuple(state.shape)}, expected {state_shape}")


__all__ = ["decay_attention", "decay_attention_step"]
