"""The one place that decides which form of an operator runs."""

from __future__ import annotations

from typing import Literal, get_args

Backend = Literal["auto", "reference", "chunk"]
"""auto: the fastest form that this device can run. reference: the loop over time, the definition.
chunk: plain PyTorch, many steps at a time; runs on every device."""


def resolve_backend(backend: Backend) -> Literal["reference", "chunk"]:
    """The form that `backend` names. Raises ValueError on an unknown name."""
    if backend not in get_args(Backend):
        raise ValueError(f"backend = {backend!r}: expected one of {', '.join(get_args(Backend))}")
    return "reference" if backend == "reference" else "chunk"
