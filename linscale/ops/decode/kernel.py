"""Launches of the kernels of a decoding step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from linscale.ops.decode.kernels import (
    NORMED,
    PLAIN,
    SUMMED,
    attend_kernel,
    encode_kernel,
    finish_kernel,
    mix_kernel,
    project_kernel,
)
from linscale.ops.decode.linearized_kernels import convolve_kernel, linear_mix_kernel
from linscale.ops.decode.shapes import Divided, Fading, Features, LinearMix, Mix, Projection, Rotary
from linscale.ops.launch import launch

BLOCK = 128  # places of a cache that a program reads
LINE_BYTES = 128  # of L2
MOST_ROWS = 128  # that `project_kernel` multiplies
SLICE, WIDE_SLICE = 32, 64  # columns of a state that a program holds
KINDS = {"plain": 0, "head": 1, "gated": 2}  # as `mix_kernel` names them
# As `linear_mix_kernel` numbers them.
FEATURES, ROTARY, FADING, DIVIDED = map(get_args, (Features, Rotary, Fading, Divided))
CHANNELS = 128  # that a program of `convolve_kernel` filters


@dataclass(frozen=True)
class Tiles:
    """How `project` is cut: outputs a program, inputs a step, warps, and steps loaded ahead."""

    outputs: int
    inputs: int
    warps: int
    stages: int = 1


def tiling(slots: int, outputs: int, inputs: int, paired: bool) -> Tiles:
    """Measured on H100 and H200 at 374M parameters: see benchmarks/NOTES.md. For few sequences a program reads whole
    rows of the matrix, as far as registers go, before what it waits for is there."""
    whole = max(16, 1 << (inputs - 1).bit_length())
    if slots == 1:
        return Tiles(2 if paired or inputs <= outputs // 2 else 4, min(whole, 4096), 2 if paired else 4)
    if outputs > 16384:  # a head
        return Tiles(64, min(whole, 64), 4, 3) if slots <= 16 else Tiles(128, min(whole, 64), 8, 4)
    if slots <= 16:
        if paired:
            return Tiles(16, min(whole, 512), 4, 2)
        if outputs > 2048:
            return Tiles(32, min(whole, 1024), 4)
        return Tiles(16, whole, 2) if whole <= 1024 else Tiles(16, 256, 4, 3)
    if outputs <= 2048:
        return Tiles(16, min(whole, 256), 4, 4)
    return Tiles(64, min(whole, 64 if paired else 128), 4, 4)


def early(device: torch.device) -> bool:
    """Whether kernels may begin before those before them have ended: from Hopper on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def slices(head_dim: int, slots: int, lrpe: bool) -> int:
    """Programs a head in `mix`."""
    return head_dim // min(head_dim, WIDE_SLICE if slots >= 32 and not lrpe else SLICE)


def project(
    x: Tensor,
    part: Projection,
    out: Tensor,
    eps: float,
    *,
    residual: Tensor | None = None,
    squares: Tensor | None = None,
    ahead: Tensor | None = None,
) -> None:
    """See `plain.project`. `ahead` is what a later kernel reads, and is brought into L2 on the way."""
    slots, inputs = x.shape
    outputs = out.shape[1]
    if slots > MOST_ROWS:
        _project_by_library(x, part, out, eps, residual, squares)
        return
    tiles = tiling(slots, outputs, inputs, part.paired)
    norm = SUMMED if squares is not None else NORMED if part.normed else PLAIN
    begin, programs = early(x.device), -(-outputs // tiles.outputs)
    share = 0 if ahead is None or not begin else ahead.nbytes // LINE_BYTES // programs
    lines = 1 << share.bit_length() - 1 if share else 0
    launch(project_kernel, programs, (
        x, part.weight, out, out if residual is None else residual, out if squares is None else squares,
        out if ahead is None else ahead.view(torch.uint8),
    ), (eps, part.silu_until), dict(
        S=slots, K=inputs, N=outputs, PARTS=1 if squares is None else squares.shape[1], NORM=norm.value,
        PAIRED=part.paired, ACTIVATION=part.activation, RESIDUAL=residual is not None,
        BS=1 if slots == 1 else max(16, 1 << (slots - 1).bit_length()), BN=tiles.outputs, BK=tiles.inputs, LINES=lines,
        EARLY=begin,
    ), tiles.warps, tiles.stages, begin)  # fmt: skip


def _project_by_library(
    x: Tensor, part: Projection, out: Tensor, eps: float, residual: Tensor | None, squares: Tensor | None
) -> None:
    """For many rows, where the product is what takes the time: cuBLAS makes it, and a kernel does the rest."""
    across = part.weight.T
    if squares is None and not (part.normed or part.paired or part.silu_until) and residual is not None:
        torch.addmm(residual, x, across, out=out)
        return
    if squares is None and residual is None and not part.paired and not part.silu_until and x.is_cuda:
        x = rms_norm(x, x.shape[1:], eps=eps) if part.normed else x
        torch.mm(x, across, *(() if out.dtype == x.dtype else (out.dtype,)), out=out)
        return
    y = torch.mm(x, across)
    norm, ahead = SUMMED if squares is not None else NORMED if part.normed else PLAIN, early(x.device)
    launch(finish_kernel, len(x), (
        y, x, out if residual is None else residual, out if squares is None else squares, out,
    ), (eps, part.silu_until), dict(
        K=x.shape[1], N=out.shape[1], PARTS=1 if squares is None else squares.shape[1], NORM=norm.value,
        PAIRED=part.paired, ACTIVATION=part.activation, RESIDUAL=residual is not None,
        BN=min(4096, 1 << (out.shape[1] - 1).bit_length()), EARLY=ahead,
    ), 8, early=ahead)  # fmt: skip


def mix(
    projected: Tensor, part: Mix, state: Tensor, positions: Tensor, active: Tensor, out: Tensor, squares: Tensor,
    spans: Tensor | None = None,
) -> None:  # fmt: skip
    """See `plain.mix`; squares (rows, H * slices), one number a program.

    spans   (S, 3) int32: sequence s has `spans[s, 1]` rows, none or more, from `spans[s, 0]` on, which it reads one
            after the other, from an empty state where `spans[s, 2]` is not 0; `active` is not looked at then
    """
    width = projected.shape[1]
    count, ahead = squares.shape[1] // part.n_heads, early(out.device)
    launch(mix_kernel, len(state) * part.n_heads * count, (
        projected, state, positions, active, active if spans is None else spans,
        squares if part.decay is None else part.decay, squares if part.theta is None else part.theta,
        squares if part.gate is None else part.gate, out, squares,
    ), (), dict(
        H=part.n_heads, V=part.head_dim, WIDTH=width, RANK=0 if part.gate is None else part.gate.shape[1],
        KIND=KINDS[part.kind], LRPE=part.theta is not None, FIRST=part.decay is None, BV=part.head_dim // count,
        SPANS=spans is not None, EARLY=ahead,
    ), 4, early=ahead)  # fmt: skip


def convolve(projected: Tensor, part: LinearMix, state: Tensor, active: Tensor) -> None:
    """See `linearized.convolve`."""
    assert part.filters is not None
    ahead, (queries, keys, values) = early(projected.device), part.widths[:3]
    launch(convolve_kernel, len(state) * -(-(queries + keys + values) // CHANNELS), (
        projected, state, active, part.filters,
    ), (), dict(
        H=part.n_heads, ROWS=state.shape[2], K=part.key_width, COLUMNS=part.columns, WIDTH=projected.shape[1],
        QUERIES=queries, KEYS=keys, VALUES=values, TAPS=part.filters.shape[1], BC=CHANNELS, EARLY=ahead,
    ), 4, early=ahead)  # fmt: skip


def linear_mix(
    projected: Tensor, part: LinearMix, state: Tensor, positions: Tensor, active: Tensor, out: Tensor
) -> None:
    """See `linearized.linear_mix`."""
    ahead, bias = early(out.device), part.bias
    columns = part.value_dim if part.divided != "none" else min(part.value_dim, SLICE)
    q_map, k_map = part.maps or (bias, bias)
    angles = part.theta if part.rotary == "lrpe" else part.frequencies
    held = part.key_width * columns  # of the state, by a program
    warps = 4 if held <= 8192 else 8 if held <= 16384 else 16
    launch(linear_mix_kernel, len(state) * part.n_heads * (part.value_dim // columns), (
        projected, state, positions, active, bias, q_map, k_map, bias if angles is None else angles,
        bias if part.decay is None else part.decay, bias if part.gain is None else part.gain, out,
    ), (part.sharpened, part.eps), dict(
        H=part.n_heads, G=part.key_heads, VG=part.value_heads, D=part.head_dim, F=part.features_dim, V=part.value_dim,
        ROWS=state.shape[2], COLUMNS=part.columns, WIDTH=projected.shape[1], FEATURES=FEATURES.index(part.features),
        ROTARY=ROTARY.index(part.rotary), FADING=FADING.index(part.fading), DIVIDED=DIVIDED.index(part.divided),
        DELTA=part.delta, GATE=part.gate, MAPPED=part.maps is not None, BV=columns, EARLY=ahead,
    ), warps, early=ahead)  # fmt: skip


def encode(
    x: Tensor, state: Tensor, active: Tensor, log_rate: Tensor, weight: Tensor, spans: Tensor | None = None
) -> None:
    """See `plain.encode`; spans as in `mix`."""
    ahead, block = early(x.device), 64
    launch(encode_kernel, len(state) * -(-x.shape[1] // block), (
        x, state, active, active if spans is None else spans, log_rate, weight,
    ), (), dict(
        D=x.shape[1], E=weight.shape[1], BD=block, SPANS=spans is not None, EARLY=ahead,
    ), 4, early=ahead)  # fmt: skip


def attend(
    projected: Tensor, keys: Tensor, values: Tensor, positions: Tensor, active: Tensor, frequencies: Tensor,
    out: Tensor, scratch: tuple[Tensor, ...],
) -> None:  # fmt: skip
    """See `plain.attend`; scratch as `attend_scratch` makes it."""
    slots, (capacity, groups, width) = len(out), keys.shape[1:]
    heads, splits, ahead = out.shape[1] // width, -(-capacity // BLOCK), early(out.device)
    launch(attend_kernel, slots * heads * splits, (
        projected, keys, values, positions, active, frequencies, *scratch, out,
    ), (width**-0.5,), dict(
        H=heads, G=groups, K=width, CAPACITY=capacity, WIDTH=projected.shape[1], SPLITS=splits, BT=BLOCK, EARLY=ahead,
    ), 4, early=ahead)  # fmt: skip


def attend_scratch(out: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `attend` works in: averages of splits, their scores and sums, and a count, which is 0 between calls."""
    capacity, width = keys.shape[1], keys.shape[3]
    heads, splits = out.shape[1] // width, -(-capacity // BLOCK)
    pieces = (len(out), heads, splits)
    return (
        torch.empty(*pieces, width, device=out.device),
        torch.empty(*pieces, 2, device=out.device),
        torch.zeros(pieces[:2], dtype=torch.int32, device=out.device),
    )
