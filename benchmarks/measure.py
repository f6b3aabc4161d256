"""Time, memory and error of a call: the same definitions for ours and for the peer."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from rows import Inputs
from torch import Tensor

from linscale.ops import decay_attention

Operator = Callable[[Inputs], Tensor]
"""Inputs -> o."""

TOLERANCE = {"o": 1e-2, "dq": 1e-2, "dk": 1e-2, "dv": 1e-2, "dg": 2e-2}  # |x - reference| / |reference|, Frobenius
NOISE = 1.05  # an error up to this many times the peer's counts as no larger


def forward_call(operator: Operator, x: Inputs) -> Callable[[], Tensor]:
    """The forward pass alone, nothing kept for a backward pass."""

    def run() -> Tensor:
        with torch.no_grad():
            return operator(x)

    return run


def both_call(operator: Operator, x: Inputs) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward: o and the gradients of every leaf."""

    def run() -> tuple[Tensor, ...]:
        o = operator(x)
        return o, *torch.autograd.grad(o, x.leaves, x.do)

    return run


def median_ms(work: Callable[[], object], device: torch.device) -> float:
    """Median milliseconds of a warm call, by device events, with a cold L2 before each."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return float(do_bench(work, warmup=25, rep=100, return_mode="median"))
    work()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def graphed(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The same work as one CUDA graph, so that short kernels are not timed by what launching them costs in Python."""
    if device.type != "cuda":
        return work
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Most memory that a warm call holds at once, its results included, above what was held before it."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize()
    gc.collect()  # what is let go during the call would be counted off its peak
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def attempt(work: Callable[[], dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """What `work` returns, or {"failed": why}. Raises where the device itself is lost: nothing after it would hold."""
    try:
        found = work()
    except Exception as error:  # whatever a kernel under test can raise
        found = {"failed": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"}
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    return found


@dataclass(frozen=True)
class Ceilings:
    """What this device reaches: bytes read and written a second in a large copy, and FLOP/s of a large product."""

    copy_bytes_per_s: float
    matmul_flops: float


def ceilings(device: torch.device) -> Ceilings:
    """Measured, on random data: a copy of 2 GiB and an 8192^3 product in bf16."""
    dtype = torch.bfloat16
    entries, side = (1 << 30, 8192) if device.type == "cuda" else (1 << 22, 256)
    x = torch.randn(entries, device=device, dtype=dtype)
    y = torch.empty_like(x)
    copy_s = median_ms(lambda: y.copy_(x), device) / 1e3
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    matmul_s = median_ms(lambda: a @ b, device) / 1e3
    return Ceilings(2 * 2 * entries / copy_s, 2 * side**3 / matmul_s)


def reference_results(x: Inputs) -> tuple[Tensor, ...]:
    """o and the gradients of the last sequence in float64, by the chunk form: not by any kernel under test."""
    return both_call(in_float64, x.sequence(x.q.shape[0] - 1, torch.float64))()


def in_float64(x: Inputs) -> Tensor:
    return decay_attention(x.q, x.k, x.v, x.log_decay, backend="chunk")[0]


def relative_errors(
    results: tuple[Tensor, ...], reference: tuple[Tensor, ...], names: Iterable[str] = TOLERANCE
) -> dict[str, float]:
    """Of o, dq, dk, dv and dg, as far as `results` goes; infinite where anything in the whole batch is not finite."""
    errors = {}
    for name, result, true in zip(names, results, reference, strict=False):
        finite = bool(result.isfinite().all())
        error = ((result[-1:].double() - true).norm() / true.norm()).item()
        errors[name] = error if finite else math.inf
    return errors


def numerics_failures(ours: dict[str, float], peer: dict[str, float]) -> list[str]:
    """Why no speed-up may be printed: errors above the tolerance, or above the peer's. Empty when all is well."""
    failures = []
    for name, error in ours.items():
        theirs = peer.get(name, math.inf)
        if not error <= TOLERANCE[name]:
            failures.append(f"{name} {error:.1e} > tolerance {TOLERANCE[name]:.0e}")
        elif error > NOISE * theirs:
            failures.append(f"{name} {error:.2e} > peer's {theirs:.2e}")
    return failures
