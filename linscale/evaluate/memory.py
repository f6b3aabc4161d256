"""Whether the keys and values of a long text fit on a device, before it is read."""

from __future__ import annotations

from pathlib import Path

import torch

from linscale.config import human
from linscale.evaluate.task import PIECE, device_of
from linscale.models import LanguageModel
from linscale.models.count import state_elements

COPIES = 4  # of a sequence's state at once: that read so far, its fork, and that of a pass before and after it
MASK_BYTES = 5  # of every pair of a token that is read and one that it may see: a mask, and what is made of it
MEMORY = Path("/proc/meminfo")
LIMIT = Path("/sys/fs/cgroup/memory.max")


def cache_obstacle(model: LanguageModel, length: int) -> str | None:
    """Why softmax attention cannot hold `length` tokens in what the device has free, in one line; or None, as for
    every linear model, whose state does not grow."""
    growing = state_elements(model.config, length) - state_elements(model.config, 0)
    if not growing:
        return None
    size = next(model.parameters()).element_size()
    needed, device = COPIES * growing * size + MASK_BYTES * length * min(length, PIECE), device_of(model)
    free = free_bytes(device)
    if free is None or needed <= free:
        return None
    return (
        f"softmax attention needs about {human(needed, 'B')} for the keys and values of {length} tokens, "
        f"{device.type} has {human(free, 'B')} free; set shorter lengths"
    )


def free_bytes(device: torch.device) -> int | None:
    """What can still be taken on a device; None where the system does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    try:
        kilobytes = dict(line.split(":") for line in MEMORY.read_text(encoding="utf-8").splitlines())
        free = 1024 * int(kilobytes["MemAvailable"].split()[0])
        limit = LIMIT.read_text(encoding="utf-8").strip() if LIMIT.exists() else "max"
    except (OSError, KeyError, ValueError):
        return None
    return free if limit == "max" else min(free, int(limit))
