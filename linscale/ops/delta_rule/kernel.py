"""`delta_rule` on a GPU: a segment in three launches forward and four back, whatever its length; six, where two of the
forward pass are made again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from linscale.ops.delta_rule.kept import KeptLayout, operand_dtype
from linscale.ops.delta_rule.kernels import (
    delta_grads_kernel,
    delta_walk_kernel,
    inflow_kernel,
    output_kernel,
    prepare_kernel,
    value_grads_kernel,
)
from linscale.ops.launch import launch

WARPS = 4  # four more would make the same products of 64 rows again
# By the dtype of operands. Columns of values that a program takes at a time: in float32 registers hold no more. It is
# also the narrowest tile: of 16 columns, in bf16 of 32 too, Triton 3.6 has compiled reads out of bounds on Hopper.
PART = {torch.bfloat16: 64, torch.float32: 32}
# Columns of a state that a program walks with: few, so that one long sequence has work for many.
COLUMNS = {torch.bfloat16: 64, torch.float32: 16}
DEEP = 64  # K up to which the next two chunks are on their way in the walk, beyond it one


class KernelSegment:
    """A stretch of the sequence cut into N chunks of `size` steps, and its share of both passes.

    inputs     q, k, v, beta, log_decay or None: (B, T, H, ...), T steps alone
    state      S before the first chunk, float32
    cu_chunks  (N+1,) boundaries of packed documents, counted in chunks, or None
    kept       `kept` of the same segment in a forward pass: then only `backward` is to be had
    """

    def __init__(
        self, inputs: Sequence[Tensor | None], state: Tensor, cu_chunks: Tensor | None, size: int, scale: float,
        kept: Tensor | None = None,
    ) -> None:  # fmt: skip
        q, k, v, beta, g = (None if x is None else x.contiguous() for x in inputs)
        assert q is not None and k is not None and v is not None and beta is not None  # noqa: PT018
        self.q, self.k, self.v, self.beta, self.g = q, k, v, beta, g
        self.cu_chunks, self.scale = cu_chunks, scale
        batch, length, heads, key = k.shape
        value, chunks = v.shape[-1], triton.cdiv(length, size)
        self.shape = chunks, batch, heads
        self.dtype = operand_dtype(q, k, v)
        self.constants: dict[str, Any] = {
            "H": heads, "K": key, "V": value, "BK": max(PART[self.dtype], triton.next_power_of_2(key)),
            "BV": PART[self.dtype], "C": size,
        }  # fmt: skip
        self.rest = {
            "DECAYS": g is not None, "DOT": tl.bfloat16 if self.dtype == torch.bfloat16 else tl.float32,
            "PRECISION": "tf32x3" if v.dtype == torch.float32 else "tf32",
        }  # fmt: skip
        layout = KeptLayout((q, k, v, beta, g), size)
        self.kept = torch.empty(layout.bytes, dtype=torch.uint8, device=k.device) if kept is None else kept
        made = layout.views(self.kept)
        self.transition, self.reads, self.written = made["transition"], made["reads"], made["written"]
        self.similar, self.inverse, self.before = made["similar"], made["inverse"], made["before"]
        self.decay, self.final = made.get("decay", state), state
        if kept is None:
            update = self.new(key, value)
            given = k, v, beta, state if g is None else g, self.transition, update, self.decay
            self.run(prepare_kernel, (*given, self.reads, self.written, self.similar, self.inverse), ())
            self.final = self.walk(update, state.contiguous(), self.before)

    def new(self, *shape: int) -> Tensor:
        """(N, B, H, ...) float32."""
        return torch.empty(*self.shape, *shape, dtype=torch.float32, device=self.k.device)

    def operand(self, *shape: int) -> Tensor:
        """(N, B, H, ...) in the dtype that products take."""
        return torch.empty(*self.shape, *shape, dtype=self.dtype, device=self.k.device)

    def run(self, kernel: Any, tensors: Sequence[Tensor], numbers: Sequence[float]) -> None:
        """A kernel with one program for each chunk of a head."""
        chunks, batch, heads = self.shape
        given = {**self.constants, **self.rest}
        launch(kernel, chunks * batch * heads, tensors, (batch, self.k.shape[1], *numbers), given, WARPS)

    def walk(self, update: Tensor, state: Tensor, met: Tensor, *, backwards: bool = False) -> Tensor:
        """`walk` over this segment's chunks: puts the states met into `met`, and returns the last."""
        chunks, batch, heads = self.shape
        final = torch.empty_like(state)
        constants = {
            **self.constants, "BV": COLUMNS[self.dtype], "DECAYS": self.rest["DECAYS"], "DOT": self.rest["DOT"],
            "PACKED": self.cu_chunks is not None, "BACKWARDS": backwards,
            "STAGES": 3 if self.constants["BK"] <= DEEP else 2,
        }  # fmt: skip
        del constants["C"]
        programs = len(state) * heads * triton.cdiv(self.constants["V"], COLUMNS[self.dtype])
        cu_chunks = state if self.cu_chunks is None else self.cu_chunks
        tensors = update, self.transition, self.decay, state, cu_chunks, met, final
        launch(delta_walk_kernel, programs, tensors, (chunks, batch), constants, 4)
        return final

    def output(self) -> Tensor:
        """o (B, T, H, V) in the dtype of v."""
        o = torch.empty_like(self.v)
        g = self.before if self.g is None else self.g
        tensors = self.q, self.k, g, self.reads, self.written, self.before, o
        self.run(output_kernel, tensors, (self.scale,))
        return o

    def backward(self, do: Tensor, dfinal: Tensor) -> tuple[list[Tensor | None], Tensor]:
        """do (B, T, H, V), dfinal like final -> gradients of the five inputs, and dS at the start."""
        do, g = do.contiguous(), self.before if self.g is None else self.g
        size, (key, value) = self.reads.shape[3], self.before.shape[3:]
        grads = [
            torch.empty_like(x) for x in (self.q, self.k, self.v, self.beta, self.beta if self.g is None else self.g)
        ]
        dq, dk, dv, dbeta, dg = grads
        u, dr, dscores, dnear = (self.operand(size, width) for width in (value, value, size, size))
        du, dupdate, at_once, behind = self.new(size, value), self.new(key, value), self.new(size), self.new(size)
        given = self.q, self.k, g, self.reads, self.written, self.before, do
        self.run(inflow_kernel, (*given, u, du, dscores, at_once, dupdate), (self.scale,))
        dafter = self.operand(key, value)
        dstate = self.walk(dupdate, dfinal.contiguous(), dafter, backwards=True)
        made = self.similar, self.inverse, self.before, dafter, u, du
        self.run(value_grads_kernel, (self.k, self.v, self.beta, g, *made, dr, dnear, behind, dv, dbeta), ())
        left = self.before, dafter, do, dscores, at_once, dnear, u, dr, behind
        self.run(delta_grads_kernel, (self.q, self.k, self.beta, g, *left, dq, dk, dg), (self.scale,))
        return [*grads[:4], None if self.g is None else grads[4]], dstate
