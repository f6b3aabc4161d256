"""The one place that decides which form of an operator runs, and in what precision."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Literal, NamedTuple, TypeVar, get_args

import torch

Backend = Literal["auto", "reference", "chunk", "triton"]
"""auto: the fastest form that this device can run. reference: the loop over time, the definition.
chunk: plain PyTorch, many steps at a time; runs on every device. triton: GPU kernels."""

Form = Literal["reference", "chunk", "triton"]
Function = TypeVar("Function", bound=Callable[..., object])
BACKENDS = get_args(Backend)

LEAST_TRITON, TESTED_TRITON = (3, 4), "3.6"
LEAST_CAPABILITY = (8, 0)  # Ampere: bf16 products on the matrix units, and asynchronous copies
KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class Choice(NamedTuple):
    """Which form of an operator runs, and why that one."""

    form: Form
    reason: str


KERNELS = Choice("triton", f"a GPU that Triton compiles for (tested with Triton {TESTED_TRITON})")


def choose(backend: Backend, device: torch.device, dtype: torch.dtype, obstacle: str | None = None) -> Choice:
    """The form that `backend` means for tensors of `dtype` on `device`.

    obstacle  why the kernels of the operator at hand cannot take these shapes, or None
    Raises ValueError on an unknown name, and where "triton" is asked for but cannot run: it never falls back.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend = {backend!r}: expected one of {', '.join(BACKENDS)}")
    if backend in ("reference", "chunk"):
        return Choice(backend, "asked for by name")
    if dtype not in KERNEL_DTYPES:
        obstacle = f"the kernels take bfloat16, float16 and float32, not {str(dtype).removeprefix('torch.')}"
    obstacle = obstacle or triton_obstacle(device.type, device.index)
    if obstacle is None:
        return KERNELS
    if backend == "triton":
        raise ValueError(f"backend = 'triton' cannot run here: {obstacle}. backend = 'auto' takes what can")
    return Choice("chunk", obstacle)


def constant_result(function: Function) -> Function:
    """torch.compile calls it once as it traces and keeps what it gave.

    That is torch.compiler.assume_constant_result, which sets the same mark but imports the compiler: a second of every
    process, though most never compile.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_result
def triton_obstacle(device_type: str, index: int | None) -> str | None:
    """Why Triton kernels cannot run on this device, or None. Imports Triton, but never from a process without GPU."""
    if device_type != "cuda" and not interpreting():
        return f"Triton kernels need a CUDA or ROCm GPU, the tensors are on {device_type}"
    return _installed_obstacle(device_type, index)


@cache
def _installed_obstacle(device_type: str, index: int | None) -> str | None:
    """What a process finds the same at every call: once, because asking takes as long as launching a kernel."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (it comes with torch's CUDA builds: pip install triton)"
    version = str(importlib.import_module("triton").__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < LEAST_TRITON:
        return f"triton {version} is older than {LEAST_TRITON[0]}.{LEAST_TRITON[1]} (pip install --upgrade triton)"
    if device_type == "cuda" and torch.cuda.get_device_capability(index) < LEAST_CAPABILITY:
        capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
        return f"compute capability {capability} is below {LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]} (Ampere)"
    return None


def interpreting() -> bool:
    """Whether Triton's interpreter is on (TRITON_INTERPRET=1): kernels then run on a CPU, slowly, for tests."""
    if importlib.util.find_spec("triton") is None:
        return False
    return bool(importlib.import_module("triton").knobs.runtime.interpret)


def segment_tokens(device: torch.device) -> int:
    """Tokens that the chunk form works on at a time: on a CPU what stays in cache, elsewhere what fills the device."""
    return 512 if device.type == "cpu" else 1 << 17


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """For recurrences: they accumulate, and under autocast their products would fall back to bf16. Meta has none."""
    return torch.autocast(device.type, enabled=False) if device.type != "meta" else nullcontext()


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What products on this device are made in under the autocast that is on, or None."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)
