"""A decoding step of S slots on buffers that never move: what a CUDA graph holds, and a CPU works on in place.

It computes what `LanguageModel.read` and `logits` do for one token of every sequence, from matrices packed for it
(packing.py), by the operators of `ops.decode`. States lie in slots: a sequence is put into one, and taken out again.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from linscale.generate.packing import Attention, Layer, Packed, pack
from linscale.generate.packing_linear import fits
from linscale.generate.turning import Turning
from linscale.layers.softmax_attention import KeyValues
from linscale.models import LanguageModel, LanguageModelConfig, State
from linscale.models.count import state_shape
from linscale.ops.backend import choose
from linscale.ops.decode import LinearMix, Mix, plain

# What of a layer's states is brought into L2 ahead, and the most bytes of them for which that is any use: of an H100's
# 50 MB, see benchmarks/NOTES.md.
AHEAD_SHARE, AHEAD_MOST = 0.6, 24 << 20


class Buffers:
    """What runs between the parts of a layer, for so many rows."""

    def __init__(self, packed: Packed, config: LanguageModelConfig, rows: int, programs: int) -> None:
        """`programs` a head write the squares of what a mixer gives."""
        new: dict[str, Any] = {"device": packed.embedding.device, "dtype": packed.embedding.dtype}
        self.x, self.mixed = (torch.zeros(rows, config.d_model, **new) for _ in range(2))
        self.inner = torch.zeros(rows, config.glu_width, **new)
        widths = {len(layer.read.weight) for layer in packed.layers}
        self.projected = {width: torch.zeros(rows, width, **new) for width in widths}
        self.squares = torch.zeros(rows, config.n_heads * programs, device=new["device"])


class DecodingStep:
    """Set `tokens` and `active`, call `run`, read `logits`; rows that are not active keep their state.

    slots        S
    capacity     tokens that a softmax layer has room for in a slot
    dtype        of matrices and of what runs between layers; float16 see packing.py
    state_dtype  of linear attention's states
    """

    def __init__(
        self, model: LanguageModel, slots: int, capacity: int, *, dtype: torch.dtype, state_dtype: torch.dtype
    ) -> None:
        config, device = model.config, model.embedding.weight.device
        self.config, self.slots, self.capacity = config, slots, capacity
        self.packed: Packed = pack(model, dtype)
        dtype = self.packed.embedding.dtype
        self.ops = _operators(device, dtype, self.packed, config.head_dim)
        self.tokens, self.positions = (torch.zeros(slots, dtype=torch.int64, device=device) for _ in range(2))
        self.active = torch.zeros(slots, dtype=torch.int32, device=device)
        self.logits = torch.zeros(slots, config.vocab_size, device=device)
        lrpe = any(isinstance(layer.mixer, Mix) and layer.mixer.theta is not None for layer in self.packed.layers)
        self.programs = 1 if self.ops is plain else self.ops.slices(config.head_dim, slots, lrpe)
        self.buffers = Buffers(self.packed, config, slots, self.programs)
        self.encoder_state: Tensor | None = None
        if self.packed.encoder is not None:
            self.encoder_state = torch.zeros(slots, *self.packed.encoder.weight.shape, device=device)
        self.states = [self._room(layer, dtype, state_dtype) for layer in range(config.n_layers)]
        self._scratch = self._attention_scratch()
        self._turns = Turning(self.packed.layers)
        self._ahead = [self._part_ahead(layer) for layer in range(config.n_layers)]

    @property
    def captures(self) -> bool:
        """Whether a CUDA graph can hold it: nothing of it waits for the device."""
        return self.ops is not plain

    def _room(self, layer: int, dtype: torch.dtype, state_dtype: torch.dtype) -> tuple[Tensor, ...]:
        mixer, device = self.packed.layers[layer].mixer, self.tokens.device
        if isinstance(mixer, Attention):
            return tuple(self._cache(self.capacity, mixer.n_kv_heads, mixer.head_dim, dtype) for _ in range(2))
        return (torch.zeros(self.slots, *state_shape(self.config, layer), device=device, dtype=state_dtype),)

    def _cache(self, capacity: int, heads: int, width: int, dtype: torch.dtype) -> Tensor:
        """(S, C, G, K); where there is no kernel a head lies in one piece, for products of one head."""
        new: dict[str, Any] = {"device": self.tokens.device, "dtype": dtype}
        if self.ops is plain:
            return torch.zeros(self.slots, heads, capacity, width, **new).transpose(1, 2)
        return torch.zeros(self.slots, capacity, heads, width, **new)

    def _attention_scratch(self) -> tuple[Tensor, ...] | None:
        """What the kernels of softmax layers work in, all layers after each other."""
        softmax = [room[0] for room in self.states if len(room) == 2]
        return self.ops.attend_scratch(self.buffers.mixed, softmax[0]) if softmax and self.ops is not plain else None

    def _part_ahead(self, layer: int) -> dict[str, Tensor]:
        """As an argument: what of the state that is read after this layer is brought into the cache during it."""
        after = self.states[(layer + 1) % len(self.states)]
        if self.ops is plain or len(after) == 2 or self.slots == 1 or after[0].nbytes > AHEAD_MOST:
            return {}
        return {"ahead": after[0].view(-1)[: int(after[0].numel() * AHEAD_SHARE) // 64 * 64]}

    @torch.no_grad()
    def run(self) -> None:
        """One token of every active row."""
        x = self.buffers.x
        torch.index_select(self.packed.embedding, 0, self.tokens, out=x)
        encoder = self.packed.encoder
        if encoder is not None:
            assert self.encoder_state is not None
            self.ops.encode(x, self.encoder_state, self.active, encoder.log_rate, encoder.weight)
        turns = self._turns.of(self.positions) if self.ops is plain else [{}] * len(self.states)
        for layer, state, ahead, turned in zip(self.packed.layers, self.states, self._ahead, turns, strict=True):
            self._mix(layer, state, turned)
            self.feed_forward(layer, self.buffers, ahead)
        self.ops.project(x, self.packed.head, self.logits, self.config.norm_eps)
        self.positions.add_(self.active)

    def _mix(self, layer: Layer, state: tuple[Tensor, ...], turns: dict[str, plain.Turns]) -> None:
        """x <- x + mixer(norm x)."""
        buffers, mixer, places = self.buffers, layer.mixer, (self.positions, self.active)
        projected = self.read(layer, buffers)
        if isinstance(mixer, Mix):
            self.ops.mix(projected, mixer, *state, *places, buffers.mixed, buffers.squares, **turns)
            self.write(layer, buffers)
            return
        if isinstance(mixer, Attention):
            self._attend(mixer, projected, state, turns)
        else:
            if mixer.filters is not None:
                self.ops.convolve(projected, mixer, *state, self.active)
            self.ops.linear_mix(projected, mixer, *state, *places, buffers.mixed, **turns)
        self.ops.project(buffers.mixed, layer.out, buffers.x, self.config.norm_eps, residual=buffers.x)

    def read(self, layer: Layer, buffers: Buffers) -> Tensor:
        """What a mixer reads, of all rows."""
        projected = buffers.projected[len(layer.read.weight)]
        self.ops.project(buffers.x, layer.read, projected, self.config.norm_eps)
        return projected

    def write(self, layer: Layer, buffers: Buffers) -> None:
        """x <- x + what a mixer of linear attention gives."""
        eps = self.config.norm_eps
        self.ops.project(buffers.mixed, layer.out, buffers.x, eps, residual=buffers.x, squares=buffers.squares)

    def feed_forward(self, layer: Layer, buffers: Buffers, ahead: dict[str, Tensor]) -> None:
        """x <- x + mlp(norm x)."""
        eps = self.config.norm_eps
        self.ops.project(buffers.x, layer.gate_up, buffers.inner, eps)
        self.ops.project(buffers.inner, layer.down, buffers.x, eps, residual=buffers.x, **ahead)

    def _attend(
        self, mixer: Attention, projected: Tensor, room: tuple[Tensor, ...], turns: dict[str, plain.Turns]
    ) -> None:
        keys, values = room
        places, angles_of, out = (self.positions, self.active), mixer.frequencies, self.buffers.mixed
        if self.ops is plain:
            plain.attend(projected, keys, values, *places, angles_of, out, turns=turns["turns"])
            return
        self.ops.attend(projected, keys, values, *places, angles_of, out, self._scratch)

    @torch.no_grad()
    def put(self, slot: int, state: State | None, length: int) -> None:
        """A model's State of one sequence, which has read `length` tokens, into a slot; None empties it."""
        self.positions[slot] = length
        if state is None:
            for part in self.memory():
                part[slot].zero_()
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

    def memory(self) -> list[Tensor]:
        """What a step changes of all slots' states, a row a slot; keys and values are only added to."""
        encoder = [] if self.encoder_state is None else [self.encoder_state]
        return encoder + [room[0] for room in self.states if len(room) == 1]

    def make_room(self, capacity: int) -> None:
        """Room for so many tokens in softmax layers' slots, more than there is, with what is in them."""
        for layer, room in enumerate(self.states):
            if len(room) == 2:
                wide = tuple(self._cache(capacity, x.shape[2], x.shape[3], x.dtype) for x in room)
                for x, old in zip(wide, room, strict=True):
                    x[:, : self.capacity] = old
                self.states[layer] = wide
        self.capacity = capacity
        self._scratch = self._attention_scratch()

    @torch.no_grad()
    def take(self, slot: int, length: int) -> State:
        """The State of the sequence in a slot, which has read `length` tokens, a copy."""
        layers = tuple(
            KeyValues(*(cache[slot : slot + 1, :length].clone(memory_format=torch.contiguous_format) for cache in room))
            if len(room) == 2
            else room[0][slot : slot + 1].to(torch.float32, copy=True)
            for room in self.states
        )
        embedding = None if self.encoder_state is None else self.encoder_state[slot : slot + 1].clone()
        return State(torch.full((1,), length, device=self.tokens.device), embedding, layers)


def _operators(device: torch.device, dtype: torch.dtype, packed: Packed, head_dim: int) -> ModuleType | Any:
    """The module whose functions run here: kernels where Triton compiles them, for heads of a power of two."""
    widths = {layer.mixer.features_dim for layer in packed.layers if isinstance(layer.mixer, LinearMix)}
    odd = [width for width in (head_dim, *sorted(widths)) if not fits(width)]
    obstacle = f"heads of {odd[0]} are no power of two from 16 on" if odd else None
    if choose("auto", device, dtype, obstacle).form == "triton":
        from linscale.ops.decode import kernel

        return kernel
    return plain
