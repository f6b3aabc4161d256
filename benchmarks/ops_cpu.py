"""What `benchmarks/ops.py` does without a GPU: the chunk form against the loop over time, and against length.

Forward and backward together, float32, H = 4, K = V = 64, one sequence; the median of several calls after one to warm
up. The floor reads q, k, v and do once and writes o and the gradients once, at the measured copy rate.
"""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from linscale.ops import decay_attention
from linscale.run_folder import code_version

HEADS, WIDTH = 4, 64
KINDS = ("none", "head", "token", "channel")
LENGTHS = (1024, 4096, 16384, 65536)


def main(threads: int, out: Path | None) -> None:
    """Print the table, and write it where `out` says."""
    torch.set_num_threads(threads)
    rate = copy_rate()
    print(f"{processor()}, {threads} threads, torch {torch.__version__}, copy {rate / 1e9:.1f} GB/s")
    print(f"{'decay':<9}{'loop 1k':>10}{'chunk 1k':>10}{'ratio':>8}   us a token at " + ", ".join(map(str, LENGTHS)))
    rows = [measure(kind, rate) for kind in KINDS]
    if out:
        record = {
            "date": datetime.date.today().isoformat(),
            "device": processor(),
            "threads": threads,
            "torch": torch.__version__,
            "code": code_version(),
            "copy_bytes_per_s": rate,
            "rows": rows,
        }
        out.write_text(json.dumps(record, indent=1) + "\n")


def measure(kind: str, rate: float) -> dict[str, object]:
    """One row of the table."""
    loop = median_s(call(kind, 1024, "reference"), repeats=3)
    chunk = {length: median_s(call(kind, length, "chunk"), repeats=15 if length < 5000 else 5) for length in LENGTHS}
    per_token = [1e6 * seconds / length for length, seconds in chunk.items()]
    floor = floor_bytes(kind) / rate * 1e6
    costs = " ".join(f"{cost:7.2f}" for cost in per_token)
    print(
        f"{kind:<9}{loop * 1e3:>7.1f} ms{chunk[1024] * 1e3:>7.1f} ms{loop / chunk[1024]:>7.1f}x   {costs}"
        f"   64k/1k {per_token[-1] / per_token[0]:.2f}   floor {floor:.2f}"
    )
    return {
        "decay": kind,
        "loop_s_1024": loop,
        "chunk_s": {str(length): seconds for length, seconds in chunk.items()},
        "ratio_1024": loop / chunk[1024],
        "cost_64k_over_1k": per_token[-1] / per_token[0],
        "floor_us_per_token": floor,
    }


def call(kind: str, length: int, backend: str) -> Callable[[], object]:
    """A forward and backward pass over fresh inputs."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, length, HEADS, WIDTH, requires_grad=True) for _ in range(3))
    shape = {"head": (HEADS,), "token": (1, length, HEADS), "channel": (1, length, HEADS, WIDTH)}.get(kind)
    log_decay = None if shape is None else torch.nn.functional.logsigmoid(2 + torch.randn(shape)).requires_grad_()
    leaves = [x for x in (q, k, v, log_decay) if x is not None]
    do = torch.randn(1, length, HEADS, WIDTH)

    def run() -> object:
        o, _ = decay_attention(q, k, v, log_decay, backend=backend)  # type: ignore[arg-type]
        return torch.autograd.grad(o, leaves, do)

    return run


def floor_bytes(kind: str) -> int:
    """Bytes a token that any form must move: q, k, v, o, then q, k, v, do, dq, dk, dv; per channel also g, g, dg."""
    return 4 * HEADS * WIDTH * (11 + (3 if kind == "channel" else 0))


def copy_rate() -> float:
    """Bytes per second read and written by a large copy."""
    x = torch.ones(1 << 26)
    y = torch.empty_like(x)
    return 2 * x.numel() * 4 / median_s(lambda: y.copy_(x), repeats=5)


def median_s(work: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def processor() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()
