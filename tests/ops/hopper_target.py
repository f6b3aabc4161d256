"""Compiles Triton's and Gluon's kernels for Hopper on a machine that has no GPU."""

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

DISASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Hopper:
    """All that Triton asks of a driver in order to compile; the device is none that a launch would ask for."""

    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: -1)
    get_current_stream = staticmethod(lambda device=None: 0)


@dataclass(frozen=True)
class Compiled:
    registers: int  # of a thread, at most 255
    stack: int  # bytes of a thread: spilled registers
    shared: int  # bytes of a program, at most 232,448
    products: int  # wgmma instructions
    barriers: int  # bar.sync instructions, those that Triton adds included
    ptx: str


def compile_for_hopper(
    kernel: Any, tensors: Sequence[Tensor], numbers: Sequence[int | float], constants: dict[str, Any], warps: int
) -> Compiled:
    before = driver._active
    driver.set_active(Hopper())
    try:
        built = kernel.warmup(*tensors, *numbers, grid=(1,), **constants, num_warps=warps)
    finally:
        driver._active = before
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        command = [str(DISASSEMBLER), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.findall(rf"{name}:(\d+)", usage)[0]) for name in ("REG", "STACK"))
    ptx = built.asm["ptx"]
    return Compiled(registers, stack, built.metadata.shared, ptx.count("wgmma.mma_async"), ptx.count("bar.sync"), ptx)
