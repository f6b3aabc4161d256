"""How an engine is set up, and the defaults that a model and its device give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import PositiveInt

from linscale.config import config
from linscale.layers import SoftmaxAttention
from linscale.models import LanguageModel
from linscale.models.count import state_elements

SLOTS = {"cuda": 64}
CPU_SLOTS = 8
CHUNK, SOFTMAX_CHUNK = 8192, 1024
MEMORY_SHARE = 0.5  # of a GPU's free memory that keys and values may take by default
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@config
class EngineConfig:
    """How many texts run at once, and in what precision."""

    slots: PositiveInt | None = None
    "Texts that run at once; by default 64 on a GPU, fewer where softmax layers leave no room for them, and 8 on a CPU."
    context: PositiveInt = 8192
    "Tokens that a text may have in a model with softmax layers, whose memory it takes. Others have no limit."
    chunk: PositiveInt | None = None
    "Tokens of a prompt read between two steps; by default 8192, and 1024 with softmax layers."
    dtype: Literal["float32", "bfloat16"] | None = None
    "Of matrices and of what runs between layers; by default bfloat16 on a GPU, float32 on a CPU."
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    "Of linear attention's states."


@dataclass(frozen=True)
class Setup:
    """An EngineConfig with every choice made, for one model where it is."""

    slots: int
    limit: int | None
    """The most tokens of a text; None where there are no softmax layers."""
    chunk: int
    dtype: torch.dtype
    state_dtype: torch.dtype

    @classmethod
    def of(cls, config: EngineConfig, model: LanguageModel) -> Setup:
        """The choices that `config` leaves open, made."""
        device = model.embedding.weight.device
        softmax = any(isinstance(block.mixer, SoftmaxAttention) for block in model.blocks)
        dtype = DTYPES[config.dtype or ("bfloat16" if device.type == "cuda" else "float32")]
        limit = config.context if softmax else None
        return cls(
            slots=config.slots or _slots(model, device, limit, dtype),
            limit=limit,
            chunk=config.chunk or (SOFTMAX_CHUNK if softmax else CHUNK),
            dtype=dtype,
            state_dtype=DTYPES[config.state_dtype],
        )


def _slots(model: LanguageModel, device: torch.device, limit: int | None, dtype: torch.dtype) -> int:
    most = SLOTS.get(device.type, CPU_SLOTS)
    if limit is None or device.type != "cuda":
        return most
    room = MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]
    return max(1, min(most, int(room // (dtype.itemsize * state_elements(model.config, limit)))))
