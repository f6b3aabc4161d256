"""Launches the kernel that draws the next token of every row."""

from __future__ import annotations

import torch
from torch import Tensor

from linscale.ops.decode.draw_kernel import draw_kernel
from linscale.ops.launch import launch

BLOCK, WARPS = 4096, 16
RING = 4  # turns that the host may be behind


def draw(
    logits: Tensor, seen: Tensor, rules: tuple[Tensor, ...], ends: Tensor, active: Tensor, tokens: Tensor,
    weights: Tensor, ring: Tensor, turns: Tensor, eos: int,
) -> None:  # fmt: skip
    """The next tokens (S,) of rows with logits (S, at least V), as `generate.choice.choose` chooses them, and all that
    a step changes besides: `draw_kernel` says what.

    rules   temperature, top_k, top_p, min_p, penalty, seed, step, (S,) each, as `generate.choice.Rows` has them
    weights (S, V) int64, scratch;  ring (RING, S) int64, on the device or pinned;  turns (S,) int64
    """
    slots, vocabulary = weights.shape
    launch(draw_kernel, slots, (
        logits, seen, *rules, ends, active, tokens, weights, ring, turns,
    ), (), dict(
        V=vocabulary, WIDTH=logits.shape[1], SEEN=seen.shape[1], EOS=eos, S=slots, RING=RING,
        BLOCK=min(BLOCK, 1 << (vocabulary - 1).bit_length()),
    ), WARPS)  # fmt: skip


def rings(slots: int, device: torch.device) -> Tensor:
    """Where the host finds the tokens of the last RING turns, turn t at t % RING."""
    return torch.zeros(RING, slots, dtype=torch.int64, pin_memory=device.type == "cuda")
