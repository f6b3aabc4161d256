"""`delta_rule` in chunks of C steps: matrix products inside a chunk, one small state passed between chunks.

What step r writes, u_r = β_r (v_r - exp(g_r) S_{r-1}ᵀ k_r), depends on all that was written before it. With G the
running sum of log_decay inside a chunk, D_rc = exp(G_r - G_c), and S the state before the chunk (arXiv 2406.06484,
with decay arXiv 2412.06464):

    A  = tril(β * D * k kᵀ, -1)              T = (I + A)⁻¹
    u  = T β v - W S                         W = T β (k * exp G)
    o  = tril(D * q kᵀ) u + (q * exp G) S
    S' = exp(G_C) S + Fᵀ u                   F = k * exp(G_C - G)
       = (exp(G_C) I - Fᵀ W) S + Fᵀ T β v

The last line has all that walks from chunk to chunk. And backwards, from do and dS' (P the scores of the third line):

    du = Pᵀ do + F dS'                       dr = Tᵀ du               (u = T r)
    dS = (exp(G_C) I - Fᵀ W)ᵀ dS' + (q * exp G)ᵀ do - Wᵀ Pᵀ do
    dP = tril(do uᵀ)                         dA = -tril(dr uᵀ, -1)
    dq = (D * dP) k + exp G * (do Sᵀ)
    dk = (D * dP)ᵀ q + (E + Eᵀ) k + exp(G_C - G) * (u dS'ᵀ) - β exp G * (dr Sᵀ)      E = β D * dA
    dv = β dr
    dβ = dr · (v_r - exp(g_r) S_{r-1}ᵀ k_r)

Every exponent is a sum of log decays over a stretch of time, hence <= 0. In dG, terms with no decay in them would
cancel (r = c in P, the last step in F) and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from linscale.ops.decay_attention.scores import FLOOR, decay_factor
from linscale.ops.delta_rule.inverse import unit_lower_inverse
from linscale.ops.delta_rule.walk import walk


class ChunkSegment:
    """A stretch of the sequence cut into N chunks of C steps, and its share of both passes.

    inputs     q, k, v, beta, log_decay or None: (B, T, H, ...), T steps alone, in dtypes of their own
    state      S before the first chunk; all sums are in its dtype
    cu_chunks  boundaries of packed documents, counted in chunks, or None
    size       C

    q, k (N, B, H, C, K), v (N, B, H, C, V), beta (N, B, H, C, 1); before: S before each chunk, (N, B, H, K, V);
    final: S after the last. past, future and decay are exp G, exp(G_C - G) and exp G_C of the equations above, or None
    without decay; near is tril(D * k kᵀ, -1), triangle is tril(D).
    """

    kept: Tensor | None = None  # of what it made, for the backward pass: nothing

    def __init__(
        self, inputs: Sequence[Tensor | None], state: Tensor, cu_chunks: Tensor | None, size: int, scale: float
    ) -> None:
        self.size, self.dtype, self.cu_chunks, self.scale = size, state.dtype, cu_chunks, scale
        q, k, v, beta, log_decay = (None if x is None else self.chunks(x) for x in inputs)
        assert q is not None and k is not None and v is not None and beta is not None  # noqa: PT018
        self.length = inputs[0].shape[1]  # type: ignore[union-attr]
        self.q, self.k, self.v, self.beta = q * self.scale, k, v, beta
        self.past: Tensor | None = None
        self.future: Tensor | None = None
        self.decay: Tensor | None = None
        products = k @ k.mT
        self.triangle = torch.ones_like(products).tril()
        if log_decay is not None:
            total = log_decay.clamp(min=FLOOR).cumsum(-2)
            last = total[..., -1:, :]
            self.past, self.future, self.decay = decay_factor(total), decay_factor(last - total), decay_factor(last)
            self.triangle = (total - total.mT).clamp(FLOOR, 0.0).exp().tril()
        self.near = (products * self.triangle).tril(-1)
        self.inverse = unit_lower_inverse(beta * self.near)
        self.k_past, self.q_past, self.k_future = (
            _times(x, by) for x, by in ((k, self.past), (self.q, self.past), (k, self.future))
        )
        self.scores = (self.q @ k.mT) * self.triangle
        self.reads = self.inverse @ (beta * self.k_past)
        written = self.inverse @ (beta * v)
        self.transition = -(self.k_future.mT @ self.reads)
        update = self.k_future.mT @ written
        self.before, self.final = walk(update, self.transition, self.decay, state, cu_chunks)
        self.u = written - self.reads @ self.before

    def chunks(self, x: Tensor) -> Tensor:
        """(B, T, H, K) -> (N, B, H, C, K), or (B, T, H) -> (N, B, H, C, 1); zeros fill the last chunk."""
        x = x if x.ndim == 4 else x[..., None]
        x = pad(x, (0, 0, 0, 0, 0, -x.shape[1] % self.size)) if x.shape[1] % self.size else x
        return x.unflatten(1, (-1, self.size)).permute(1, 0, 3, 2, 4).to(self.dtype).contiguous()

    def whole(self, x: Tensor) -> Tensor:
        """(N, B, H, C, K) -> (B, T, H, K): the inverse of `chunks`."""
        return x.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, : self.length]

    def output(self) -> Tensor:
        """o (B, T, H, V)."""
        return self.whole(self.scores @ self.u + self.q_past @ self.before)

    def backward(self, do: Tensor, dfinal: Tensor) -> tuple[list[Tensor | None], Tensor]:
        """do (B, T, H, V), dfinal like final -> gradients of the five inputs, and dS at the start."""
        do = self.chunks(do)
        du = self.scores.mT @ do
        dupdate = self.q_past.mT @ do - self.reads.mT @ du
        dafter, dstate = walk(dupdate, self.transition, self.decay, dfinal, self.cu_chunks, backwards=True)
        dr = self.inverse.mT @ (du + self.k_future @ dafter)
        error = self.v - self.k_past @ self.before - self.near @ self.u
        dscores = (do @ self.u.mT) * self.triangle
        dnear = -self.beta * (dr @ self.u.mT) * self.triangle.tril(-1)
        dq_past, dk_future = _times(do @ self.before.mT, self.past), _times(self.u @ dafter.mT, self.future)
        dk_past = -self.beta * _times(dr @ self.before.mT, self.past)
        dq = (dscores @ self.k + dq_past) * self.scale
        dk = dscores.mT @ self.q + (dnear + dnear.mT) @ self.k + dk_future + dk_past
        dlog_decay = None
        if self.decay is not None:
            pairs = dscores.tril(-1) * (self.q @ self.k.mT) + dnear * (self.k @ self.k.mT)
            through_end = (self.k * dk_future).sum(-1, keepdim=True)
            through_end[..., -1, :] = 0
            dtotal = (self.q * dq_past + self.k * dk_past).sum(-1, keepdim=True) - through_end
            dtotal += pairs.sum(-1, keepdim=True) - pairs.sum(-2)[..., None]
            faded = self.decay * (dafter * self.before).sum((-2, -1), keepdim=True)
            dtotal[..., -1:, :] += through_end.sum(-2, keepdim=True) + faded
            dlog_decay = dtotal.flip(-2).cumsum(-2).flip(-2)  # G is a running sum: its gradient runs backwards
        dbeta = (dr * error).sum(-1, keepdim=True)
        grads = [self.whole(x) for x in (dq, dk, self.beta * dr)]
        rates = [None if x is None else self.whole(x)[..., 0] for x in (dbeta, dlog_decay)]
        return [*grads, *rates], dstate


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor
