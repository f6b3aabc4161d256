"""In what precision prompts are read."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from linscale.models import LanguageModel


def reading(model: LanguageModel, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Products in bfloat16 where that is `dtype` and the model is on a GPU; elsewhere in the model's own precision."""
    device = model.embedding.weight.device.type
    half = device == "cuda" and dtype == torch.bfloat16
    return torch.autocast(device, torch.bfloat16) if half else nullcontext()
