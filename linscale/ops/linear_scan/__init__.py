"""The diagonal linear recurrence.

    hₜ = aₜ hₜ₋₁ + xₜ        elementwise

Read reference.py first; scan.py computes the same with one fused operation a step and its own backward pass, and is how
a CPU runs it; kernel.py and kernels.py are Triton, and are how a GPU does.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from linscale.ops.backend import KERNEL_DTYPES, Backend, Choice, choose, constant_result
from linscale.ops.linear_scan.reference import linear_scan as reference_scan
from linscale.ops.linear_scan.scan import Scan
from linscale.ops.packing import document_lengths

MOST_CHANNELS = 1 << 30  # in one step; the kernels number them in 32 bits


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
    decay       as many axes as x, each of x's size or 1: (1, 1, ...) is a decay constant in time
    state       (B, ...) the h before the first step, zeros if None; (N, ...) with cu_seqlens
    cu_seqlens  (N+1,) packed documents (B = 1): h starts anew, from its own state, at each boundary

    Returns h (B, T, ...) in the dtype of x, and the final state, shaped like `state`, in float32 (float64 for a
    float64 x), as the sum is carried. Both are differentiable. Raises ValueError when shapes or devices do not fit.
    """
    if decay.ndim != x.ndim or any(size not in (1, full) for size, full in zip(decay.shape, x.shape, strict=True)):
        raise ValueError(f"decay is {tuple(decay.shape)}, expected {tuple(x.shape)} or 1 in place of any of its sizes")
    documents = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if state is not None and state.shape != (documents, *x.shape[2:]):
        raise ValueError(f"state is {tuple(state.shape)}, expected {(documents, *x.shape[2:])}")
    for name, y in (("decay", decay), ("state", state), ("cu_seqlens", cu_seqlens)):
        if y is not None and y.device != x.device:
            raise ValueError(f"{name} is on {y.device}, x on {x.device}: expected one device")
    form = serving(backend, x, decay).form
    if form == "triton" and x.numel() > 0:
        return _run_kernels(x, decay, None if state is None else state.float(), cu_seqlens)
    if cu_seqlens is not None and not torch.compiler.is_compiling():
        document_lengths(cu_seqlens, x)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    first = x.new_zeros(documents, *x.shape[2:], dtype=dtype) if state is None else state.to(dtype)
    if x.shape[1] == 0:
        return x, first
    run = reference_scan if form == "reference" else Scan.apply
    wide, decay = x.to(dtype), decay.to(dtype)
    if cu_seqlens is None:
        h = run(wide, decay, first)
        return h.to(x.dtype), h[:, -1].clone()  # a view would keep all of h alive
    # A document's state enters at its first step, where the decay then cuts the link to the document before.
    starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long() - 1
    decay = decay.expand(1, x.shape[1], *decay.shape[2:])
    if state is not None:
        wide = wide.index_add(1, starts, (decay[0, starts] * first)[None])
    h = run(wide, decay.index_fill(1, starts, 0.0), torch.zeros_like(first[:1]))
    return h.to(x.dtype), h[0, ends]


def serving(backend: Backend, x: Tensor, decay: Tensor) -> Choice:
    """Which form serves `linear_scan` for these tensors, and why. Raises ValueError as `backend.choose` does."""
    obstacle = None
    if decay.dtype not in KERNEL_DTYPES:
        obstacle = f"the kernels take a decay in bfloat16, float16 or float32, not {decay.dtype}"
    elif x.shape[2:].numel() > MOST_CHANNELS:
        obstacle = f"the kernels take up to {MOST_CHANNELS} channels, got {x.shape[2:].numel()}"
    return choose(backend, x.device, x.dtype, obstacle)


def _run_kernels(x: Tensor, decay: Tensor, state: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        _load_kernels()
        traced: tuple[Tensor, Tensor] = torch.ops.linscale.linear_scan(x, decay, state, cu_seqlens)
        return traced
    kernel = importlib.import_module("linscale.ops.linear_scan.kernel")
    result: tuple[Tensor, Tensor] = kernel.LinearScan.apply(x, decay, state, cu_seqlens)
    return result


@constant_result
def _load_kernels() -> None:
    """Register the kernels, once. Not at import: a process without a GPU never imports Triton."""
    importlib.import_module("linscale.ops.linear_scan.kernel")


def exclusive_linear_scan(
    x: Tensor, decay: Tensor, *, state: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`linear_scan`, but with the h that each step starts from, hₜ₋₁, in place of hₜ. Same shapes, same final state."""
    h, final = linear_scan(x, decay, state=state, cu_seqlens=cu_seqlens)
    if cu_seqlens is None:
        first = h.new_zeros(h.shape[0], *h.shape[2:]) if state is None else state.to(h.dtype)
        return torch.cat([first[:, None], h[:, :-1]], dim=1)[:, : x.shape[1]], final
    starts = cu_seqlens[:-1].long()
    firsts = h.new_zeros(len(starts), *h.shape[2:]) if state is None else state.to(h.dtype)
    return h.roll(1, dims=1).index_copy(1, starts, firsts[None]), final


__all__ = ["exclusive_linear_scan", "linear_scan"]
