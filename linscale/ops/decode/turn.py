"""The state of a layer of a recurrent transformer where a block has become full, in place: the next one begins.

A state is (S, P, K, D), P places of a block of each of S sequences. Places 4 and 5 become 0 and 1, what was in 2 to 5
is forgotten, 6 and 7 change places, 8 and 9 are forgotten: see `models/recurrent_state.py` for what they are, and its
`turned` for the definition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from linscale.ops.decode.kernels import turn_kernel
from linscale.ops.launch import launch

CHUNK, WARPS = 2048, 8


def turn(state: Tensor, positions: Tensor, active: Tensor) -> None:
    """state (S, P, K, D) <- the next block's, in rows that are active (S,) and whose token at positions (S,) is the
    last of its block."""
    slots, places, block, width = state.shape
    assert state.is_contiguous()
    assert state.dtype == torch.float32
    elements = block * width
    chunk = min(CHUNK, 1 << (elements - 1).bit_length())
    constants = {"BLOCK": block, "ELEMENTS": elements, "PLACES": places, "CHUNK": chunk}
    launch(turn_kernel, slots * -(-elements // chunk), (state, positions, active), (), constants, WARPS)
