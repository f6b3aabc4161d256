"""What decode.py measures on, by device: shapes, prompts, and how long."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import evaluate
import numpy as np
import torch

from linscale.data.tokenizer import Tokenizer, load_tokenizer
from linscale.models import CONFIGS, LanguageModel, build_model

ARCHS = ("tnl", "hgrn2", "cosformer2", "llama")
LARGE = {"vocab_size": 32_000, "d_model": 1024, "n_layers": 24, "head_dim": 128, "tie_embeddings": False}
SMALL = {"vocab_size": 32_000, "d_model": 256, "n_layers": 6, "head_dim": 64, "tie_embeddings": True}
TINY = {"vocab_size": 257, "d_model": 32, "n_layers": 2, "head_dim": 16, "d_ff": 64, "tie_embeddings": True}


@dataclass
class Setting:
    """One device's. Counts are of tokens unless they say what else."""

    device: torch.device
    tiny: bool
    shape: dict[str, Any]
    steps: int
    """Of each timing."""
    slots: tuple[int, ...]
    """Texts at once."""
    prompt: int
    """Behind which one text is written."""
    short: int
    """Behind which many are."""
    context: int
    """Room of a softmax layer in a slot."""
    marks: tuple[int, ...]
    """Where a single text is timed."""
    prompts: tuple[int, ...]
    """Whose first token is timed."""
    peer_texts: tuple[int, ...]
    peer_steps: int
    copy_bytes_per_s: float = field(default=float("inf"))

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer("byte") if self.tiny else evaluate.tokenizer_of(None)

    def model(self, arch: str) -> LanguageModel:
        """With random weights, in float32."""
        return build_model(CONFIGS[arch](**self.shape)).to(self.device).eval()

    def text(self, count: int) -> np.ndarray:
        """Token ids, always the same."""
        return np.random.default_rng(0).integers(0, self.tokenizer.vocab_size, count)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object]) -> float:
        """Of the wall clock, with what the device does for it."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    @property
    def memory_bytes(self) -> int | None:
        """What tensors hold now; None on a CPU."""
        return torch.cuda.memory_allocated() if self.device.type == "cuda" else None


def setting_of(device: torch.device, *, tiny: bool, steps: int | None) -> Setting:
    if tiny:
        return Setting(device, True, TINY, steps or 4, (1, 2), 12, 8, 64, (10, 40), (10,), (2,), 3)
    if device.type == "cuda":
        marks, prompts = (1_000, 10_000, 100_000, 1_000_000), (1_000, 10_000, 100_000)
        return Setting(
            device, False, LARGE, steps or 200, (1, 16, 64, 256), 2048, 256, 4096, marks, prompts, (1, 64), 48
        )
    marks, prompts = (1_000, 10_000, 100_000), (1_000, 10_000)
    return Setting(device, False, SMALL, steps or 50, (1, 8), 512, 128, 1024, marks, prompts, (1, 8), 24)
