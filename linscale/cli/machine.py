"""What a machine has, which form of every operator it runs, and what would make it faster."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention

from linscale.distributed import cores
from linscale.ops.backend import KERNEL_DTYPES, Choice
from linscale.ops.cross_entropy import serving as serving_cross_entropy
from linscale.ops.decay_attention import serving
from linscale.ops.linear_scan import serving as serving_scan
from linscale.run_folder import code_version

NVIDIA_DRIVER, AMD_DRIVER = Path("/proc/driver/nvidia/version"), Path("/dev/kfd")
CPU_INFO = Path("/proc/cpuinfo")
TRITON_PACKAGES = ("triton", "pytorch-triton-rocm", "pytorch-triton", "triton-windows")
GET_TORCH = "https://pytorch.org/get-started/locally"


def versions() -> dict[str, Any]:
    """Of everything that decides which kernels run. Null for what is not there."""
    return {
        "linscale": code_version(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "cuda_runtime": torch.version.cuda,
        "rocm_runtime": torch.version.hip,
        "driver": driver(),
        "triton": triton_version(),
    }


def triton_version() -> str | None:
    """Of the installed package, without importing it."""
    for package in TRITON_PACKAGES:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def driver() -> str | None:
    """Of a GPU, as the kernel tells: also where torch cannot use it."""
    if NVIDIA_DRIVER.exists():
        number = re.search(r"\d+(\.\d+)+", NVIDIA_DRIVER.read_text(encoding="utf-8", errors="replace"))
        return f"NVIDIA {number[0]}" if number else "NVIDIA"
    return "AMD" if AMD_DRIVER.exists() else None


def devices() -> list[dict[str, Any]]:
    """The GPUs that torch sees, then the CPU."""
    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        gpu = torch.cuda.get_device_properties(index)
        found.append(
            {
                "device": f"cuda:{index}",
                "name": gpu.name,
                "memory_bytes": gpu.total_memory,
                "capability": f"{gpu.major}.{gpu.minor}",
                "multiprocessors": gpu.multi_processor_count,
            }
        )
    cpu = {"device": "cpu", "name": processor(), "memory_bytes": _cpu_memory_bytes()}
    return [*found, cpu | {"cores": cores(), "threads": torch.get_num_threads()}]


def processor() -> str:
    """The CPU's name where the system tells it, else its architecture."""
    if CPU_INFO.exists():
        name = re.search(r"^model name\s*:\s*(.+)$", CPU_INFO.read_text(encoding="utf-8", errors="replace"), re.M)
        if name:
            return name[1].strip()
    return platform.processor() or platform.machine()


def _cpu_memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def working_device() -> tuple[torch.device, str | None]:
    """The device that training takes, and why it is not the GPU that torch sees, if one is there but refuses work."""
    if not torch.cuda.is_available():
        return torch.device("cpu"), None
    try:
        torch.zeros(1, device="cuda").item()
    except RuntimeError as error:
        return torch.device("cpu"), str(error).splitlines()[0]
    return torch.device("cuda"), None


def operators(device: torch.device) -> list[dict[str, Any]]:
    """Operator, dtypes of its inputs, the form that serves them on `device`, and why that one."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for dtype in KERNEL_DTYPES:
        form, why = _attention(dtype, device)
        x = torch.empty(1, 1, 64, dtype=dtype, device=device)
        for operator, served in (
            ("decay_attention", (form, why)),
            ("decay_attention_step", (form if form == "triton" else "reference", why)),
            ("linear_scan", serving_scan("auto", x, x)),
            ("linear_cross_entropy", _cross_entropy(x)),
            ("softmax attention", ("torch", _softmax(dtype, device))),
        ):
            rows.setdefault((operator, *served), []).append(str(dtype).removeprefix("torch."))
    order = sorted(rows, key=lambda row: list(dict.fromkeys(operator for operator, *_ in rows)).index(row[0]))
    return [{"operator": row[0], "dtypes": rows[row], "form": row[1], "why": row[2]} for row in order]


def _attention(dtype: torch.dtype, device: torch.device) -> Choice:
    x = torch.empty(1, 1, 1, 64, dtype=dtype, device=device)
    choice = serving("auto", x, x)
    if choice.form != "triton" or dtype != torch.bfloat16:
        return choice
    obstacle = importlib.import_module("linscale.ops.decay_attention.hopper").obstacle(device)
    if obstacle is None:
        return Choice("triton", f"{choice.reason}; heads 64, 128 or 256 wide by the kernels for Hopper")
    return Choice("triton", f"{choice.reason}; not by the kernels for Hopper: {obstacle}")


def _cross_entropy(x: Tensor) -> tuple[str, str]:
    """Matrix products are torch's own; what is told is who does the rest."""
    choice = serving_cross_entropy(x)
    return ("triton" if choice.form == "triton" else "torch"), f"{choice.reason}; matrix products are torch's own"


def _softmax(dtype: torch.dtype, device: torch.device) -> str:
    """Which of torch's own kernels runs, forward and backward, at a head width of 128."""
    function = "torch's scaled dot product attention"
    if device.type != "cuda":
        return f"{function} on the CPU"
    q: Tensor = torch.empty(1, 1, 64, 128, dtype=dtype, device=device, requires_grad=True)
    parameters = SDPAParams(q, q, q, None, 0.0, True, False)
    if can_use_flash_attention(parameters):
        return f"{function}, flash attention"
    return f"{function}, {'memory-efficient' if can_use_efficient_attention(parameters) else 'plain'} attention"


def advice(device: torch.device, broken: str | None) -> list[str]:
    """What to do to get the kernels, in sentences; empty where they run."""
    if broken:
        return [f"torch sees a GPU that does not work: {broken}", "`nvidia-smi` tells whether it is taken or broken."]
    choice = _attention(torch.bfloat16, device)
    if choice.form == "triton":
        return []
    if device.type == "cuda":  # the obstacle names the remedy, if there is one
        return [f"The kernels do not run on this GPU: {choice.reason}."]
    if platform.system() == "Darwin":
        return ["Triton has no backend for macOS: the chunk form on the CPU is the fast path here."]
    built_for_gpu, found = torch.version.cuda or torch.version.hip, driver()
    if found and not built_for_gpu:
        return [
            f"This machine has a GPU driver ({found}), but this torch is built for the CPU.",
            f"Install one: {GET_TORCH}",
        ]
    if found:
        return [
            f"This machine has a GPU driver ({found}), but torch sees no GPU: `nvidia-smi` should list one,",
            f"the driver must be new enough for {built_for_gpu}, and CUDA_VISIBLE_DEVICES must not hide it.",
        ]
    return ["No GPU here: the chunk form is the fast path of a CPU. The kernels need an NVIDIA GPU, Ampere or later."]
