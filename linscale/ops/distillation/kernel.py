# mypy: allow-untyped-defs
"""Both models' logits to divergences, and in place to their gradients: one program a token. Imported only where Triton
runs."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from linscale.ops.cross_entropy.kernel import BLOCK, WARPS, log_total, more


def divergence_rows(own: Tensor, given: Tensor, targets: Tensor, share: float, write: bool) -> Tensor:
    """own, given (N, V) with rows side by side, targets (N,) -> losses (N,) float32; see `_rows` in __init__.py."""
    loss = own.new_empty(len(own), dtype=torch.float32)
    if len(own):
        vocabulary = own.shape[1]
        block = min(BLOCK, triton.next_power_of_2(vocabulary))
        divergence_kernel[(len(own),)](
            own, given, targets, loss, own.stride(0), given.stride(0), share, V=vocabulary, BLOCK=block, WRITE=write,
            num_warps=WARPS,
        )  # fmt: skip
    return loss


@triton.jit
def divergence_kernel(
    own, given, targets, loss, own_stride, given_stride, share, V: tl.constexpr, BLOCK: tl.constexpr,
    WRITE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    own += row * own_stride
    given += row * given_stride
    target = tl.load(targets + row)
    aimed = tl.load(own + tl.maximum(target, 0)).to(tl.float32)  # before it is overwritten
    columns = tl.arange(0, BLOCK)
    largest = tl.full((BLOCK,), -float("inf"), tl.float32)
    given_largest = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    given_total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, V, BLOCK):
        here = first + columns
        z = tl.load(own + here, here < V, -float("inf")).to(tl.float32)
        largest, total = more(largest, total, z)
        z = tl.load(given + here, here < V, -float("inf")).to(tl.float32)
        given_largest, given_total = more(given_largest, given_total, z)
    norm, given_norm = log_total(largest, total), log_total(given_largest, given_total)
    counted = target >= 0
    divergence = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, V, BLOCK):
        here = first + columns
        own_log = tl.load(own + here, here < V, 0.0).to(tl.float32) - norm
        given_log = tl.load(given + here, here < V, -float("inf")).to(tl.float32) - given_norm
        truth = tl.exp(given_log)
        divergence += tl.where(truth > 0.0, truth * (given_log - own_log), 0.0)
        if WRITE:
            gradient = (1.0 + share) * tl.exp(own_log) - truth - tl.where(here == target, share, 0.0)
            tl.store(own + here, tl.where(counted, gradient, 0.0).to(own.dtype.element_ty), here < V)
    tl.store(loss + row, tl.where(counted, tl.sum(divergence, 0) + share * (norm - aimed), 0.0))
