"""A model's State as the past that transformers carries from step to step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from linscale.generate.states import fork
from linscale.models import State


class Past(Cache):
    """The state of a batch of sequences. Reading more gives a new one; what is here is replaced, never changed."""

    is_compileable = False

    def __init__(self, state: State | None = None) -> None:
        super().__init__(layers=[])
        self.state = state
        self.read = 0
        """Columns of the batch read so far, padding included: the same for all sequences."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.read

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """No limit."""
        return -1

    def advance(self, state: State, columns: int) -> None:
        """Put the state behind `columns` more."""
        self.state, self.read = state, self.read + columns

    def reset(self) -> None:
        self.state, self.read = None, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on with sequence beam_idx[i] as sequence i: beam search."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.state is not None:
            self.state = fork(self.state, indices.to(self.state.position.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.state is not None:
            rows = torch.arange(len(self.state.position), device=self.state.position.device)
            self.state = fork(self.state, rows.repeat_interleave(repeats))

    def crop(self, max_length: int) -> None:
        raise ValueError("a state cannot forget its last tokens: assisted generation is not supported")

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any) -> tuple[Tensor, Tensor]:
        raise ValueError("a state is written by its model alone")
