"""What the kernels of `decay_attention` take of a GPU, without one: registers, stack (spills), shared memory, products.

    .venv/bin/python benchmarks/resources.py [KIND] [--heads 16] [--keys 128] [--values 128]
        [--dtype bfloat16] [--general]

Compiles forward and backward of each kind of decay (or of KIND alone) for Hopper, and reads what the assembler says. An
SM has 65,536 registers and 227 KiB of shared memory: 255 registers and 128 threads allow two programs at a time.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

KINDS = ("none", "head", "token", "channel")
DISASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Hopper:
    """All that Triton asks of a driver in order to compile."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=KINDS)
    for name, default in (("heads", 16), ("keys", 128), ("values", 128), ("length", 2048)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--general", action="store_true", help="not the kernels for Hopper")
    options = parser.parse_args()
    driver.set_active(Hopper())
    for kind in [options.kind] if options.kind else KINDS:
        print(f"{kind}, {options.dtype}, T = {options.length}, K = {options.keys}, V = {options.values}")
        compile_both(kind, options)


def compile_both(kind: str, options: argparse.Namespace) -> None:
    """The kernels of a forward and a backward pass over one sequence."""
    from linscale.ops.decay_attention import hopper, passes
    from linscale.ops.decay_attention.layout import Call
    from linscale.ops.launch import Launch

    Launch.__call__ = report  # type: ignore[method-assign]
    hopper.multiprocessors = lambda device: 132  # type: ignore[assignment]
    hopper.obstacle = lambda device: "not asked for" if options.general else None  # type: ignore[assignment]
    T, H, K, V = options.length, options.heads, options.keys, options.values
    q, k, v = (torch.empty(1, T, H, width, dtype=getattr(torch, options.dtype)) for width in (K, K, V))
    shape = {"head": (H,), "token": (1, T, H), "channel": (1, T, H, K)}.get(kind)
    call = Call(q, k, v, None if shape is None else torch.empty(shape), None, 1.0)
    saved = passes.run_forward(call, None, True)[2]
    passes.run_backward(call, v, saved, None, None, None, kind in ("token", "channel"))


def report(work: Any, pieces: int, tensors: Sequence[Tensor]) -> None:
    """In place of a launch."""
    kernel, programs = work.kernel, pieces * work.programs
    options = {"num_warps": work.warps, "num_stages": work.stages}
    built = kernel.warmup(*tensors, *work.numbers, grid=(programs,), **work.constants, **options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        command = [str(DISASSEMBLER), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: re.search(rf"{name}:(\d+)", text) for name in ("REG", "STACK")}
    registers, stack = (int(match[1]) if match else -1 for match in found.values())
    products = built.asm["ptx"].count("wgmma.mma_async") or built.asm["ptx"].count("mma.sync")
    print(
        f"  {kernel.__name__:<30}{programs:>7} programs of {work.warps} warps{registers:>5} registers{stack:>6} B stack"
        f"{built.metadata.shared:>8} B shared{products:>5} products"
    )


if __name__ == "__main__":
    main()
