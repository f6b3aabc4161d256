# mypy: allow-untyped-defs
"""Logits to losses, and in place to softmax - onehot: one program a token. Imported only where Triton runs."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # logits at a time; a row of 100,000 in bf16 is read again from L2
WARPS = 8


def softmax_rows(logits: Tensor, targets: Tensor, write: bool) -> Tensor:
    """logits (N, V) with rows side by side, targets (N,) -> losses (N,) float32; see `_softmax_rows` in __init__.py."""
    loss = logits.new_empty(len(logits), dtype=torch.float32)
    if len(logits):
        vocabulary = logits.shape[1]
        block = min(BLOCK, triton.next_power_of_2(vocabulary))
        rows_kernel[(len(logits),)](
            logits, targets, loss, logits.stride(0), V=vocabulary, BLOCK=block, WRITE=write, num_warps=WARPS
        )
    return loss


@triton.jit
def more(largest, total, z):
    """Every lane keeps the largest logit that it has met and its sum of exponentials relative to that one; one that has
    met nothing but -inf stays empty."""
    top = tl.maximum(largest, z)
    return top, tl.where(top > -float("inf"), total * tl.exp(largest - top) + tl.exp(z - top), 0.0)


@triton.jit
def log_total(largest, total):
    """The logarithm of what all lanes have met."""
    top = tl.max(largest, 0)
    return top + tl.log(tl.sum(tl.where(largest > -float("inf"), total * tl.exp(largest - top), 0.0), 0))


@triton.jit
def rows_kernel(logits, targets, loss, stride, V: tl.constexpr, BLOCK: tl.constexpr, WRITE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    aimed = tl.load(logits + tl.maximum(target, 0)).to(tl.float32)  # before the sums, after which it is overwritten
    columns = tl.arange(0, BLOCK)
    largest = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, V, BLOCK):
        z = tl.load(logits + first + columns, first + columns < V, -float("inf")).to(tl.float32)
        largest, total = more(largest, total, z)
    norm = log_total(largest, total)
    counted = target >= 0
    tl.store(loss + row, tl.where(counted, norm - aimed, 0.0))
    if WRITE:
        for first in range(0, V, BLOCK):
            here = first + columns
            z = tl.load(logits + here, here < V, 0.0).to(tl.float32)
            p = tl.exp(z - norm) - tl.where(here == target, 1.0, 0.0)
            tl.store(logits + here, tl.where(counted, p, 0.0).to(logits.dtype.element_ty), here < V)
