"""What is asked of a fit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from linscale.config import UserError


@dataclass(frozen=True)
class Question:
    """Numbers that are given; None for the others. FLOPs are raw, not PFLOP/s-days."""

    flops: float | None = None
    params: float | None = None
    tokens: float | None = None
    unique: float | None = None
    """Unique tokens, of which `tokens` are seen in passes: the repeat law."""
    bpb: float | None = None
    """Bits per byte: the sigmoid law."""
    loss: float | None = None
    """A loss to reach."""

    def __post_init__(self) -> None:
        """Raises UserError for nothing asked, for numbers that are not positive, and for all of FLOPs, N and D."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        for name, value in given.items():
            if not 0 < value < math.inf:
                raise UserError(f"{name} = {value:g}: expected a positive number")
        if not given or set(given) == {"unique"}:
            raise UserError("nothing asked: give --flops, or --params and --tokens, or --loss (or --bpb for a sigmoid)")
        if {"flops", "params", "tokens"} <= set(given):
            raise UserError("flops, params and tokens: two of them give the third; leave one out")
