"""Random numbers that are a function of (seed, step): no generator, so nothing that else is drawn can change them.

splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"; constants of Stafford's mix
13) in int64, whose products wrap around: the same bits on every device and in any batch.
"""

from __future__ import annotations

from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # odd, 2^64 / golden ratio
FIRST, SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def uniform(seed: Tensor, step: Tensor) -> Tensor:
    """float64 in [0, 1), multiples of 2^-53, of the shape of both: number `step` of the sequence of `seed`, int64 both.

    Sequences of different seeds start at places of splitmix64's one cycle of 2^64 that its own mix chooses.
    """
    bits = mix(mix(seed + GOLDEN) + (step + 1) * GOLDEN)
    return _shift(bits, 11).double() * 2.0**-53


def mix(x: Tensor) -> Tensor:
    """A bijection of 64 bits under which neighbours become unlike."""
    x = (x ^ _shift(x, 30)) * FIRST
    x = (x ^ _shift(x, 27)) * SECOND
    return x ^ _shift(x, 31)


def _shift(x: Tensor, count: int) -> Tensor:
    """The 64 bits moved right, zeros behind them: >> alone repeats the sign."""
    return (x >> count) & ((1 << (64 - count)) - 1)
