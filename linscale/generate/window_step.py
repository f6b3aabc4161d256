"""The decoding step of recurrent transformers: their blocks' own step, on states in slots, changed in place.

With a kernel for the places of a block that has become full nothing of it waits for the device, and a CUDA graph can
hold it.
"""

from __future__ import annotations

import torch

from linscale.generate.read_step import ReadStep
from linscale.models import LanguageModel
from linscale.models.recurrent_block import RecurrentBlock
from linscale.models.recurrent_step import step, turn
from linscale.ops.backend import autocast_dtype, choose


class WindowStep(ReadStep):
    """As a ReadStep, of a model all of whose layers recur and whose texts have no longest length."""

    def __init__(self, model: LanguageModel, slots: int, capacity: int, *, dtype: torch.dtype) -> None:
        super().__init__(model, slots, capacity, dtype=dtype)
        self.turn = turn
        if choose("auto", self.tokens.device, torch.float32).form == "triton":
            from linscale.ops.decode.turn import turn as kernel

            self.turn = kernel

    @staticmethod
    def possible(model: LanguageModel) -> bool:
        """Whether it is for this model: no layer of softmax over the whole text, and no table of positions."""
        recurs = all(isinstance(block, RecurrentBlock) for block in model.blocks)
        return recurs and getattr(model, "places", None) is None

    @property
    def captures(self) -> bool:
        return self.turn is not turn

    @torch.no_grad()
    def run(self) -> None:
        """One token of every active row."""
        model = self.model
        weights = model.embedding.weight
        with torch.autocast(weights.device.type, dtype=self.dtype, enabled=self.dtype != weights.dtype):
            x = model.embedding(self.tokens[:, None])
            x = x.to(autocast_dtype(x.device) or x.dtype)
            for block, (state,) in zip(model.blocks, self.states, strict=True):
                assert isinstance(block, RecurrentBlock)
                x = step(block, x, state, self.positions, self.active, self.turn)
            self.logits.copy_(model.logits(model.norm(x)[:, 0]))
        self.positions.add_(self.active)
