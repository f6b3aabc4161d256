"""What every layer of one forward pass is told besides its input and its state."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from linscale.layers.rows import PackedRows
from linscale.ops.pieces import Piece


@dataclass(frozen=True)
class Context:
    start: Tensor
    """Tokens already in each sequence's state: (B,), or (N,) for packed documents."""
    positions: Tensor
    """Place of every token in its own document, counted from its first token ever: (B, T), or (1, T) for all alike."""
    cu_seqlens: Tensor | None
    """Boundaries of packed documents (N+1,), or None."""
    shared: Tensor | None
    """What the model computes once for all layers, here this layer's; HGRN2: its lower bound (D,)."""
    piece: Piece | None = None
    """Where the T tokens stand in sequences that several ranks share, or None: they are the whole sequences."""
    rows: PackedRows | None = None
    """The packed documents as padded rows, for softmax layers; None where there are none."""
    fresh: bool = False
    """Whether no sequence has anything behind it, as far as is known without waiting for the device."""
