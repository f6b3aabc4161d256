"""Both passes of `delta_rule` over a sequence, segment by segment. The backward pass keeps what came in and the state
before each segment, and computes the rest again, unless it is little.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import torch
from torch import Tensor

from linscale.ops.backend import Choice, segment_tokens
from linscale.ops.delta_rule.chunk import ChunkSegment
from linscale.ops.delta_rule.inverse import BASE
from linscale.ops.delta_rule.kept import KeptLayout
from linscale.ops.packing import ChunkLayout

CHUNK = 64  # steps
SEGMENT = 1 << 14  # tokens that are worked on at a time, at most: they make several times their inputs
# Bytes of what the kernels made that one call keeps for its backward pass, at most. In bf16 that is 2.3 times q, k and
# v, and spares two fifths of the backward pass, by count of instructions. Long texts, where memory is short, make it
# again.
KEPT = 1 << 28


def forward_pass(
    inputs: Sequence[Tensor | None], state: Tensor, cu_seqlens: Tensor | None, scale: float, choice: Choice
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """o, the final state, and what `backward_pass` takes: the states before each segment, and what the kernels made.

    inputs are q, k, v, beta (B, T, H) and log_decay (B, T, H) or None, in dtypes of their own; sums are in the state's.
    """
    layout, inputs = _spread(inputs, cu_seqlens)
    value = inputs[2]
    assert value is not None
    o = torch.empty_like(value, memory_format=torch.contiguous_format)
    states = [state]
    for span in segments(value, packed=layout is not None):
        part = _segment(inputs, span, states[-1], layout, scale, choice)
        o[:, span] = part.output()
        states.append(part.final)
    met = torch.stack(states[:-1]) if states[1:] else state.new_empty(0, *state.shape)
    made = part.kept if kept_bytes(inputs, packed=layout is not None, choice=choice) else None
    made = o.new_empty(0, dtype=torch.uint8) if made is None else made
    return o if layout is None else layout.gather(o), states[-1].clone(), met, made


def kept_bytes(inputs: Sequence[Tensor | None], *, packed: bool, choice: Choice) -> int:
    """Of what the kernels made in a forward pass. 0 where that is nothing, or where it is made again."""
    value = inputs[2]
    assert value is not None
    if packed or choice.form != "triton" or len(segments(value)) != 1:
        return 0
    size = KeptLayout(inputs, CHUNK).bytes
    return size if size <= KEPT else 0


def backward_pass(
    do: Tensor, dfinal: Tensor, states: Tensor, made: Tensor, inputs: Sequence[Tensor | None],
    cu_seqlens: Tensor | None, scale: float, choice: Choice,
) -> tuple[list[Tensor | None], Tensor]:  # fmt: skip
    """Gradients of the inputs, in their dtypes, and of the first state, from those of o and of the final state."""
    layout, (*inputs, whole) = _spread([*inputs, do], cu_seqlens)
    assert whole is not None
    grads = [None if x is None else torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]
    spans = segments(whole, packed=layout is not None)
    for span, state in zip(reversed(spans), states.flip(0), strict=True):
        part = _segment(inputs, span, state, layout, scale, choice, made)
        found, dfinal = part.backward(whole[:, span], dfinal)
        for grad, own in zip(grads, found, strict=True):
            if grad is not None and own is not None:
                grad[:, span] = own
    if layout is not None:
        grads = [None if x is None else layout.gather(x) for x in grads]
    return grads, dfinal if spans else dfinal.clone()


def segments(x: Tensor, *, packed: bool = False) -> list[slice]:
    """Cut T of x (B, T, ...) into stretches of whole chunks, the last maybe ragged. Packed rows stay in one piece."""
    batch, length = x.shape[:2]
    if packed:
        return [slice(0, length)]
    stride = max(1, min(SEGMENT, segment_tokens(x.device)) // max(1, batch * CHUNK)) * CHUNK
    return [slice(start, min(start + stride, length)) for start in range(0, length, stride)]


def _segment(
    inputs: Sequence[Tensor | None], span: slice, state: Tensor, layout: ChunkLayout | None, scale: float,
    choice: Choice, made: Tensor | None = None,
) -> ChunkSegment:  # fmt: skip
    cu_chunks = None if layout is None else layout.cu_chunks
    own = [None if x is None else x[:, span] for x in inputs]
    kernels = choice.form == "triton"
    size = CHUNK if kernels else min(CHUNK, max(BASE, 1 << (span.stop - span.start - 1).bit_length()))
    if not kernels:
        return ChunkSegment(own, state, cu_chunks, size, scale)
    # Not imported with this module: a process without a GPU never imports Triton.
    kind = importlib.import_module("linscale.ops.delta_rule.kernel").KernelSegment
    kept = made if made is not None and made.numel() else None
    part: ChunkSegment = kind(own, state, cu_chunks, size, scale, kept)
    return part


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
