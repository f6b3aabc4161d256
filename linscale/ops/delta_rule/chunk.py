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
cancel (r = c in P, the last step in F) and are left out. The backward pass keeps what came in and the state before
each segment, and computes the rest again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from linscale.ops.backend import Backend, segment_tokens
from linscale.ops.decay_attention.scores import FLOOR, decay_factor
from linscale.ops.delta_rule.inverse import BASE, unit_lower_inverse
from linscale.ops.delta_rule.walk import walk
from linscale.ops.packing import ChunkLayout

CHUNK = 64  # steps
SEGMENT = 1 << 14  # tokens that are worked on at a time, at most: they make several times their inputs


class How(NamedTuple):
    """What both passes are told besides their tensors."""

    scale: float
    backend: Backend
    """Of the walk."""


def forward_pass(
    inputs: Sequence[Tensor | None], state: Tensor, cu_seqlens: Tensor | None, how: How
) -> tuple[Tensor, Tensor, Tensor]:
    """o, the final state, and the states before each segment, which `backward_pass` takes.

    inputs are q, k, v, beta (B, T, H) and log_decay (B, T, H) or None, in dtypes of their own; sums are in the state's.
    """
    layout, inputs = _spread(inputs, cu_seqlens)
    value = inputs[2]
    assert value is not None
    o, cu_chunks = (
        torch.empty_like(value, memory_format=torch.contiguous_format),
        None if layout is None else layout.cu_chunks,
    )
    states = [state]
    for span in segments(value, packed=layout is not None):
        part = _Segment(inputs, span, states[-1], cu_chunks, how)
        o[:, span] = part.whole(part.scores @ part.u + part.q_past @ part.before)
        states.append(part.final)
    kept = torch.stack(states[:-1]) if states[1:] else state.new_empty(0, *state.shape)
    return o if layout is None else layout.gather(o), states[-1].clone(), kept


def backward_pass(
    do: Tensor, dfinal: Tensor, states: Tensor, inputs: Sequence[Tensor | None], cu_seqlens: Tensor | None, how: How
) -> tuple[list[Tensor | None], Tensor]:
    """Gradients of the inputs, in their dtypes, and of the first state, from those of o and of the final state."""
    layout, inputs = _spread([*inputs, do], cu_seqlens)
    *inputs, do_whole = inputs
    assert do_whole is not None
    cu_chunks = None if layout is None else layout.cu_chunks
    grads = [None if x is None else torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]
    spans = segments(do_whole, packed=layout is not None)
    for span, state in zip(reversed(spans), states.flip(0), strict=True):
        part = _Segment(inputs, span, state, cu_chunks, how)
        found, dfinal = part.backward(part.chunks(do_whole[:, span]), dfinal)
        for grad, own in zip(grads, found, strict=True):
            if grad is not None and own is not None:
                grad[:, span] = part.whole(own).view_as(grad[:, span])
    if layout is not None:
        grads = [None if x is None else layout.gather(x) for x in grads]
    return grads, dfinal.clone() if not spans else dfinal


def _spread(
    inputs: Sequence[Tensor | None], cu_seqlens: Tensor | None
) -> tuple[ChunkLayout | None, Sequence[Tensor | None]]:
    """Every packed document on whole chunks of its own. An empty place has β = 0 and log_decay = 0: the state passes
    it."""
    if cu_seqlens is None:
        return None, inputs
    first = inputs[0]
    assert first is not None
    layout = ChunkLayout(cu_seqlens, first, CHUNK)
    return layout, [None if x is None else layout.spread(x) for x in inputs]


class _Segment:
    """A stretch of the sequence cut into N chunks of C steps, and its share of both passes.

    q, k (N, B, H, C, K), v (N, B, H, C, V), beta (N, B, H, C, 1); before: S before each chunk, (N, B, H, K, V);
    final: S after the last. past, future and decay are exp G, exp(G_C - G) and exp G_C of the equations above, or None
    without decay; near is tril(D * k kᵀ, -1), triangle is tril(D).
    """

    def __init__(
        self, inputs: Sequence[Tensor | None], span: slice, state: Tensor, cu_chunks: Tensor | None, how: How
    ) -> None:
        self.length = span.stop - span.start
        self.size = min(CHUNK, max(BASE, 1 << (self.length - 1).bit_length()))
        self.dtype, self.cu_chunks, (self.scale, self.backend) = state.dtype, cu_chunks, how
        q, k, v, beta, log_decay = (None if x is None else self.chunks(x[:, span]) for x in inputs)
        assert q is not None and k is not None and v is not None and beta is not None  # noqa: PT018
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
        self.before, self.final = self.walk(update, state)
        self.u = written - self.reads @ self.before

    def walk(self, update: Tensor, state: Tensor, *, backwards: bool = False) -> tuple[Tensor, Tensor]:
        """The states met, and the last."""
        return walk(
            update, self.transition, self.decay, state, self.cu_chunks, backwards=backwards, backend=self.backend
        )

    def chunks(self, x: Tensor) -> Tensor:
        """(B, T, H, K) -> (N, B, H, C, K), or (B, T, H) -> (N, B, H, C, 1); zeros fill the last chunk."""
        x = x if x.ndim == 4 else x[..., None]
        x = pad(x, (0, 0, 0, 0, 0, -self.length % self.size)) if self.length % self.size else x
        return x.unflatten(1, (-1, self.size)).permute(1, 0, 3, 2, 4).to(self.dtype).contiguous()

    def whole(self, x: Tensor) -> Tensor:
        """(N, B, H, C, K) -> (B, T, H, K): the inverse of `chunks`."""
        return x.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, : self.length]

    def backward(self, do: Tensor, dfinal: Tensor) -> tuple[tuple[Tensor | None, ...], Tensor]:
        """do (N, B, H, C, V), dfinal like final -> gradients of the five inputs, in chunks, and dS at the start."""
        du = self.scores.mT @ do
        dupdate = self.q_past.mT @ do - self.reads.mT @ du
        dafter, dstate = self.walk(dupdate, dfinal, backwards=True)
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
        return (dq, dk, self.beta * dr, (dr * error).sum(-1, keepdim=True), dlog_decay), dstate


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor


def segments(x: Tensor, *, packed: bool = False) -> list[slice]:
    """Cut T of x (B, T, ...) into stretches of whole chunks, the last maybe ragged. Packed rows stay in one piece."""
    batch, length = x.shape[:2]
    if packed:
        return [slice(0, length)]
    stride = max(1, min(SEGMENT, segment_tokens(x.device)) // max(1, batch * CHUNK)) * CHUNK
    return [slice(start, min(start + stride, length)) for start in range(0, length, stride)]
