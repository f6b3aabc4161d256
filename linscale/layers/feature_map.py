"""Feature maps: what linear attention takes in place of queries and keys, so that φ(q) · φ(k) is a similarity.

    dense    relu(W x + b), W over the flat vector of all heads          T2R (arXiv 2103.13076), SUPRA (2405.06640)
    softmax  [softmax(W x), softmax(-W x)], W of each head               Hedgehog (arXiv 2402.04347), LoLCATs
    exp      [exp(W x), exp(-W x)], W of each head                       Hedgehog

A softmax or exp map is twice as wide as its W. All of them are non-negative: a sum of similarities can divide.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from linscale.distributed import copy_into

LARGEST = 30.0  # exponent: a sum over 10^6 tokens of products of two such features stays below float32's 3e38


class DenseFeatures(nn.Linear):
    """relu(W x + b) of the heads side by side, (B, T, H, d) -> (B, T, H, K): every head reads all of them."""

    def __init__(self, n_heads: int, head_dim: int, width: int) -> None:
        super().__init__(n_heads * head_dim, n_heads * width)
        self.n_heads = n_heads

    def forward(self, x: Tensor) -> Tensor:
        return self.activated(super().forward(x.flatten(2)).unflatten(-1, (self.n_heads, -1)))

    def activated(self, product: Tensor) -> Tensor:
        """Of W x + b."""
        return relu(product)

    def reset(self, generator: torch.Generator) -> None:
        """Uniform within ±1/sqrt(fan in), weights and biases alike: what the authors' framework gives them."""
        bound = self.in_features**-0.5
        for tensor in (self.weight, self.bias):
            copy_into(tensor, bound * (2 * torch.rand(tensor.shape, generator=generator) - 1))


class HeadFeatures(nn.Module):
    """Softmax or exp of W x and of -W x, (B, T, H, d) -> (B, T, H, 2F), in the dtype of x.

    weight (H, d, F). Under `bounded` a vector is divided by exp of its largest exponent: right for queries whose
    outputs are normed, of which a positive factor cancels. Exponents beyond 30 count for 30 elsewhere.
    """

    def __init__(
        self, n_heads: int, head_dim: int, width: int, kind: Literal["softmax", "exp"], *, bounded: bool
    ) -> None:
        super().__init__()
        self.kind, self.bounded = kind, bounded
        self.weight = nn.Parameter(torch.empty(n_heads, head_dim, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.activated(torch.einsum("bthd,hdf->bthf", x, self.weight.to(x.dtype)))

    def activated(self, product: Tensor) -> Tensor:
        """Of x W."""
        y, dtype = product if product.dtype == torch.float64 else product.float(), product.dtype
        if self.kind == "softmax":
            return torch.cat([y.softmax(-1), (-y).softmax(-1)], -1).to(dtype)
        if self.bounded:
            largest = y.detach().abs().amax(-1, keepdim=True)
            return torch.cat([(y - largest).exp(), (-y - largest).exp()], -1).to(dtype)
        y = y.clamp(-LARGEST, LARGEST)
        return torch.cat([y.exp(), (-y).exp()], -1).to(dtype)

    def reset(self, std: float, generator: torch.Generator) -> None:
        """The identity over d^(1/4), which splits softmax's 1/sqrt(d) between q and k, and N(0, std²) in columns that
        it has not."""
        heads, width, columns = self.weight.shape
        values = torch.randn(heads, width, columns, generator=generator) * std
        square = min(width, columns)
        values[:, :, :square] = torch.eye(width, square) * width**-0.25
        copy_into(self.weight, values)
