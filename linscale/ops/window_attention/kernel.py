"""Windows on a GPU: how they are laid out over programs, and autograd around the two kernels."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from linscale.ops.window_attention.kernels import window_grads_kernel, window_kernel

LEAST = 16  # rows and columns of a tile that matrix units take


def attend(qkv: Tensor, n_heads: int, turns: Tensor | None, dropout: float, seed: Tensor | None) -> Tensor:
    """See `window_attention`."""
    o: Tensor = _Attend.apply(qkv.contiguous(), n_heads, turns, dropout, seed)
    return o


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, n_heads: int, turns: Tensor | None, dropout: float, seed: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(qkv, turns, seed)
        ctx.n_heads, ctx.dropout = n_heads, dropout
        o = qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)
        _launch(window_kernel, (qkv, turns, seed, o), qkv, n_heads, dropout)
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        qkv, turns, seed = ctx.saved_tensors
        dqkv = torch.empty_like(qkv)
        _launch(window_grads_kernel, (qkv, turns, seed, do.contiguous(), dqkv), qkv, ctx.n_heads, ctx.dropout)
        return dqkv, None, None, None, None


def _launch(kernel: Any, tensors: tuple[Tensor | None, ...], qkv: Tensor, n_heads: int, dropout: float) -> None:
    """A program for each head of a window, or of as many as fill the smallest tile."""
    batch, tokens, width = qkv.shape
    head = width // (3 * n_heads)
    together = max(1, LEAST // tokens)
    rows = max(LEAST, triton.next_power_of_2(together * tokens))
    turns, seed = tensors[1], tensors[2]
    constants = {
        "H": n_heads, "M": tokens, "K": head, "TOGETHER": together, "ROWS": rows,
        "HALF": max(LEAST, triton.next_power_of_2(head // 2)), "WIDE": max(LEAST, triton.next_power_of_2(head)),
        "SCALE": head**-0.5, "DROPOUT": dropout, "TURNED": turns is not None,
        "PRECISION": "ieee" if qkv.dtype == torch.float32 else "tf32",
    }  # fmt: skip
    if turns is not None:
        turns = turns.contiguous()
    given = (tensors[0], qkv if turns is None else turns, qkv if seed is None else seed, *tensors[3:])
    kernel[(triton.cdiv(batch, together), n_heads)](*given, batch, **constants, num_warps=4 if rows <= 64 else 8)
