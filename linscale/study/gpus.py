"""GPUs by name: what their data sheets promise, and how much of it these models were measured to use.

Peaks are dense bf16 products with fp32 sums, half of what data sheets print "with sparsity". Sources: NVIDIA's data
sheets of H100, H200, A100, L40S and DGX B200 (4.5 PFLOP/s a GPU with sparsity), its Ada whitepaper for the RTX 4090 and
the RTX Blackwell one for the RTX 5090, AMD's data sheet of the MI300X.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from linscale.config import UserError


@dataclass(frozen=True)
class Gpu:
    """One GPU of a kind."""

    name: str
    peak_flops: float
    """bf16 matrix products, FLOP/s, without sparsity."""
    memory_bytes: float


GPUS: Mapping[str, Gpu] = {
    "h100": Gpu("H100 SXM", 989.4e12, 80e9),
    "h100-pcie": Gpu("H100 PCIe", 756e12, 80e9),
    "h200": Gpu("H200 SXM", 989.4e12, 141e9),
    "b200": Gpu("B200", 2250e12, 180e9),
    "a100": Gpu("A100 80 GB", 312e12, 80e9),
    "a100-40gb": Gpu("A100 40 GB", 312e12, 40e9),
    "l40s": Gpu("L40S", 362e12, 48e9),
    "rtx4090": Gpu("RTX 4090", 165.2e12, 24e9),
    "rtx5090": Gpu("RTX 5090", 209.5e12, 32e9),
    "mi300x": Gpu("MI300X", 1307.4e12, 192e9),
}

MEASURED_MFU: Mapping[str, float] = {"llama": 0.43, "tnl": 0.41, "hgrn2": 0.36, "cosformer2": 0.36}
"""Exact matrix products a second over the peak above: 374M parameters, 4 x 8192 tokens, one H100, 2026-11-26.

benchmarks/NOTES.md has the same runs as 48 to 55% of what a plain matrix product reaches on that card, 766 TFLOP/s,
at 16 x 2048; over the data sheet's 989.4 that is 37 to 42%. Rows "4x8192" of 2026-11-26-nvidia-h100-train.json.
"""

SHARDED = 0.89  # two H200 by FSDP2 made 1.78 times the tokens of one (benchmarks/NOTES.md, 2026-11-26)
USABLE_MEMORY = 0.9  # of a GPU: what the allocator and libraries leave


def find_gpu(name: str) -> Gpu:
    """The GPU of that name, in any case, with or without spaces. Raises UserError naming those known."""
    key = name.lower().replace(" ", "").replace("_", "-")
    if key not in GPUS:
        raise UserError(f"gpu = {name!r}: expected one of {', '.join(GPUS)}")
    return GPUS[key]


def default_mfu(arch: str, gpus: int) -> float:
    """What an architecture was measured to use of a GPU's peak, and, on several, what was left of it on two."""
    return MEASURED_MFU[arch] * (SHARDED if gpus > 1 else 1.0)
