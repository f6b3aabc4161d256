"""States of a model as values: copied, joined, and how many of them are held at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from linscale.layers.softmax_attention import KeyValues
from linscale.models import LanguageModelConfig, State
from linscale.models.count import state_elements

MOST_STATE = 1 << 29  # elements of the states of a batch, 2 GiB in float32


def most_states(config: LanguageModelConfig, length: int) -> int:
    """How many states behind `length` tokens a batch may hold, at least 1."""
    return max(1, MOST_STATE // max(1, state_elements(config, length)))


def fork(state: State, rows: Tensor) -> State:
    """The state whose sequence i is sequence rows[i] of a model's State; rows (N,) integers, at least one.

    Keys and values of softmax layers are cut to the longest of the chosen sequences.
    """
    position = state.position.index_select(0, rows)
    longest = int(position.max()) if _caches(state) else 0

    def chosen(part: Any) -> Any:
        if isinstance(part, KeyValues):
            return KeyValues(*(x[:, :longest].index_select(0, rows) for x in part))
        return None if part is None else part.index_select(0, rows)

    return State(position, chosen(state.embedding), tuple(chosen(layer) for layer in state.layers))


def moved(state: State, device: torch.device) -> State:
    """The state on a device."""

    def there(part: Any) -> Any:
        if isinstance(part, KeyValues):
            return KeyValues(*(x.to(device) for x in part))
        return None if part is None else part.to(device)

    return State(state.position.to(device), there(state.embedding), tuple(there(layer) for layer in state.layers))


def join(states: Sequence[State]) -> State:
    """The sequences of all states, in order; softmax layers padded to the longest."""
    first = states[0]
    if len(states) == 1:
        return first
    embedding = None if first.embedding is None else torch.cat([_tensor(state.embedding) for state in states])
    layers = zip(*(state.layers for state in states), strict=True)
    return State(
        torch.cat([state.position for state in states]), embedding, tuple(_join_layer(parts) for parts in layers)
    )


def _join_layer(parts: Sequence[Any]) -> Any:
    if not isinstance(parts[0], KeyValues):
        return torch.cat(list(parts))
    longest = max(part.k.shape[1] for part in parts)
    return KeyValues(
        *(torch.cat([pad(x, (0, 0, 0, 0, 0, longest - x.shape[1])) for x in xs]) for xs in zip(*parts, strict=True))
    )


def _caches(state: State) -> bool:
    return any(isinstance(layer, KeyValues) for layer in state.layers)


def _tensor(x: Tensor | None) -> Tensor:
    assert x is not None
    return x
