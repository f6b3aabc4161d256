"""Short prompts by the kernels of decoding: a token a row, of any texts, behind whatever their slots hold.

A text's tokens are read one after the other, as steps would read them, while the products are of all rows together. So
its state is the same to the last bit however it is cut and whatever is read beside it, and a pass is one CUDA graph:
for texts of some hundred tokens, that is what takes least of the host's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from linscale.generate.step import Buffers, DecodingStep
from linscale.ops.decode import Mix, plain

STAGES = 4  # passes that the host may be ahead


class Part(NamedTuple):
    """Tokens of one text."""

    slot: int
    tokens: np.ndarray
    fresh: bool
    """Whether they are the first of the text, whatever the slot holds."""


class Reading:
    """Passes over at most `rows` tokens into the slots of a step, whose states and matrices it uses."""

    def __init__(self, step: DecodingStep, rows: int) -> None:
        self.step, self.rows = step, rows
        self._buffers = Buffers(step.packed, step.config, rows, step.programs)
        device, size = step.tokens.device, rows + 3 * step.slots
        self._given = torch.zeros(size, dtype=torch.int32, device=device)
        self._tokens, self._spans = self._given[:rows], self._given[rows:].view(step.slots, 3)
        pinned = device.type == "cuda"
        self._staged = [torch.zeros(size, dtype=torch.int32, pin_memory=pinned) for _ in range(STAGES)]
        self._copied: list[torch.cuda.Event | None] = [None] * STAGES
        self._stage = 0

    @staticmethod
    def possible(step: DecodingStep) -> bool:
        """Whether the mixers of a step can: those of linear attention, by kernels; linearized ones cannot."""
        return step.ops is not plain and all(isinstance(layer.mixer, Mix) for layer in step.packed.layers)

    def give(self, parts: Sequence[Part]) -> None:
        """What the next `run` reads; its parts are of different slots."""
        stage = self._stage = (self._stage + 1) % STAGES
        if (copied := self._copied[stage]) is not None:
            copied.synchronize()
        staged = self._staged[stage].numpy()
        staged[:] = 0
        spans, first = staged[self.rows :].reshape(-1, 3), 0
        for slot, tokens, fresh in parts:
            staged[first : first + len(tokens)] = tokens
            spans[slot] = first, len(tokens), fresh
            first += len(tokens)
        self._given.copy_(self._staged[stage], non_blocking=True)
        if self._given.is_cuda:
            event = self._copied[stage] = torch.cuda.Event()
            event.record()

    @torch.no_grad()
    def run(self) -> None:
        """Read what was given."""
        step, buffers, spans = self.step, self._buffers, self._spans
        torch.index_select(step.packed.embedding, 0, self._tokens, out=buffers.x)
        step.positions.mul_(1 - spans[:, 2])
        encoder = step.packed.encoder
        if encoder is not None:
            assert step.encoder_state is not None
            step.ops.encode(buffers.x, step.encoder_state, step.active, encoder.log_rate, encoder.weight, spans)
        for number, (layer, state) in enumerate(zip(step.packed.layers, step.states, strict=True)):
            projected = step.read(layer, buffers)
            step.ops.mix(
                projected, layer.mixer, *state, step.positions, step.active, buffers.mixed, buffers.squares, spans
            )
            if number + 1 < len(step.states):  # behind the last state there is nothing to find out
                step.write(layer, buffers)
                step.feed_forward(layer, buffers, {})
        step.positions.add_(spans[:, 1])
