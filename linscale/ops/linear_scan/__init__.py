"""The diagonal linear recurrence.

    hₜ = aₜ hₜ₋₁ + xₜ        elementwise

Read reference.py first; scan.py computes the same with one fused operation a step and its own backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from linscale.ops.backend import Backend, resolve_backend
from linscale.ops.linear_scan.reference import linear_scan as reference_scan
from linscale.ops.linear_scan.scan import Scan
from linscale.ops.packing import document_lengths


def linear_scan(
    x: Tensor,
    decay: Tensor,
    *,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Run hₜ = decayₜ · hₜ₋₁ + xₜ along axis 1 and return every h and the last.

    x           (B, T, ...)
    decay       broadcastable to x, e.g. (T, 1) is not enough: give (1, 1, ...) for a decay constant in time
    state       (B, ...) the h before the first step, zeros if None; (N, ...) with cu_seqlens
    cu_seqlens  (N+1,) packed documents (B = 1): h starts anew, from its own state, at each boundary

    Returns h (B, T, ...) and the final state, shaped like `state`; both differentiable, in the dtype of x.
    Raises ValueError when shapes do not fit.
    """
    if decay.ndim != x.ndim:
        raise ValueError(
            f"decay has {decay.ndim} axes, x has {x.ndim}: give decay one size-1 axis per constant axis of x"
        )
    documents = x.shape[0] if cu_seqlens is None else len(document_lengths(cu_seqlens, x))
    if state is not None and state.shape != (documents, *x.shape[2:]):
        raise ValueError(f"state is {tuple(state.shape)}, expected {(documents, *x.shape[2:])}")
    if x.shape[1] == 0:
        return x, x.new_zeros(documents, *x.shape[2:]) if state is None else state.to(x.dtype)
    run = reference_scan if resolve_backend(backend) == "reference" else Scan.apply
    if cu_seqlens is None:
        h = run(x, decay, x.new_zeros(x.shape[0], *x.shape[2:]) if state is None else state.to(x.dtype))
        return h, h[:, -1]
    # A document's state enters at its first step, where the decay then cuts the link to the document before.
    starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long() - 1
    decay = decay.expand(1, x.shape[1], *decay.shape[2:])
    if state is not None:
        x = x.index_add(1, starts, (decay[0, starts] * state)[None].to(x.dtype))
    decay = decay.index_fill(1, starts, 0.0)
    h = run(x, decay, x.new_zeros(1, *x.shape[2:]))
    return h, h[0, ends]


def exclusive_linear_scan(
    x: Tensor, decay: Tensor, *, state: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`linear_scan`, but with the h that each step starts from, hₜ₋₁, in place of hₜ. Same shapes, same final state."""
    h, final = linear_scan(x, decay, state=state, cu_seqlens=cu_seqlens)
    if cu_seqlens is None:
        first = h.new_zeros(h[:, 0].shape) if state is None else state.to(h.dtype)
        return torch.cat([first[:, None], h[:, :-1]], dim=1), final
    starts = cu_seqlens[:-1].long()
    firsts = h.new_zeros(len(starts), *h.shape[2:]) if state is None else state.to(h.dtype)
    return h.roll(1, dims=1).index_copy(1, starts, firsts[None]), final


__all__ = ["exclusive_linear_scan", "linear_scan"]
