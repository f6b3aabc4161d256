"""The scores of one chunk under per-channel decay, without ever forming an exponent above 0.

    scores_rc = Σ_j q_rj k_cj exp(G_rj - G_cj),   r >= c

Factored as (q exp G)(k exp -G)ᵀ this is one product, but exp(-G) overflows: a gate that closes gives G = -20 a step.
So the triangle is cut in halves, again and again. In the square block below the diagonal (rows from the second half
of a stretch, columns from the first half) the middle m lies between every row and every column, and both factors of
exp(G_r - G_m) exp(G_m - G_c) are at most 1: the block is one product of matrices. Blocks of four on the diagonal are
done offset by offset. In all log2(C/4) + 4 passes, each with about one exponential an entry of q.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

FLOOR = -80.0  # exp(-80) = 2e-35: nothing next to 1, and products with it stay clear of the slow subnormal numbers
BASE = 4  # the smallest block done as a matrix product has 4 rows; smaller products cost more than they save


def decay_factor(exponent: Tensor) -> Tensor:
    """exp of an exponent <= 0, which is taken for FLOOR when it is lower still."""
    return exponent.clamp(min=FLOOR).exp()


def decayed_scores(q: Tensor, k: Tensor, total: Tensor) -> Tensor:
    """q, k, G (..., C, K), any C -> scores (..., C, C), zero above the diagonal."""
    size = q.shape[-2]
    q, k, total = _padded(q, k, total)
    scores = q.new_zeros(*q.shape[:-1], q.shape[-2])
    for offset in range(BASE):
        rows, columns, decay = _near(q, k, total, offset)
        _near_scores(scores, offset).copy_((rows * columns * decay).sum(-1))
    for half in _halves(scores.shape[-1]):
        rows, columns, row_decay, column_decay = _far(q, k, total, half)
        _far_scores(scores, half).copy_((rows * row_decay) @ (columns * column_decay).mT)
    return scores[..., :size, :size]


def decayed_scores_backward(q: Tensor, k: Tensor, total: Tensor, dscores: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients for q and k, (..., C, K), through the scores below the diagonal, r > c. The one for G is
    q * dq - k * dk, elementwise and exactly, because every term carries q_r k_c exp(G_r - G_c)."""
    size = dscores.shape[-1]
    q, k, total = _padded(q, k, total)
    extra = q.shape[-2] - size
    dscores = pad(dscores, (0, extra, 0, extra)) if extra else dscores
    dq, dk = torch.zeros_like(q), torch.zeros_like(k)
    for offset in range(1, BASE):
        rows, columns, decay = _near(q, k, total, offset)
        weight = _near_scores(dscores, offset)[..., None] * decay
        _blocks(dq)[..., offset:, :].addcmul_(weight, columns)
        _blocks(dk)[..., : BASE - offset, :].addcmul_(weight, rows)
    for half in _halves(dscores.shape[-1]):
        rows, columns, row_decay, column_decay = _far(q, k, total, half)
        block = _far_scores(dscores, half)
        _split(dq, half)[1].addcmul_(block @ (columns * column_decay), row_decay)
        _split(dk, half)[0].addcmul_(block.mT @ (rows * row_decay), column_decay)
    return dq[..., :size, :], dk[..., :size, :]


def _padded(q: Tensor, k: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """C rounded up to a power of two, at least BASE: q = k = 0 there, and G stays where it was."""
    size = q.shape[-2]
    extra = max(BASE, 1 << (size - 1).bit_length()) - size
    if extra == 0:
        return q, k, total
    last = total[..., -1:, :].expand(*total.shape[:-2], extra, total.shape[-1])
    return pad(q, (0, 0, 0, extra)), pad(k, (0, 0, 0, extra)), torch.cat([total, last], dim=-2)


def _halves(size: int) -> list[int]:
    """BASE, 2 BASE, ... size/2."""
    return [BASE << level for level in range((size // BASE).bit_length() - 1)]


def _blocks(x: Tensor) -> Tensor:
    """(..., C, K) -> (..., C/BASE, BASE, K)."""
    return x.unflatten(-2, (-1, BASE))


def _split(x: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """First and second halves of all stretches of 2·half steps: views (..., M, half, K)."""
    parts = x.unflatten(-2, (-1, 2, half))
    return parts[..., 0, :, :], parts[..., 1, :, :]


def _near(q: Tensor, k: Tensor, total: Tensor, offset: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and decay of the pairs (r, r - offset) inside blocks of BASE: (..., M, BASE - offset, K)."""
    rows, total_rows = _blocks(q)[..., offset:, :], _blocks(total)[..., offset:, :]
    columns, total_columns = (_blocks(x)[..., : BASE - offset, :] for x in (k, total))
    return rows, columns, decay_factor(total_rows - total_columns)


def _far(q: Tensor, k: Tensor, total: Tensor, half: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, columns and their decays to the middle of every stretch of 2·half steps: (..., M, half, K)."""
    first, second = _split(total, half)
    middle = first[..., -1:, :]
    return _split(q, half)[1], _split(k, half)[0], decay_factor(second - middle), decay_factor(middle - first)


def _near_scores(scores: Tensor, offset: int) -> Tensor:
    """View (..., M, BASE - offset): the entries (r, r - offset) inside the blocks of BASE on the diagonal."""
    tiles = (
        scores.unflatten(-2, (-1, BASE)).unflatten(-1, (-1, BASE)).diagonal(dim1=-4, dim2=-2)
    )  # (..., BASE, BASE, M)
    return tiles.diagonal(-offset, -3, -2)


def _far_scores(scores: Tensor, half: int) -> Tensor:
    """View (..., M, half, half): rows in the second and columns in the first half of every stretch of 2·half."""
    tiles = scores.unflatten(-2, (-1, 2, half)).unflatten(-1, (-1, 2, half))[..., :, 1, :, :, 0, :]
    return tiles.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
