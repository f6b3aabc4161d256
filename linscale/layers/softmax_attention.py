"""Softmax attention: LLaMA's mixer, and the one that a hybrid keeps in some of its layers."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.utils._python_dispatch import _disable_current_modes

from linscale.layers.context import Context
from linscale.layers.rope import RopeScaling, attention_factor, rope_frequencies
from linscale.ops import angles, rotate_half
from linscale.ops.pieces import Piece, gather


class KeyValues(NamedTuple):
    """What softmax attention remembers: every key and value so far.

    k, v (B, S, G, K) with G heads of keys and values; of sequence b the first `position[b]` places are filled
    (position: see LanguageModel's State).
    """

    k: Tensor
    v: Tensor


class SoftmaxAttention(nn.Module):
    """o_proj(softmax(q kᵀ / sqrt(K) + causal) v) with RoPE on q and k; q (B, T, H, K), k and v (B, T, G, K) are
    projections of x. Each of the G = n_kv_heads heads of keys and values serves H/G heads of queries, in order
    (grouped-query attention, arXiv 2305.13245); G = H unless told otherwise. Without a rope_base nothing is turned."""

    def __init__(
        self, d_model: int, n_heads: int, rope_base: float | None, n_kv_heads: int | None = None,
        rope_scaling: RopeScaling | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.n_heads, self.rope_base, self.rope_scaling = n_heads, rope_base, rope_scaling
        self.dropout = 0.0  # of weights, in training, where ranks do not share texts: see train/parallel.py
        self.n_kv_heads = n_kv_heads or n_heads
        kv_width = d_model // n_heads * self.n_kv_heads
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, kv_width, bias=False)
        self.v_proj = nn.Linear(d_model, kv_width, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: KeyValues | None, context: Context) -> tuple[Tensor, KeyValues]:
        """x (B, T, D) -> (B, T, D), and the keys and values seen so far."""
        o, state = self.attend(x, state, context)
        return self.o_proj(o), state

    def attend(self, x: Tensor, state: KeyValues | None, context: Context) -> tuple[Tensor, KeyValues]:
        """What o_proj reads, (B, T, H K), and the keys and values."""
        q = self.q_proj(x).unflatten(-1, (self.n_heads, -1))  # (B, T, H, K)
        k, v = (proj(x).unflatten(-1, (self.n_kv_heads, -1)) for proj in (self.k_proj, self.v_proj))  # (B, T, G, K)
        if self.rope_base is not None:
            frequencies = rope_frequencies(q.shape[-1], self.rope_base, self.rope_scaling, x.device)  # (K/2,)
            cos, sin = angles(context.positions, frequencies, q.dtype)
            if (factor := attention_factor(self.rope_scaling)) != 1:
                cos, sin = cos * factor, sin * factor
            q, k = rotate_half(q, cos, sin), rotate_half(k, cos, sin)
        if context.piece is not None:
            o, state = _attend_in_pieces(q, k, v, context.piece)
        elif context.cu_seqlens is None:
            o, state = _attend(q, k, v, state, context.start, self.dropout if self.training else 0.0)
        else:
            o, state = _attend_packed(q, k, v, state, context, self.dropout if self.training else 0.0)
        return o.flatten(2), state


def _attend(
    q: Tensor, k: Tensor, v: Tensor, past: KeyValues | None, start: Tensor, dropout: float = 0.0
) -> tuple[Tensor, KeyValues]:
    """Causal attention of T new steps, q (B, T, H, K), k and v (B, T, G, K), over `past` and themselves; start (B,)
    says how long the past is."""
    if past is None:
        return _attention(q, k, v, None, dropout).transpose(1, 2), KeyValues(k, v)
    steps = start[:, None] + torch.arange(q.shape[1], device=q.device)  # (B, T) the places of the new steps
    places = steps[:, :, None, None].expand_as(k)
    k, v = (
        pad(old.to(new.dtype), (0, 0, 0, 0, 0, q.shape[1])).scatter(1, places, new)
        for old, new in zip(past, (k, v), strict=True)
    )
    visible = torch.arange(k.shape[1], device=q.device) <= steps[:, None, :, None]  # (B, 1, T, S)
    return _attention(q, k, v, visible, dropout).transpose(1, 2), KeyValues(k, v)


def _attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, dropout: float = 0.0) -> Tensor:
    """(B, H, T, K) from q (B, T, H, K) and k, v (B, S, G, K); causal without `visible` (B, 1, T, S).

    Without gradients shapes differ from call to call, and cuDNN, the fastest in training, makes a plan for each: 0.1 s.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, *_for_every_head(q, k, v)))
    kinds = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with contextlib.nullcontext() if torch.is_grad_enabled() else sdpa_kernel(kinds):
        return scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=visible is None, dropout_p=dropout)


def _for_every_head(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """k, v (B, S, G, K) -> (B, S, H, K): each head of keys and values beside the heads of q that it serves. Not all
    kernels of scaled_dot_product_attention take fewer heads of keys."""
    if k.shape[2] == q.shape[2]:
        return k, v
    groups = q.shape[2] // k.shape[2]
    return k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)


def _attend_in_pieces(q: Tensor, k: Tensor, v: Tensor, piece: Piece) -> tuple[Tensor, KeyValues]:
    """A sequence of which every rank holds T steps (B, T, H, K): each gathers all keys and values, and uses those up to
    its own. The last rank works longest, and memory for keys and values does not shrink with the number of ranks."""
    from torch.nn.attention.bias import causal_lower_right  # its module imports the compiler, which takes a second

    seen = (piece.rank + 1) * q.shape[1]
    k, v = (gather(x, piece).transpose(0, 1).flatten(1, 2)[:, :seen] for x in (k, v))  # (B, S, G, K)
    state = KeyValues(k, v)
    with _disable_current_modes():  # that of "cheap" activation checkpointing cannot make a tensor of its own class
        mask = causal_lower_right(q.shape[1], seen)
    q, k, v = (x.transpose(1, 2) for x in (q, *_for_every_head(q, k, v)))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2), state


def _attend_packed(
    q: Tensor, k: Tensor, v: Tensor, past: KeyValues | None, context: Context, dropout: float = 0.0
) -> tuple[Tensor, KeyValues]:
    """Documents that are alike are rows of one call, padded on the right; the states (N, S, G, K) are padded to the
    longest."""
    assert context.rows is not None
    outputs, states = [], []
    for rows in context.rows.groups:
        wide = [x.new_zeros(len(rows.documents) * rows.width, *x.shape[2:]) for x in (q, k, v)]
        own = [y.index_copy(0, rows.slots, x[0, rows.places]) for x, y in zip((q, k, v), wide, strict=True)]
        new = [y.unflatten(0, (len(rows.documents), rows.width)) for y in own]
        before = None if past is None else KeyValues(*(x[rows.documents, : rows.past] for x in past))
        o, state = _attend(new[0], new[1], new[2], before, context.start[rows.documents], dropout)
        outputs.append(o.flatten(0, 1)[rows.slots])
        states.append(KeyValues(*(x[:, : rows.longest] for x in state)))
    if len(states) == 1:
        return outputs[0][None], states[0]
    longest = max(state.k.shape[1] for state in states)
    padded = ([pad(x, (0, 0, 0, 0, 0, longest - x.shape[1])) for x in xs] for xs in zip(*states, strict=True))
    joined = (torch.cat(xs)[context.rows.document_order] for xs in padded)
    return torch.cat(outputs)[context.rows.token_order][None], KeyValues(*joined)


def going_through_a_book(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal softmax attention as an additive recurrence that every query runs afresh over the whole past.

        s_tʲ = s_tʲ⁻¹ + exp(q_t · k_j / sqrt(K))
        o_tʲ = (s_tʲ⁻¹ / s_tʲ) o_tʲ⁻¹ + (1 - s_tʲ⁻¹ / s_tʲ) v_j,     o_t = o_tᵗ

    The reference form of softmax attention ("Going Through a Book", arXiv 2406.16690), with the running maximum
    taken out of the exponent for stability. q, k (B, T, H, K), v (B, T, H, V) -> (B, T, H, V)
    """
    length = q.shape[1]
    o = torch.zeros_like(v)
    total = q.new_zeros(q.shape[:3])  # s, relative to exp(largest): (B, T, H)
    largest = torch.full_like(total, -torch.inf)
    for j in range(length):
        readers = slice(j, length)  # the queries that may see page j
        score = (q[:, readers] * k[:, j : j + 1]).sum(-1) / q.shape[-1] ** 0.5
        top = torch.maximum(largest[:, readers], score)
        before = total[:, readers] * (largest[:, readers] - top).exp()
        after = before + (score - top).exp()
        keep = (before / after)[..., None]
        seen = keep * o[:, readers] + (1 - keep) * v[:, j : j + 1]
        o, total, largest = (
            torch.cat([x[:, :j], new], dim=1) for x, new in ((o, seen), (total, after), (largest, top))
        )
    return o
