"""Packed documents as padded rows: those that are alike together, for an operator that takes rows of one length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SHORTEST = 16  # tokens: documents up to here are alike, padding costs nothing


@dataclass(frozen=True)
class Group:
    """R documents with T tokens in all, as rows of one length."""

    documents: Tensor
    """(R,) their numbers."""
    places: Tensor
    """(T,) of every token in the packed row."""
    slots: Tensor
    """(T,) of every token in the rows, end to end."""
    width: int
    """Of the rows: the most tokens of a document."""
    past: int
    """The most tokens that one has behind it."""
    longest: int
    """The most that one has behind it and in it."""


@dataclass(frozen=True)
class PackedRows:
    """All documents of a packed row, in groups."""

    groups: tuple[Group, ...]
    document_order: Tensor
    """(N,) where each document is among those of all groups, end to end."""
    token_order: Tensor
    """(T,) where each token is among those of all groups."""


def packed_rows(cu_seqlens: Tensor, start: Tensor) -> PackedRows:
    """The documents of `cu_seqlens` (N+1,), with so many tokens behind them (N,). Waits for the device."""
    lengths, starts = cu_seqlens.diff().cpu().numpy(), start.cpu().numpy()
    alike = together(lengths, starts)
    members = [np.flatnonzero(alike == kind) for kind in np.unique(alike)]
    tokens = [_tokens(lengths, documents) for documents in members]

    def there(x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).to(cu_seqlens.device)

    groups = tuple(
        Group(
            there(documents), there(places), there(slots), int(lengths[documents].max()), int(starts[documents].max()),
            int((starts + lengths)[documents].max()),
        )
        for documents, (places, slots) in zip(members, tokens, strict=True)
    )  # fmt: skip
    orders = np.argsort(np.concatenate(members)), np.argsort(np.concatenate([places for places, _ in tokens]))
    return PackedRows(groups, there(orders[0]), there(orders[1]))


def together(lengths: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """A number (N,) for each document, the same for those of a group: alike, to a factor of two, in tokens that are
    read and in tokens behind them, where fewer than SHORTEST are as good as none."""
    read, behind = (np.ceil(np.log2(np.maximum(x, SHORTEST))).astype(np.int64) for x in (lengths, starts))
    return 64 * read + behind


def _tokens(lengths: np.ndarray, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`places` and `slots` of a group."""
    own, starts = lengths[documents], np.cumsum(lengths) - lengths
    steps = np.arange(own.sum()) - np.repeat(np.cumsum(own) - own, own)
    places = np.repeat(starts[documents], own) + steps
    return places, np.repeat(np.arange(len(documents)) * own.max(), own) + steps
