"""What the kernels' forward pass makes that their backward pass needs too, in one buffer: an operator's output."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

ALIGNED = 128  # bytes: kernels read 16 at a time


def operand_dtype(q: Tensor, k: Tensor, v: Tensor) -> torch.dtype:
    """What the kernels multiply. Inputs in bf16 as they are, at twice the rate of tf32 and from half the room on chip;
    all others as float32."""
    return torch.bfloat16 if {q.dtype, k.dtype, v.dtype} == {torch.bfloat16} else torch.float32


class KeptLayout:
    """Where in the buffer lies what, by name: (N, B, H, ...) each, in the dtype of operands or float32.

    inputs  q, k, v, beta, log_decay or None: (B, T, H, ...)
    size    steps of a chunk
    """

    def __init__(self, inputs: Sequence[Tensor | None], size: int) -> None:
        q, k, v, _, log_decay = inputs
        assert q is not None and k is not None and v is not None  # noqa: PT018
        batch, length, heads, key = k.shape
        value, operand = v.shape[-1], operand_dtype(q, k, v)
        shapes = {
            "transition": (key, key), "reads": (size, key), "similar": (size, size), "inverse": (size, size),
            "before": (key, value), "written": (size, value), **({} if log_decay is None else {"decay": ()}),
        }  # fmt: skip
        self._places: dict[str, tuple[int, tuple[int, ...], torch.dtype]] = {}
        self.bytes = 0
        for name, shape in shapes.items():
            dtype = torch.float32 if name in ("written", "decay") else operand
            whole = ((length + size - 1) // size, batch, heads, *shape)
            self._places[name] = self.bytes, whole, dtype
            self.bytes += (prod(whole) * dtype.itemsize + ALIGNED - 1) // ALIGNED * ALIGNED

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """buffer (bytes,), uint8."""
        found = {}
        for name, (start, shape, dtype) in self._places.items():
            found[name] = buffer[start : start + prod(shape) * dtype.itemsize].view(dtype).view(shape)
        return found
