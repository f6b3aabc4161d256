"""Model FLOP utilisation: what a model gets out of a device, as a share of what plain matrix products get out of it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def matrix_rate(device: str) -> float:
    """FLOP/s of a square matrix product of random numbers, in bf16 on CUDA and in fp32 on the CPU. Takes milliseconds.

    Random, because a GPU runs faster, at less power, on equal ones.
    """
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (512, torch.float32)
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(size, size, device=device, dtype=dtype, generator=generator)
    return 2 * size**3 / fastest(lambda: a @ a, device, repeats=5)


def fastest(work: Callable[[], object], device: str, repeats: int) -> float:
    """Seconds of the fastest of `repeats` calls, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
