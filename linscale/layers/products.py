"""Products of a loop: the same few matrices again and again, on inputs that only the step before can give.

Backwards such a loop has two kinds of work. The gradient of each input is what the step before waits for. The gradient
of the weights nobody waits for: taken step by step they are small products, each added to the last, in bf16 rounded
each time. Here inputs and gradients are kept until they fill a product, and the sums are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

ROWS = 1 << 15  # of inputs that one product for the gradient of a weight takes


class Products:
    """x Wᵀ with one of `weights` (out, in), in `dtype`. What the loop reads has to go through `enter` first."""

    def __init__(self, weights: Sequence[Tensor], dtype: torch.dtype) -> None:
        self._sources, self._trained = tuple(weights), [weight.requires_grad for weight in weights]
        # One who compiles the whole model gets products as any other: the compiler follows no lists in a backward pass.
        self._plain = torch.compiler.is_compiling()
        self._weights = [(weight if self._plain else weight.detach()).to(dtype) for weight in weights]
        self._kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in weights]
        self._rows = [0 for _ in weights]
        self._sums: list[Tensor | None] = [None for _ in weights]
        self._pass = -1  # the backward pass that these are of

    def enter(self, x: Tensor) -> Tensor:
        """x, and the place in the backward pass where the gradients of the weights are whole: behind all of the loop,
        as all that it makes depends on x."""
        if self._plain or not (torch.is_grad_enabled() and (x.requires_grad or any(self._trained))):
            return x
        entered: Tensor = _Enter.apply(self, x, *self._sources)
        return entered

    def __call__(self, which: int, x: Tensor) -> Tensor:
        """x (..., in), in `dtype`, -> (..., out)."""
        if self._plain or not x.requires_grad:
            return linear(x, self._weights[which])
        product: Tensor = _Product.apply(self, which, x)
        return product

    def back(self, which: int, x: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of x from that of its product."""
        if self._trained[which]:
            self._begin()
            self._kept[which].append((x.flatten(0, -2), gradient.flatten(0, -2)))
            self._rows[which] += x.shape[:-1].numel()
            if self._rows[which] >= ROWS:
                self._sum(which)
        return gradient @ self._weights[which]

    def gradients(self) -> list[Tensor | None]:
        """Of the weights, by all products of this backward pass."""
        self._begin()
        for which, kept in enumerate(self._kept):
            if kept:
                self._sum(which)
        found, self._sums = self._sums, [None for _ in self._sums]
        return [
            None if total is None else total.to(source.dtype)
            for total, source in zip(found, self._sources, strict=True)
        ]

    def _begin(self) -> None:
        """Drop what an earlier pass has left behind: one for a part of the gradients never comes to their end."""
        now = torch._C._current_graph_task_id()
        if now != self._pass:
            self._pass, self._rows = now, [0 for _ in self._rows]
            self._kept, self._sums = [[] for _ in self._kept], [None for _ in self._sums]

    def _sum(self, which: int) -> None:
        inputs, gradients = (torch.cat(parts) for parts in zip(*self._kept[which], strict=True))
        self._kept[which], self._rows[which] = [], 0
        new = gradients.mT @ inputs
        new = new.to(torch.promote_types(new.dtype, torch.float32))
        old = self._sums[which]
        self._sums[which] = new if old is None else old.add_(new)


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, products: Products, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.products = products
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, gradient, *ctx.products.gradients()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, products: Products, which: int, x: Tensor) -> Tensor:
        ctx.products, ctx.which = products, which
        ctx.save_for_backward(x)
        return linear(x, products._weights[which])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        # `once_differentiable` would let torch.autograd.grad go on, with second derivatives that lack this part.
        if torch.is_grad_enabled():
            raise RuntimeError("gradients of a recurrent transformer are differentiated once: leave create_graph out")
        (x,) = ctx.saved_tensors
        return None, None, ctx.products.back(ctx.which, x, gradient)
