"""The inverse of I + A for strictly lower triangular A, by matrix products alone."""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 4  # of the blocks on the diagonal that are done at once


def unit_lower_inverse(a: Tensor) -> Tensor:
    """(I + A)⁻¹ for A (..., C, C), zero on and above the diagonal; C = 4, 8, 16, ...

    Blocks of four on the diagonal are (I - D)(I + D²), for D⁴ = 0. Then two neighbours become one, again and again:

        [P      ]⁻¹   [ P⁻¹            ]
        [Y    R ]   = [-R⁻¹ Y P⁻¹   R⁻¹]

    All that is multiplied is an inverse itself or a block of A, and stays as small as these are: where keys are all
    alike, powers of A, from which the inverse could be had in fewer products, reach 10¹⁷ for C = 64.
    """
    diagonal = _blocks(a.unflatten(-1, (-1, BASE)).unflatten(-3, (-1, BASE)))
    eye = torch.eye(BASE, dtype=a.dtype, device=a.device)
    inverse = _small_product(eye - diagonal, eye + _small_product(diagonal, diagonal))
    size = BASE
    while size < a.shape[-1]:
        halves = a.unflatten(-1, (-1, 2, size)).unflatten(-4, (-1, 2, size))  # (..., n, 2, size, n, 2, size)
        below = _blocks(halves[..., :, 1, :, :, 0, :])
        upper, lower = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = lower @ below @ upper
        inverse = torch.cat([torch.cat([upper, torch.zeros_like(upper)], -1), torch.cat([-corner, lower], -1)], -2)
        size *= 2
    return inverse.squeeze(-3)


def _blocks(a: Tensor) -> Tensor:
    """Of (..., n, r, n, c) those blocks whose two numbers agree: (..., n, r, c)."""
    return a.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


def _small_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of matrices too small for a library's product."""
    return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)
