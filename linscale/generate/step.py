"""A decoding step of S slots on buffers that never move: what a CUDA graph holds, and a CPU works on in place.

It computes what `LanguageModel.read` and `logits` do for one token of every sequence, from matrices packed for it
(packing.py), by the operators of `ops.decode`. States lie in slots: a sequence is put into one, and taken out again.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from linscale.generate.packing import Attention, Layer, Packed, pack
from linscale.layers.softmax_attention import KeyValues
from linscale.models import LanguageModel, State
from linscale.ops.backend import choose
from linscale.ops.decode import plain

AHEAD_SHARE, AHEAD_BYTES = 0.6, 20 << 20  # of a layer's states: measured on an H100, whose L2 holds 50 MB


class DecodingStep:
    """Set `tokens` and `active`, call `run`, read `logits`; rows that are not active keep their state.

    slots        S
    capacity     tokens that a softmax layer has room for in a slot
    dtype        of matrices and of what runs between layers
    state_dtype  of linear attention's states
    """

    def __init__(
        self, model: LanguageModel, slots: int, capacity: int, *, dtype: torch.dtype, state_dtype: torch.dtype
    ) -> None:
        config, device = model.config, model.embedding.weight.device
        self.config, self.slots, self.capacity = config, slots, capacity
        self.packed: Packed = pack(model, dtype)
        self.ops = _operators(device, dtype, config.head_dim)
        self.tokens, self.positions = (torch.zeros(slots, dtype=torch.int64, device=device) for _ in range(2))
        self.active = torch.zeros(slots, dtype=torch.int32, device=device)
        new: dict[str, Any] = {"device": device, "dtype": dtype}
        self.x, self.mixed = (torch.zeros(slots, config.d_model, **new) for _ in range(2))
        self.inner = torch.zeros(slots, config.glu_width, **new)
        widths = {len(layer.read.weight) for layer in self.packed.layers}
        self.projected = {width: torch.zeros(slots, width, **new) for width in widths}
        self.logits = torch.zeros(slots, config.vocab_size, device=device)
        programs = 1 if self.ops is plain else self.ops.slices(config.head_dim)
        self.squares = torch.zeros(slots, config.n_heads * programs, device=device)
        self.encoder_state: Tensor | None = None
        if self.packed.encoder is not None:
            self.encoder_state = torch.zeros(slots, *self.packed.encoder.weight.shape, device=device)
        self.states = [self._room(layer, dtype, state_dtype) for layer in self.packed.layers]
        self._scratch = self._attention_scratch()
        self._ahead = [self._part_ahead(layer) for layer in range(config.n_layers)]

    def _room(self, layer: Layer, dtype: torch.dtype, state_dtype: torch.dtype) -> tuple[Tensor, ...]:
        mixer, device = layer.mixer, self.tokens.device
        if isinstance(mixer, Attention):
            shape = (self.slots, self.capacity, mixer.n_kv_heads, mixer.head_dim)
            return tuple(torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        shape = (self.slots, mixer.n_heads, mixer.key_width, mixer.head_dim)
        return (torch.zeros(shape, device=device, dtype=state_dtype),)

    def _attention_scratch(self) -> tuple[Tensor, ...] | None:
        """What the kernels of softmax layers work in, all layers after each other."""
        softmax = [room[0] for room in self.states if len(room) == 2]
        return self.ops.attend_scratch(self.mixed, softmax[0]) if softmax and self.ops is not plain else None

    def _part_ahead(self, layer: int) -> dict[str, Tensor]:
        """As an argument: what of the state that is read after this layer is brought into the cache during it."""
        after = self.states[(layer + 1) % len(self.states)]
        if self.ops is plain or len(after) == 2 or self.slots == 1:
            return {}
        count = min(after[0].numel() * AHEAD_SHARE, AHEAD_BYTES // after[0].itemsize)
        return {"ahead": after[0].view(-1)[: int(count) // 64 * 64]}

    @torch.no_grad()
    def run(self) -> None:
        """One token of every active row."""
        torch.index_select(self.packed.embedding, 0, self.tokens, out=self.x)
        if self.packed.encoder is not None:
            self._encode()
        for layer, state, ahead in zip(self.packed.layers, self.states, self._ahead, strict=True):
            self._layer(layer, state, ahead)
        self.ops.project(self.x, self.packed.head, self.logits, self.config.norm_eps)
        self.positions.add_(self.active)

    def _encode(self) -> None:
        """TPE: h <- λ h + x, x <- Σ b h, for active rows."""
        encoder, state = self.packed.encoder, self.encoder_state
        assert encoder is not None
        assert state is not None
        alive = (self.active > 0)[:, None, None]
        fresh = state * encoder.log_rate.to(state.dtype).exp() + self.x[:, :, None].to(state.dtype)
        state.copy_(torch.where(alive, fresh, state))
        self.x.copy_((state * encoder.weight.to(state.dtype)).sum(-1))

    def _layer(self, layer: Layer, state: tuple[Tensor, ...], ahead: dict[str, Tensor]) -> None:
        eps, ops = self.config.norm_eps, self.ops
        projected = self.projected[len(layer.read.weight)]
        ops.project(self.x, layer.read, projected, eps)
        mixer = layer.mixer
        if isinstance(mixer, Attention):
            self._attend(mixer, projected, *state)
            ops.project(self.mixed, layer.out, self.x, eps, residual=self.x)
        else:
            ops.mix(projected, mixer, *state, self.positions, self.active, self.mixed, self.squares)
            ops.project(self.mixed, layer.out, self.x, eps, residual=self.x, squares=self.squares)
        ops.project(self.x, layer.gate_up, self.inner, eps)
        ops.project(self.inner, layer.down, self.x, eps, residual=self.x, **ahead)

    def _attend(self, mixer: Attention, projected: Tensor, keys: Tensor, values: Tensor) -> None:
        given = (projected, keys, values, self.positions, self.active, mixer.frequencies, self.mixed)
        if self.ops is plain:
            plain.attend(*given)
            return
        self.ops.attend(*given, self._scratch)

    @torch.no_grad()
    def put(self, slot: int, state: State | None, length: int) -> None:
        """A model's State of one sequence, which has read `length` tokens, into a slot; None empties it."""
        self.positions[slot] = length
        if state is None:
            for part in self._linear(slot):
                part.zero_()
            return
        if self.encoder_state is not None:
            assert state.embedding is not None
            self.encoder_state[slot] = state.embedding[0]
        for room, layer in zip(self.states, state.layers, strict=True):
            if isinstance(layer, KeyValues):
                for cache, x in zip(room, layer, strict=True):
                    cache[slot, :length] = x[0, :length]
            else:
                room[0][slot] = layer[0]

    def _linear(self, slot: int) -> Iterator[Tensor]:
        """What a slot holds of a text whatever its length; keys and values beyond it are never looked at."""
        if self.encoder_state is not None:
            yield self.encoder_state[slot]
        yield from (room[0][slot] for room in self.states if len(room) == 1)

    @torch.no_grad()
    def take(self, slot: int, length: int) -> State:
        """The State of the sequence in a slot, which has read `length` tokens, a copy."""
        layers = tuple(
            KeyValues(*(cache[slot : slot + 1, :length].clone() for cache in room))
            if len(room) == 2
            else room[0][slot : slot + 1].to(torch.float32, copy=True)
            for room in self.states
        )
        embedding = None if self.encoder_state is None else self.encoder_state[slot : slot + 1].clone()
        return State(torch.full((1,), length, device=self.tokens.device), embedding, layers)


def _operators(device: torch.device, dtype: torch.dtype, head_dim: int) -> ModuleType | Any:
    """The module whose functions run here: kernels where Triton compiles them, for heads of a power of two."""
    obstacle = (
        None if head_dim & (head_dim - 1) == 0 and head_dim >= 16 else f"head_dim = {head_dim} is no power of two"
    )
    if choose("auto", device, dtype, obstacle).form == "triton":
        from linscale.ops.decode import kernel

        return kernel
    return plain
