"""The walk over chunks: what is left of a sequence in which only the state passes from one chunk to the next."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def walk(
    update: Tensor,
    transition: Tensor,
    decay: Tensor | None,
    state: Tensor,
    cu_chunks: Tensor | None,
    *,
    backwards: bool = False,
) -> tuple[Tensor, Tensor]:
    """S <- (d I + M) S + U, chunk after chunk; backwards from the last chunk to the first, with Mᵀ in the place of M.

    update      U, (N, B, H, K, V)
    transition  M, (N, B, H, K, K)
    decay       d, (N, B, H, 1, 1), or None for 1
    state       (B, H, K, V), or (documents, H, K, V) with cu_chunks
    cu_chunks   (documents+1,) boundaries of packed documents (B = 1), counted in chunks

    Returns the state that each chunk meets, like update, and the last one, like state. Not differentiable.
    d stands alone: beside it M is small, and may be rounded.
    """
    met, final = torch.empty_like(update), torch.empty_like(state)
    borders = [0, len(update)] if cu_chunks is None else cu_chunks.tolist()
    for document, (first, behind) in enumerate(pairwise(borders)):
        rows = slice(None) if cu_chunks is None else slice(document, document + 1)
        now = state[rows]
        for n in reversed(range(first, behind)) if backwards else range(first, behind):
            met[n] = now
            kept = update[n] + now if decay is None else torch.addcmul(update[n], decay[n], now)
            step = transition[n].mT if backwards else transition[n]
            now = torch.baddbmm(kept.flatten(0, 1), step.flatten(0, 1), now.flatten(0, 1)).view_as(now)
        final[rows] = now
    return met, final
