"""Which decoding step a model has."""

from __future__ import annotations

import torch

from linscale.generate.packing import can_pack
from linscale.generate.read_step import ReadStep
from linscale.generate.step import DecodingStep
from linscale.generate.window_step import WindowStep
from linscale.models import LanguageModel, Linearized, RecurrentTransformer
from linscale.models.folded import fold


def decoding_step(
    model: LanguageModel, slots: int, capacity: int, *, dtype: torch.dtype, state_dtype: torch.dtype
) -> DecodingStep:
    """From packed matrices, by the blocks' own step, or, where there is neither, by the model's forward pass."""
    if can_pack(model) or not isinstance(model, RecurrentTransformer | Linearized):
        return DecodingStep(model, slots, capacity, dtype=dtype, state_dtype=state_dtype)
    if isinstance(model, RecurrentTransformer) and WindowStep.possible(model):
        return WindowStep(model, slots, capacity, dtype=dtype)
    return ReadStep(fold(model), slots, capacity, dtype=dtype)
