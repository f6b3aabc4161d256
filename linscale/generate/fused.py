"""A decoding step of S sequences on a GPU in five kernels a layer, on buffers that a CUDA graph can hold.

What `LanguageModel.read` and `logits` compute for one token of every sequence, with states changed in place. Norms
without weights become a factor a row, and those with weights are multiplied into the matrix behind them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from linscale.generate.packing import Layer, pack_head, pack_layer
from linscale.models import LanguageModel
from linscale.ops.launch import launch


@dataclass(frozen=True)
class Tiles:
    """How `project` is cut: outputs a program, inputs a step, warps, and steps loaded ahead."""

    outputs: int
    inputs: int
    warps: int
    stages: int


class FusedStep:
    """Buffers and launches of a step. Set `tokens` and `active`, call `run`, read `logits`.

    slots     S, sequences at most
    capacity  places of softmax layers' caches
    """

    def __init__(
        self, model: LanguageModel, slots: int, capacity: int, *, dtype: torch.dtype, state_dtype: torch.dtype
    ) -> None:
        config, device = model.config, model.embedding.weight.device
        self.config, self.slots, self.capacity = config, slots, capacity
        self.early = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
        self.layers = [pack_layer(model, layer, dtype) for layer in range(config.n_layers)]
        self.embedding = model.embedding.weight.detach().to(dtype)
        self.head = pack_head(model, dtype)
        width = max(layer.project.shape[0] for layer in self.layers)
        new: Any = {"device": device, "dtype": dtype}
        self.tokens = torch.zeros(slots, dtype=torch.int64, device=device)
        self.positions = torch.zeros(slots, dtype=torch.int64, device=device)
        self.active = torch.zeros(slots, dtype=torch.int32, device=device)
        self.x = torch.zeros(slots, config.d_model, **new)
        self.projected = torch.zeros(slots * width, **new)
        self.mixed = torch.zeros(slots, config.d_model, **new)
        self.inner = torch.zeros(slots, config.glu_width, **new)
        self.logits = torch.zeros(slots, config.vocab_size, device=device, dtype=torch.float32)
        self.slices = config.head_dim // min(32, config.head_dim)
        self.sums = torch.zeros(slots, config.n_heads * self.slices, device=device)
        self.states = [self._state(layer, state_dtype, dtype) for layer in self.layers]
        self.splits = -(-capacity // BLOCK)
        if any(layer.kind == "softmax" for layer in self.layers):
            pieces = (slots, config.n_heads, self.splits)
            self.partial = torch.zeros(*pieces, config.head_dim, device=device)
            self.weights = torch.zeros(*pieces, 2, device=device)
            self.queries = torch.zeros(slots, config.n_heads, config.head_dim, **new)

    def _state(self, layer: Layer, state_dtype: torch.dtype, dtype: torch.dtype) -> tuple[Tensor, ...]:
        heads, width, device = self.config.n_heads, self.config.head_dim, self.tokens.device
        if layer.kind == "softmax":
            shape = (self.slots, self.capacity, heads, width)
            return torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype)
        keys = 2 * width if layer.theta is not None else width
        return (torch.zeros(self.slots, heads, keys, width, device=device, dtype=state_dtype),)

    def run(self) -> None:
        """One token of every active sequence."""
        torch.index_select(self.embedding, 0, self.tokens, out=self.x)
        for layer, state in zip(self.layers, self.states, strict=True):
            self._layer(layer, state)
        self.project(self.x, self.head, self.logits, normed=True)
        self.positions.add_(self.active)

    def _layer(self, layer: Layer, state: tuple[Tensor, ...]) -> None:
        width = layer.project.shape[0]
        projected = self.projected[: self.slots * width].view(self.slots, width)
        self.project(self.x, layer.project, projected, normed=True, silu_until=layer.silu_until)
        if layer.kind == "softmax":
            self._attend(layer, projected, *state)
            self.project(self.mixed, layer.out, self.x, residual=self.x)
        else:
            self._mix(layer, projected, *state)
            self.project(self.mixed, layer.out, self.x, residual=self.x, sums=self.sums)
        self.project(self.x, layer.gate_up, self.inner, normed=True, paired=True, activation=layer.activation)
        self.project(self.inner, layer.down, self.x, residual=self.x)

    def project(
        self, x: Tensor, weight: Tensor, out: Tensor, *, normed: bool = False, sums: Tensor | None = None,
        residual: Tensor | None = None, silu_until: int = 0, paired: bool = False, activation: bool = False,
    ) -> None:  # fmt: skip
        """See `project_kernel`."""
        from linscale.ops.decode.kernels import NORMED, PLAIN, SUMMED, project_kernel

        tiles = tiling(self.slots, out.shape[1], x.shape[1], paired)
        norm = SUMMED if sums is not None else NORMED if normed else PLAIN
        launch(project_kernel, -(-out.shape[1] // tiles.outputs), (
            x, weight, out, out if residual is None else residual, out if sums is None else sums,
        ), (self.config.norm_eps, silu_until), dict(
            S=self.slots, K=x.shape[1], N=out.shape[1], PARTS=1 if sums is None else sums.shape[1], NORM=norm.value,
            PAIRED=paired, ACTIVATION=activation, RESIDUAL=residual is not None,
            BS=1 if self.slots == 1 else max(16, 1 << (self.slots - 1).bit_length()), BN=tiles.outputs, BK=tiles.inputs, EARLY=self.early,
        ), tiles.warps, tiles.stages, self.early)  # fmt: skip

    def _mix(self, layer: Layer, projected: Tensor, state: Tensor) -> None:
        from linscale.ops.decode.kernels import mix_kernel

        heads, width = self.config.n_heads, self.config.head_dim
        unused = self.sums
        launch(mix_kernel, self.slots * heads * self.slices, (
            projected, state, self.positions, self.active, unused if layer.decay is None else layer.decay,
            unused if layer.theta is None else layer.theta, unused if layer.gate is None else layer.gate, self.mixed,
            self.sums,
        ), (), dict(
            S=self.slots, H=heads, V=width, WIDTH=projected.shape[1],
            RANK=0 if layer.gate is None else layer.gate.shape[1], KIND=DECAYS[layer.kind],
            LRPE=layer.theta is not None, FIRST=layer.first, BV=width // self.slices, EARLY=self.early,
        ), 4, early=self.early)  # fmt: skip

    def _attend(self, layer: Layer, projected: Tensor, keys: Tensor, values: Tensor) -> None:
        from linscale.ops.decode.kernels import append_kernel, attend_kernel, combine_kernel

        heads, width = self.config.n_heads, self.config.head_dim
        assert layer.frequencies is not None
        launch(append_kernel, self.slots * heads, (
            projected, keys, values, self.positions, self.active, layer.frequencies, self.queries,
        ), (), dict(H=heads, G=heads, K=width, CAPACITY=self.capacity, WIDTH=projected.shape[1], EARLY=self.early),
            1, early=self.early)  # fmt: skip
        shape = dict(H=heads, K=width, SPLITS=self.splits, BT=BLOCK, EARLY=self.early)
        launch(attend_kernel, self.slots * heads * self.splits, (
            self.queries, keys, values, self.positions, self.active, self.partial, self.weights,
        ), (width**-0.5,), dict(
            H=heads, G=heads, K=width, CAPACITY=self.capacity, SPLITS=self.splits, BT=BLOCK, EARLY=self.early,
        ), 4, early=self.early)  # fmt: skip
        launch(
            combine_kernel, self.slots * heads,
            (self.partial, self.weights, self.positions, self.active, self.mixed), (), shape, 1, early=self.early,
        )  # fmt: skip


BLOCK = 128  # places of a cache that a program reads
DECAYS = {"plain": 0, "head": 1, "gated": 2}  # layer kinds as `mix_kernel` names them


def tiling(slots: int, outputs: int, inputs: int, paired: bool) -> Tiles:
    """Tiles of `project` by shape."""
    if slots == 1:
        return Tiles(4 if paired else 8, min(512, 1 << (inputs - 1).bit_length()), 4, 2)
    return Tiles(16, min(128, max(16, 1 << (inputs - 1).bit_length())), 4, 3)
