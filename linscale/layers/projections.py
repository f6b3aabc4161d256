"""Several linear maps of one input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


def project(x: Tensor, *maps: nn.Linear) -> list[Tensor]:
    """m(x) for every map m without a bias, x (..., D) -> (..., width of m).

    While gradients are recorded it is one product with all weights, of which the results are slices: then the gradient
    of x is one product, too, and not a sum of several that are written and read again. Otherwise, in decoding above
    all, weights are read where they lie.
    """
    if not torch.is_grad_enabled():
        return [m(x) for m in maps]
    weight = torch.cat([m.weight for m in maps])
    return list(linear(x, weight).split([m.out_features for m in maps], dim=-1))
