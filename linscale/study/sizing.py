"""From a number of parameters to a shape: width, depth, heads.

What is known of aspect ratios (arXiv 2406.16690, section on width and depth; specification of its 1B variants): widths
of 1536 to 2048 at 1B, 48 to 114 times the depth, do as well as each other; 3072 x 8, 384 times, is worse for all and
ruins recall in cosFormer2. The published family has d/l of 39 to 128. So d/l aims at 64, at less in small models,
which have few layers otherwise, and at up to 100 in large ones, and stays within a factor of two of that.

Widths are multiples of what matrix products and the attention kernels like: heads of 128 from a width of 512 on, as
published, and 64, 32 or 16 below; 8 where a width below 64 is no multiple of 16.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from linscale.config import UserError
from linscale.models import CONFIGS
from linscale.models.count import paper_parameters
from linscale.models.language_model import LanguageModelConfig

# from this width on: multiple of the width, head width, multiple that the GLU's 8/3 of the width is rounded up to
GRID = (
    (16, 8, 16, 16),
    (64, 16, 16, 16),
    (128, 32, 32, 32),
    (256, 64, 64, 64),
    (512, 128, 128, 256),
    (2048, 256, 128, 256),
)
WIDEST = 16_384
CLOSE = 0.03  # in log N: shapes within it are told apart by their aspect alone


class Shape(NamedTuple):
    """Width and depth, with the head and GLU widths that go with the width."""

    d_model: int
    n_layers: int
    head_dim: int
    d_ff: int

    @property
    def name(self) -> str:
        return f"{self.d_model}x{self.n_layers}"

    def config(self, arch: str, vocab_size: int) -> LanguageModelConfig:
        """The config of an architecture in this shape."""
        return CONFIGS[arch](vocab_size=vocab_size, **self._asdict())


def ideal_aspect(d_model: int) -> float:
    """Width over depth aimed at: d/4 held between 24 and 64 up to a width of 2048, then d/32 up to 100."""
    return min(max(d_model / 4, 24.0), 64.0) if d_model <= 2048 else min(d_model / 32, 100.0)


def widths() -> Iterator[tuple[int, int, int]]:
    """Every width with its head width and GLU width."""
    for (first, step, head_dim, multiple), end in zip(GRID, [row[0] for row in GRID[1:]] + [WIDEST + 1], strict=True):
        for d_model in range(first, end, step):
            yield d_model, math.gcd(head_dim, d_model), multiple * -(-8 * d_model // (3 * multiple))


def shapes() -> Iterator[Shape]:
    """Every shape that is considered."""
    for d_model, head_dim, d_ff in widths():
        ideal = ideal_aspect(d_model)
        for n_layers in range(max(1, math.ceil(d_model / ideal / 2)), math.floor(2 * d_model / ideal) + 1):
            yield Shape(d_model, n_layers, head_dim, d_ff)


def count(arch: str, shape: Shape) -> int:
    """N, non-embedding parameters by the paper's formula."""
    return paper_parameters(shape.config(arch, 1))


def smallest(arch: str) -> int:
    """Parameters of the smallest shape."""
    return count(arch, next(shapes()))


def nearest_shape(arch: str, params: float) -> Shape:
    """The shape whose N is nearest to `params`; of those within 3%, the one with the best aspect ratio.

    Raises UserError where `params` are less than 0.7 times those of the smallest shape, or more than 1.5 times the
    largest's. Between the smallest shapes the nearest may be off by a factor of two.
    """
    distances = {}
    for shape in shapes():
        rough = (4 * shape.d_model + 3 * shape.d_ff) * shape.d_model * shape.n_layers
        if 0.3 < rough / params < 3:
            distances[shape] = abs(math.log(count(arch, shape) / params))
    least = next(shapes())
    if not distances or params < 0.7 * count(arch, least):
        raise UserError(
            f"{arch}: {params:.3g} parameters: no sensible shape is near; the smallest, {least.name}, has "
            f"{count(arch, least):,}, and the widest is {WIDEST}"
        )
    nearest = min(distances.values())
    close = [shape for shape, distance in distances.items() if distance <= max(CLOSE, nearest)]
    return min(close, key=lambda shape: abs(math.log(shape.d_model / shape.n_layers / ideal_aspect(shape.d_model))))
