"""A decoding step of S slots for models that have none of their own: `LanguageModel.read` on all slots at once.

The same face as `step.DecodingStep`. It computes every row whether it is active or not, keeps the states of those that
are not, and launches whatever the model's own code launches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from linscale.generate.step import DecodingStep
from linscale.layers.softmax_attention import KeyValues
from linscale.models import LanguageModel, RecurrentTransformer, State
from linscale.models.count import state_shape


class ReadStep:
    """Set `tokens` and `active`, call `run`, read `logits`; rows that are not active keep their state.

    slots     S
    capacity  tokens that a softmax layer has room for in a slot
    dtype     of products: under autocast where it is not that of the weights
    """

    def __init__(self, model: LanguageModel, slots: int, capacity: int, *, dtype: torch.dtype) -> None:
        config, device = model.config, model.embedding.weight.device
        if model.position_encoder is not None:
            raise TypeError(f"{type(model).__name__} has a decoding step of its own: step.DecodingStep")
        self.model, self.slots, self.capacity, self.dtype = model, slots, capacity, dtype
        self.tokens, self.positions = (torch.zeros(slots, dtype=torch.int64, device=device) for _ in range(2))
        self.active = torch.zeros(slots, dtype=torch.int32, device=device)
        self.logits = torch.zeros(slots, config.vocab_size, device=device)
        self.states: list[tuple[Tensor, ...]] = []
        for layer in range(config.n_layers):
            if config.is_softmax(layer):
                shape: tuple[int, ...] = (slots, capacity, config.kv_heads, config.head_dim)
                self.states.append(tuple(torch.zeros(shape, device=device, dtype=dtype) for _ in range(2)))
            else:
                self.states.append((torch.zeros(slots, *state_shape(config, layer), device=device),))

    @torch.no_grad()
    def run(self) -> None:
        """One token of every active row."""
        longest = int(self.positions.max()) if any(len(room) == 2 for room in self.states) else 0
        layers = tuple(
            KeyValues(room[0][:, :longest], room[1][:, :longest]) if len(room) == 2 else room[0] for room in self.states
        )
        weights = self.model.embedding.weight
        with torch.autocast(weights.device.type, dtype=self.dtype, enabled=self.dtype != weights.dtype):
            x, state = self.model.read(self.tokens[:, None], State(self.positions, None, layers))
            self.logits.copy_(self.model.logits(x[:, 0]))
        alive = self.active > 0
        for room, layer in zip(self.states, state.layers, strict=True):
            if isinstance(layer, KeyValues):
                rows = alive.nonzero()[:, 0]
                places = self.positions[rows]
                for cache, part in zip(room, layer, strict=True):
                    cache[rows, places] = part[rows, places].to(cache.dtype)
            else:
                room[0].copy_(torch.where(alive.view(-1, *[1] * (layer.ndim - 1)), layer, room[0]))
        self.positions.add_(self.active)

    @torch.no_grad()
    def put(self, slot: int, state: State) -> None:
        """A model's State of one sequence into a slot."""
        self.positions[slot] = state.position[0]
        length = int(state.position[0])
        for room, layer in zip(self.states, state.layers, strict=True):
            if isinstance(layer, KeyValues):
                for cache, x in zip(room, layer, strict=True):
                    cache[slot, :length] = x[0, :length]
            else:
                room[0][slot] = layer[0]

    @torch.no_grad()
    def take(self, slot: int) -> State:
        """The State of the sequence in a slot, a copy."""
        position = self.positions[slot : slot + 1].clone()
        length = int(position)
        layers = tuple(
            KeyValues(*(cache[slot : slot + 1, :length].clone() for cache in room))
            if len(room) == 2
            else room[0][slot : slot + 1].clone()
            for room in self.states
        )
        return State(position, None, layers)


def decoding_step(
    model: LanguageModel, slots: int, capacity: int, *, dtype: torch.dtype, state_dtype: torch.dtype
) -> DecodingStep | ReadStep:
    """The step of a model: packed where there is one for it. A ReadStep's states are float32 whatever `state_dtype`."""
    if isinstance(model, RecurrentTransformer):
        return ReadStep(model, slots, capacity, dtype=dtype)
    return DecodingStep(model, slots, capacity, dtype=dtype, state_dtype=state_dtype)
