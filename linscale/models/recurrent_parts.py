"""What lies between the products of a window of a recurrent transformer: element by element, a kernel each if compiled.

Norms come without their scales, which are in the weights of the products behind them (`SRMSNorm.scaled`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import dropout

from linscale.layers import GLU, MLP, LeftState, SRMSNorm, WindowAttention
from linscale.layers.left_state import MOST


class WindowParts:
    """Of one block. u, z (B, m, D) are at least float32, what products take and give has their dtype; `p`: dropout."""

    NAMES = ("normed", "heads", "keys", "between", "inner", "added", "closed", "handed", "ended", "gated")
    """What is compiled."""

    def __init__(
        self, mixer_norm: SRMSNorm, mixer: WindowAttention, mlp_norm: SRMSNorm, mlp: GLU | MLP, left: LeftState | None
    ) -> None:
        self._mixer_norm, self._mixer, self._mlp_norm, self._mlp, self._left = mixer_norm, mixer, mlp_norm, mlp, left

    def normed(self, u: Tensor, dtype: torch.dtype) -> Tensor:
        """What the products for queries, keys and values take."""
        return self._mixer_norm.standard(u).to(dtype)

    def heads(self, qkv: Tensor, turns: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v (B, m, D) from their product (B, m, 3D)."""
        q, k, v = qkv.chunk(3, -1)
        return self._mixer.rotated(q, turns), self._mixer.rotated(k, turns), v.contiguous()

    def keys(self, kv: Tensor, turns: Tensor | None) -> tuple[Tensor, Tensor]:
        """k, v (B, m, D) from their product (B, m, 2D)."""
        k, v = kv.chunk(2, -1)
        return self._mixer.rotated(k, turns), v.contiguous()

    def between(self, u: Tensor, a: Tensor, p: float) -> tuple[Tensor, Tensor]:
        """z = u + a behind the mixer, and what the MLP's products take."""
        z = u + dropout(a, p)
        return z, self._mlp_norm.standard(z).to(a.dtype)

    def inner(self, x: Tensor) -> Tensor:
        """What the MLP's last product takes."""
        return self._mlp.inner(x)

    def added(self, z: Tensor, f: Tensor, p: float) -> Tensor:
        """T(u) from z and what the MLP gives."""
        return z + dropout(f, p)

    def closed(self, z: Tensor, f: Tensor, p: float) -> tuple[Tensor, Tensor]:
        """T(u), and what the products for its queries, keys and values take."""
        c = z + dropout(f, p)
        return c, self.normed(c, f.dtype)

    def handed(
        self, z: Tensor, f: Tensor, x: Tensor | None, taken: Tensor | int, scale: Tensor | float, p: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """T(u) of a window; and the next window [L; R] (B, K + m, D), of x (B, m, D), or L alone of no x, with what its
        products take. `taken`: what is taken over (B, K, D), or how many places of T(u) it is, which then are no c."""
        both, c, left = self._split(z, f, taken, p)
        u = self._take(self._beside(c, x), left, scale, c.shape[1])
        return both, u, self.normed(u, f.dtype)

    def ended(
        self, z: Tensor, f: Tensor, x: Tensor | None, taken: Tensor | int, p: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The first half of `handed` where gates decide: T(u), the next window before it takes over, what the product
        for gates takes, and what is taken over."""
        assert self._left is not None
        assert self._left.gate_norm is not None
        both, c, left = self._split(z, f, taken, p)
        before = self._beside(c, x)
        return both, before, self._left.gate_norm.standard(before).to(f.dtype), left

    def gated(
        self, before: Tensor, gates: Tensor, left: Tensor, scale: Tensor | float, alpha: Tensor, first: int
    ) -> tuple[Tensor, Tensor]:
        """The second half, from the product for gates (B, K + m, H): the next window, and what its products take."""
        alphas = MOST * (gates.to(alpha.dtype) + alpha).sigmoid()
        alphas = alphas.repeat_interleave(before.shape[-1] // alpha.shape[-1], dim=-1).to(before.dtype)
        u = self._take(before, left, alphas * scale, first)
        return u, self.normed(u, gates.dtype)

    @staticmethod
    def _split(z: Tensor, f: Tensor, taken: Tensor | int, p: float) -> tuple[Tensor, Tensor, Tensor]:
        both = z + dropout(f, p)
        if isinstance(taken, int):
            return both, both[:, taken:], both[:, :taken]
        return both, both, taken

    @staticmethod
    def _beside(c: Tensor, x: Tensor | None) -> Tensor:
        return c if x is None else torch.cat([c, x], 1)

    def _take(self, before: Tensor, left: Tensor, scale: Tensor | float, first: int) -> Tensor:
        """before (B, first + m, D) with scale · left (B, K, D), normed if it is, on each part."""
        assert self._left is not None
        left = left if self._left.norm is None else self._left.norm.standard(left).to(left.dtype)
        parts = [left[:, :first], left[:, : before.shape[1] - first]]
        return before + scale * torch.cat(parts, 1)
