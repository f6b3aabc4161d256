"""The one place that decides which form of an operator runs, and in what precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch

Backend = Literal["auto", "reference", "chunk"]
"""auto: the fastest form that this device can run. reference: the loop over time, the definition.
chunk: plain PyTorch, many steps at a time; runs on every device."""


def segment_tokens(device: torch.device) -> int:
    """Tokens that the chunk form works on at a time: on a CPU what stays in cache, elsewhere what fills the device."""
    return 512 if device.type == "cpu" else 1 << 17


def resolve_backend(backend: Backend) -> Literal["reference", "chunk"]:
    """The form that `backend` names. Raises ValueError on an unknown name."""
    if backend not in get_args(Backend):
        raise ValueError(f"backend = {backend!r}: expected one of {', '.join(get_args(Backend))}")
    return "reference" if backend == "reference" else "chunk"


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """For recurrences: they accumulate, and under autocast their products would fall back to bf16. Meta has none."""
    return torch.autocast(device.type, enabled=False) if device.type != "meta" else nullcontext()
