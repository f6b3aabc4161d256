"""`decay_attention` in chunks of C steps: matrix products inside a chunk, one small state passed between chunks.

With G the running sum of log_decay inside a chunk, S the state before it and S' the state after it (the block form
of lightning attention; with per-channel decay, of gated linear attention):

    scores_rc = Σ_j q_rj k_cj exp(G_rj - G_cj)   for r >= c, else 0
    o         = scores v + (q * exp G) S
    S'        = diag(exp G_C) S + (k * exp(G_C - G))ᵀ v

and backwards, from do and dS' (the chunks in reverse, for dS of one chunk is dS' of the one before):

    dscores   = tril(do vᵀ), and through the scores to dq and dk
    dq       += (do Sᵀ) * exp G
    dk       += (v dS'ᵀ) * exp(G_C - G)
    dv        = scoresᵀ do + (k * exp(G_C - G)) dS'
    dS        = diag(exp G_C) dS' + (q * exp G)ᵀ do
    dG        = q * dq - k * dk, and at the last step of the chunk also
                Σ_r k_r * (the part of dk_r that came from dS') + exp(G_C) * rowsum(dS' * S)

The terms with no decay in them, r = c in the scores and the last step in dS', would cancel in dG. They are left out of
it: under strong decay the rounding of what cancels is far larger than what remains.

Every exponent is a sum of log decays over a stretch of time, hence <= 0: nothing can overflow. Cost per token is
O(C (K + V) + K V) whatever T is: a long sequence is worked on in segments that stay in cache, and the backward pass
keeps only the state before each segment and computes the rest again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from linscale.ops.backend import segment_tokens
from linscale.ops.decay_attention.scores import FLOOR, decay_factor, decayed_scores, decayed_scores_backward
from linscale.ops.linear_scan import exclusive_linear_scan
from linscale.ops.packing import ChunkLayout

CHUNK = 32  # steps: within a quarter of the best of 16, 32 and 64 for every decay kind, and the flattest in T


def chunk_decay_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Shapes as in `decay_attention`; all tensors of one dtype."""
    if cu_seqlens is None:
        return ChunkDecayAttention.apply(q, k, v, log_decay, state, None)
    # Every document on whole chunks of its own. An empty place has k = 0 and log_decay = 0: the state passes it.
    layout = ChunkLayout(cu_seqlens, q, CHUNK)
    if log_decay is not None:
        log_decay = layout.spread(log_decay.expand(q.shape[:3]) if log_decay.ndim == 1 else log_decay)
    q, k, v = (layout.spread(x) for x in (q, k, v))
    o, final = ChunkDecayAttention.apply(q, k, v, log_decay, state, layout.cu_chunks)
    return layout.gather(o), final


class ChunkDecayAttention(torch.autograd.Function):
    """o, final = ChunkDecayAttention.apply(q, k, v, log_decay, state, cu_chunks).

    cu_chunks  (N+1,) boundaries of the documents of a packed row, counted in chunks; T is then a multiple of CHUNK.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor, cu_chunks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        o, states = torch.empty_like(v), [state]
        for span in _segments(q, cu_chunks):
            part = _Segment(q[:, span], k[:, span], v[:, span], _during(log_decay, span), states[-1], cu_chunks)
            o[:, span] = _unchunked(part.scores() @ part.v + part.q_past @ part.before)
            states.append(part.final)
        ctx.save_for_backward(q, k, v, log_decay, cu_chunks, *states[:-1])
        return o, states[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor, dstate: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, log_decay, cu_chunks, *states = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        dlog_decay = torch.zeros_like(log_decay) if ctx.needs_input_grad[3] else None
        spans = _segments(q, cu_chunks)
        for span, state in zip(reversed(spans), reversed(states[: len(spans)]), strict=True):
            part = _Segment(q[:, span], k[:, span], v[:, span], _during(log_decay, span), state, cu_chunks)
            dq_part, dk_part, dv_part, dtotal, dstate = part.backward(_chunked(do[:, span], part.size), dstate)
            dq[:, span], dk[:, span], dv[:, span] = (_unchunked(x) for x in (dq_part, dk_part, dv_part))
            if dlog_decay is not None:
                steps = dtotal.flip(-2).cumsum(dim=-2).flip(-2)  # G is a running sum: its gradient runs backwards
                part_of = dlog_decay if dlog_decay.ndim == 1 else dlog_decay[:, span]
                part_of += _summed_like(_unchunked(steps), dlog_decay)
        return dq, dk, dv, dlog_decay, dstate, None


class _Segment:
    """A stretch of the sequence cut into N chunks of C steps, and its share of both passes.

    q, k (B, N, H, C, K), v (B, N, H, C, V); before: S before each chunk, (B, N, H, K, V); final: S after the last.
    total is G, (H, C, 1) or (B, N, H, C, 1 or K), or None without decay; past, future and decay are the factors
    exp G, exp(G_C - G) and exp G_C of the equations above. triangle is exp(G_r - G_c) for r >= c, else 0, where one
    number holds for a whole head: (..., H, C, C); else None.
    """

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor, cu_chunks: Tensor | None
    ) -> None:
        self.size = min(CHUNK, q.shape[1])
        self.cu_chunks = cu_chunks
        self.q, self.k, self.v = (_chunked(x, self.size) for x in (q, k, v))
        self.total = _running_sum(log_decay, self.size)
        self.q_past, self.k_future, self.decay = self.q, self.k, state.new_ones(1, 1, 1, 1, 1)
        if self.total is not None:
            last = self.total[..., -1:, :]
            self.past, self.future = decay_factor(self.total), decay_factor(last - self.total)
            self.q_past, self.k_future = self.q * self.past, self.k * self.future
            self.decay = decay_factor(last).mT.expand(*(1,) * (5 - last.ndim), *last.mT.shape)
        self.per_channel = self.total is not None and self.total.shape[-1] > 1
        self.triangle = None
        if self.total is not None and not self.per_channel:
            self.triangle = (self.total - self.total.mT).clamp(FLOOR, 0.0).exp().tril()
        update = self.k_future.mT @ self.v
        self.before, self.final = exclusive_linear_scan(update, self.decay, state=state, cu_seqlens=cu_chunks)

    def scores(self) -> Tensor:
        """(B, N, H, C, C)."""
        if self.total is not None and self.per_channel:
            return decayed_scores(self.q, self.k, self.total)
        products = self.q @ self.k.mT
        return products.tril() if self.triangle is None else products * self.triangle

    def below_diagonal_backward(self, dscores: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients for q and k through the scores r > c."""
        if self.total is not None and self.per_channel:
            return decayed_scores_backward(self.q, self.k, self.total, dscores)
        dproducts = (dscores if self.triangle is None else dscores * self.triangle).tril(-1)
        return dproducts @ self.k, dproducts.mT @ self.q

    def backward(self, do: Tensor, dfinal: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """do (B, N, H, C, V), dfinal like final -> dq, dk, dv, dG, each (B, N, H, C, K or V), and dS at the start."""
        dafter, dstate = _pass_back(self.q_past.mT @ do, self.decay, dfinal, self.cu_chunks)
        dscores = do @ self.v.mT
        dq, dk = self.below_diagonal_backward(dscores)
        dq_past, dk_future = do @ self.before.mT, self.v @ dafter.mT
        if self.total is not None:
            dq_past, dk_future = dq_past * self.past, dk_future * self.future
        dq = dq + dq_past
        through_end = self.k * dk_future
        through_end[..., -1, :] = 0
        dtotal = self.q * dq - self.k * dk - through_end
        dtotal[..., -1, :] += through_end.sum(-2) + self.decay[..., 0] * (dafter * self.before).sum(-1)
        diagonal = dscores.diagonal(dim1=-2, dim2=-1)[..., None]
        dq, dk = dq + diagonal * self.k, dk + diagonal * self.q + dk_future
        dv = self.scores().mT @ do + self.k_future @ dafter
        return dq, dk, dv, dtotal, dstate


def _segments(q: Tensor, cu_chunks: Tensor | None) -> list[slice]:
    """Cut T into stretches of whole chunks, what is left being one shorter chunk. Packed rows stay in one piece.

    The ragged end is not padded to a chunk: the empty steps would decay the state too far.
    """
    batch, length = q.shape[:2]
    whole = length - length % CHUNK
    stride = whole if cu_chunks is not None else max(1, segment_tokens(q.device) // max(1, batch * CHUNK)) * CHUNK
    spans = [slice(start, min(start + stride, whole)) for start in range(0, whole, max(stride, 1))]
    return spans if whole == length else [*spans, slice(whole, length)]


def _pass_back(dupdate: Tensor, decay: Tensor, dfinal: Tensor, cu_chunks: Tensor | None) -> tuple[Tensor, Tensor]:
    """The walk from the last chunk to the first: dS' after each chunk (B, N, H, K, V), and dS before the first."""
    dupdate, decay = dupdate.flip(1), decay.flip(1)
    if cu_chunks is None:
        dafter, dstate = exclusive_linear_scan(dupdate, decay, state=dfinal)
        return dafter.flip(1), dstate
    backwards = cu_chunks[-1] - cu_chunks.flip(0)
    dafter, dstate = exclusive_linear_scan(dupdate, decay, state=dfinal.flip(0), cu_seqlens=backwards)
    return dafter.flip(1), dstate.flip(0)


def _chunked(x: Tensor, size: int) -> Tensor:
    """(B, N·C, H, K) -> (B, N, H, C, K)."""
    return x.unflatten(1, (-1, size)).transpose(2, 3)


def _unchunked(x: Tensor) -> Tensor:
    """(B, N, H, C, K) -> (B, N·C, H, K)."""
    return x.transpose(2, 3).flatten(1, 2)


def _during(log_decay: Tensor | None, span: slice) -> Tensor | None:
    """The part of log_decay that belongs to a stretch of time; a constant one belongs to all."""
    return log_decay if log_decay is None or log_decay.ndim == 1 else log_decay[:, span]


def _running_sum(log_decay: Tensor | None, size: int) -> Tensor | None:
    """G: (H,) -> (H, C, 1), (B, T, H) -> (B, N, H, C, 1), (B, T, H, K) -> (B, N, H, C, K).

    One step counts for FLOOR at most: behind a step of -1e6 (or -inf) the differences of G would be all rounding.
    """
    if log_decay is None:
        return None
    log_decay = log_decay.clamp(min=FLOOR)
    if log_decay.ndim == 1:
        return log_decay[:, None, None].expand(-1, size, -1).cumsum(dim=-2)
    return _chunked(log_decay if log_decay.ndim == 4 else log_decay[..., None], size).cumsum(dim=-2)


def _summed_like(steps: Tensor, log_decay: Tensor) -> Tensor:
    """A gradient (B, T, H, K) summed over the axes that log_decay lacks."""
    return steps if log_decay.ndim == 4 else steps.sum(-1) if log_decay.ndim == 3 else steps.sum((0, 1, 3))
