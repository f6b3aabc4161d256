"""Head and cross-entropy together, a block of tokens at a time: the full logits never exist."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

BLOCK_LOGITS = 1 << 25  # logits held at once: 128 MiB in float32, 334 tokens of a vocabulary of 100,280


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(x weightᵀ)[target] for every token, in float32 (float64 for float64 inputs), not reduced.

    x (B, T, D), weight (vocab, D), targets (B, T) integers in [0, vocab), or -100 for a loss of 0 -> (B, T), nats
    """
    flat, wanted = x.flatten(0, 1), targets.flatten()
    block = max(1, BLOCK_LOGITS // weight.shape[0])
    if len(wanted) <= block:
        return _block_loss(flat, weight, wanted).view_as(targets)
    # A block's logits are computed again in the backward pass instead of being kept.
    losses = [
        checkpoint(_block_loss, rows, weight, row_targets, use_reentrant=False)
        for rows, row_targets in zip(flat.split(block), wanted.split(block), strict=True)
    ]
    return torch.cat(losses).view_as(targets)


def _block_loss(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = linear(x, weight)
    return cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), targets, reduction="none")
