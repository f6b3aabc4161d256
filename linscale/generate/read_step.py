"""A decoding step for models that have none of their own: `LanguageModel.read` on all slots at once.

Recurrent transformers with positions from a table, and T2R's kind of linearized models (packing_linear.has_step). It
computes every row whether it is active or not, keeps the states of those that are not, and launches whatever the
model's own code launches: many small kernels, for linearized models in a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from linscale.generate.packing import can_pack
from linscale.generate.step import DecodingStep
from linscale.layers.softmax_attention import KeyValues
from linscale.models import LanguageModel, Linearized, State
from linscale.models.count import state_shape
from linscale.ops.decode import plain


class ReadStep(DecodingStep):
    """As a DecodingStep. dtype is that of products, under autocast where weights have another; states are float32."""

    def __init__(self, model: LanguageModel, slots: int, capacity: int, *, dtype: torch.dtype) -> None:
        if can_pack(model):
            raise TypeError(f"{type(model).__name__} has a decoding step of its own: step.DecodingStep")
        config, device = model.config, model.embedding.weight.device
        self.model, self.dtype, self.ops = model, dtype, plain
        self.config, self.slots, self.capacity = config, slots, capacity
        self.tokens, self.positions = (torch.zeros(slots, dtype=torch.int64, device=device) for _ in range(2))
        self.active = torch.zeros(slots, dtype=torch.int32, device=device)
        self.logits = torch.zeros(slots, config.vocab_size, device=device)
        self.encoder_state = None
        self.states: list[tuple[Tensor, ...]] = []
        for layer in range(config.n_layers):
            if config.is_softmax(layer):
                shape: tuple[int, ...] = (slots, capacity, config.kv_heads, config.head_dim)
                self.states.append(tuple(torch.zeros(shape, device=device, dtype=dtype) for _ in range(2)))
            else:
                self.states.append((torch.zeros(slots, *state_shape(config, layer), device=device),))

    @property
    def captures(self) -> bool:
        """A recurrent transformer asks the device where its texts stand."""
        return self.tokens.is_cuda and isinstance(self.model, Linearized)

    def _attention_scratch(self) -> None:
        """Softmax layers work in none."""

    @torch.no_grad()
    def run(self) -> None:
        """One token of every active row."""
        # Softmax layers read all their room: sums of another length would round otherwise, by what else is there.
        layers = tuple(KeyValues(*room) if len(room) == 2 else room[0] for room in self.states)
        weights = self.model.embedding.weight
        with torch.autocast(weights.device.type, dtype=self.dtype, enabled=self.dtype != weights.dtype):
            x, state = self.model.read(self.tokens[:, None], State(self.positions, None, layers))
            self.logits.copy_(self.model.logits(x[:, 0]))
        alive, rows = self.active > 0, torch.arange(self.slots, device=self.active.device)
        places = self.positions.clamp(max=self.capacity - 1)  # where a row that rests may have none left
        for room, layer in zip(self.states, state.layers, strict=True):
            if isinstance(layer, KeyValues):
                for cache, part in zip(room, layer, strict=True):
                    new = torch.where(alive[:, None, None], part[rows, places].to(cache.dtype), cache[rows, places])
                    cache[rows, places] = new
            else:
                room[0].copy_(torch.where(alive.view(-1, *[1] * (layer.ndim - 1)), layer, room[0]))
        self.positions.add_(self.active)
