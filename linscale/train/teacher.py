"""The frozen model that a run learns from: what it gives for a text, without gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from linscale.models import LanguageModel


class Seen(NamedTuple):
    """What passes the mixers of a model, a tensor a layer."""

    entered: list[Tensor]
    """What goes in, behind the norm: (B, T, D)."""
    left: list[Tensor]
    """What comes out: (B, T, D), or before o_proj (B, T, H V)."""


@torch.no_grad()
def observe(teacher: LanguageModel, tokens: Tensor, cu_seqlens: Tensor | None, *, before: bool) -> Seen:
    """What enters and leaves every mixer, in one pass; `before`: before its o_proj."""
    seen = Seen([], [])
    handles = [handle for block in teacher.blocks for handle in _watch(block.get_submodule("mixer"), seen, before)]
    try:
        teacher.read_into(_nothing, tokens, cu_seqlens)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@torch.no_grad()
def read(teacher: LanguageModel, tokens: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """What its head reads, (B, T, D), and the head's weight (vocab, D)."""
    weights: list[Tensor] = []

    def keep(x: Tensor, weight: Tensor) -> Tensor:
        weights.append(weight)
        return x

    return teacher.read_into(keep, tokens, cu_seqlens), weights[0]


def _nothing(x: Tensor, weight: Tensor) -> Tensor:
    return x


def _watch(mixer: nn.Module, seen: Seen, before: bool) -> list[torch.utils.hooks.RemovableHandle]:
    def enters(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.entered.append(inputs[0])

    def leaves(module: nn.Module, inputs: tuple[Any, ...], output: Any = None) -> None:
        seen.left.append(inputs[0] if before else output[0])

    last = mixer.get_submodule("o_proj").register_forward_pre_hook(leaves) if before else None
    return [mixer.register_forward_pre_hook(enters), last or mixer.register_forward_hook(leaves)]
