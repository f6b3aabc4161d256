"""The frozen model that a run learns from: what it gives for a text, without gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

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
    return Seen(*teacher.watch(tokens, cu_seqlens, before=before))


@torch.no_grad()
def read(teacher: LanguageModel, tokens: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """What its head reads, (B, T, D), and the head's weight (vocab, D)."""
    weights: list[Tensor] = []

    def keep(x: Tensor, weight: Tensor) -> Tensor:
        weights.append(weight)
        return x

    return teacher.read_into(keep, tokens, cu_seqlens), weights[0]
