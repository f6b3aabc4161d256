"""A short causal convolution over time, one filter a channel, behind a projection; and its place in a layer's state.

    y_t = Σ_j w_j x_{t-R+j},  j = 0 ... R          R = taps - 1; what lies before a text's first token is 0

As in Gated DeltaNet (arXiv 2412.06464), but linear: it begins as the identity, w_R = 1, so that what stands behind it
sees what a pretrained projection gives. Sums of shifted products, which a compiler makes one kernel of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from linscale.distributed import copy_into
from linscale.layers.context import Context
from linscale.ops.packing import document_positions


class Documents(NamedTuple):
    """Where the tokens of a packed row (1, T, ...) stand."""

    lengths: Tensor
    """(N,) of the documents."""
    first: Tensor
    """(N,) the place in the row of each one's first token."""
    of: Tensor
    """(T,) the document of each token."""
    places: Tensor
    """(T,) its place there, from 0."""


class ShortConv(nn.Module):
    """x (B, T, C) -> (B, T, C), in its dtype; weight (C, taps), the last tap that of the token itself.

    No nn.Linear or nn.Conv1d: weight decay would draw it away from the identity.
    """

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, taps))

    def forward(self, x: Tensor, tail: Tensor | None, documents: Documents | None = None) -> tuple[Tensor, Tensor]:
        """`tail` (B, R, C) are the last inputs before x, (N, R, C) for packed documents; None: there are none, zeros.

        Returns y and the tail behind x. Sums are at least float32.
        """
        weight, taps = self.weight.to(torch.promote_types(x.dtype, torch.float32)), self.weight.shape[1]
        length, nothing = x.shape[1], x.new_zeros(len(x), taps - 1, x.shape[2])
        seen = torch.cat([nothing if tail is None or documents is not None else tail, x], 1)
        behind, seen = seen[:, length:], seen.to(weight.dtype)  # kept for the backward pass as it was before
        shifts = [seen[:, tap : tap + length] for tap in range(taps)]
        if documents is not None:
            before = nothing.expand(len(documents.lengths), -1, -1) if tail is None else tail
            behind = _tail_behind(x, before, documents)
            shifts = [_own(shifted, taps - 1 - tap, before, documents) for tap, shifted in enumerate(shifts)]
        y = shifts[-1] * weight[:, -1]
        for tap in range(taps - 1):
            y = torch.addcmul(y, shifts[tap], weight[:, tap])
        return y.to(x.dtype), behind

    def reset(self) -> None:
        """The identity."""
        values = torch.zeros(self.weight.shape)
        values[:, -1] = 1
        copy_into(self.weight, values)


def _own(shifted: Tensor, steps: int, tail: Tensor, documents: Documents) -> Tensor:
    """A packed row (1, T, C) that was shifted by so many steps, with what comes from another document replaced."""
    if not steps:
        return shifted
    before = (tail.shape[1] + documents.places - steps).clamp(max=tail.shape[1] - 1)
    inside = (documents.places >= steps)[:, None]
    return torch.where(inside, shifted, tail[documents.of, before].to(shifted.dtype))


def _tail_behind(x: Tensor, tail: Tensor, documents: Documents) -> Tensor:
    """The last inputs of each document, (N, R, C): of short ones some from before x."""
    kept = tail.shape[1]
    from_end = torch.arange(-kept, 0, device=x.device)
    places = documents.lengths[:, None] + from_end  # (N, R) in the document
    rows = torch.arange(len(tail), device=x.device)[:, None]
    older = tail[rows, (kept + places).clamp(max=kept - 1)]
    return torch.where((places >= 0)[..., None], x[0, documents.first[:, None] + places.clamp(min=0)], older)


def convolved(
    convs: Sequence[ShortConv], inputs: Sequence[Tensor], state: Tensor | None, keys: int, context: Context
) -> tuple[list[Tensor], Tensor | None, list[Tensor]]:
    """Each convolution's output (B, T, C) of its own input; the memory (B, H, K, V) in a layer's state, where K is
    `keys`; and the tails behind the inputs, for `with_tails`.

    Raises ValueError where ranks share sequences: the end of one's piece is not passed on to the next.
    """
    if context.piece is not None:
        raise ValueError("a short convolution reads a sequence as one piece; expected sequence_parallel = 1")
    documents = None
    if context.cu_seqlens is not None:
        cu_seqlens = context.cu_seqlens
        documents = Documents(cu_seqlens.diff(), cu_seqlens[:-1], *document_positions(cu_seqlens, inputs[0].shape[1]))
    memory, tails = None, [None] * len(convs) if state is None else _tails(convs, state[:, :, keys:])
    if state is not None:
        memory = state[:, :, :keys].contiguous()
    pairs = [conv(x, tail, documents) for conv, x, tail in zip(convs, inputs, tails, strict=True)]
    return [y for y, _ in pairs], memory, [tail for _, tail in pairs]


def tail_rows(numbers: int, n_heads: int, values: int) -> int:
    """Rows of a state (B, H, ..., V) that hold so many numbers of a sequence."""
    return -(-numbers // (n_heads * values))


def with_tails(memory: Tensor, tails: Sequence[Tensor]) -> Tensor:
    """The state of a layer: its memory (B, H, K, V), and behind it on the axis of K the tails.

    The tails (B, R, C) of q, k and v lie end to end, each step by step, with zeros up to a whole row (V,) of all heads;
    (B, H, rows, V) of that are the first head's rows, then the next one's. In the memory's dtype, at least float32:
    inputs in bf16 come out of it to the bit.
    """
    batch, heads, _, values = memory.shape
    flat = torch.cat([tail.flatten(1) for tail in tails], 1).to(memory.dtype)
    rows = tail_rows(flat.shape[1], heads, values)
    flat = pad(flat, (0, heads * rows * values - flat.shape[1]))
    return torch.cat([memory, flat.view(batch, heads, rows, values)], 2)


def _tails(convs: Sequence[ShortConv], rows: Tensor) -> list[Tensor]:
    """The inverse of `with_tails`, from the rows (B, H, rows, V) behind the memory."""
    shapes = [(conv.weight.shape[1] - 1, conv.weight.shape[0]) for conv in convs]
    sizes = [kept * channels for kept, channels in shapes]
    parts = rows.flatten(1)[:, : sum(sizes)].split(sizes, 1)
    return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]
