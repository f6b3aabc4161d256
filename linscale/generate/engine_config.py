"""How an engine is set up, and the defaults that a model and its device give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import PositiveInt

from linscale.config import UserError, config
from linscale.generate.packing import can_pack
from linscale.layers import SoftmaxAttention
from linscale.models import LanguageModel, Linearized
from linscale.models.cosformer2 import CosFormer2Mixer
from linscale.models.count import state_elements
from linscale.ops.decode.plain import can_halve

SLOTS = {"cuda": 64}
CPU_SLOTS = 8
CONTEXT = 8192
CHUNK, SOFTMAX_CHUNK, CPU_CHUNK = 8192, 1024, 512
MEMORY_SHARE = 0.5  # of a GPU's free memory that keys and values may take by default
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@config
class EngineConfig:
    """How many texts run at once, and in what precision."""

    slots: PositiveInt | None = None
    "Texts that run at once; by default 64 on a GPU, fewer where softmax layers leave no room for them, and 8 on a CPU."
    context: PositiveInt | None = None
    """Tokens that a text may have in a model with softmax layers, whose memory it takes; by default 8192, or what an
    imported model was made for where that is less. Others have no limit."""
    chunk: PositiveInt | None = None
    "Tokens of a prompt read between two steps; by default 8192, 1024 with softmax layers, and 512 on a CPU."
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of matrices and of what runs between layers; by default bfloat16 on a GPU, float32 on a CPU. float16, on an x86
    CPU alone, is of the large matrices of steps, all else is float32: faster, with logits 1e-3 from float32's."""
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of linear attention's states. bfloat16 halves them and is faster where many texts run; rounding fades as states
    decay: HGRN2's logits are 2e-3 off after 100,000 tokens, TNL's 4e-2. States that do not decay need float32."""


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
        if dtype == torch.float16 and (device.type != "cpu" or not can_halve()):
            raise UserError("dtype = float16: this device has no products for it; expected float32 or bfloat16")
        if dtype == torch.float16 and not can_pack(model):
            raise UserError(f"dtype = float16: {type(model).__name__} has no such steps; expected float32")
        lasting = any(isinstance(block.mixer, CosFormer2Mixer) for block in model.blocks)
        if config.state_dtype == "bfloat16" and lasting:
            raise UserError(
                "state_dtype = bfloat16: cosFormer2's states do not decay: rounding adds up in them; expected float32"
            )
        if config.state_dtype == "bfloat16" and isinstance(model, Linearized):
            raise UserError("state_dtype = bfloat16: a linearized model's states are float32; expected float32")
        limit = (config.context or CONTEXT) if softmax else None
        return cls(
            slots=config.slots or _slots(model, device, limit, dtype),
            limit=limit,
            chunk=config.chunk or (CPU_CHUNK if device.type == "cpu" else SOFTMAX_CHUNK if softmax else CHUNK),
            dtype=dtype,
            state_dtype=DTYPES[config.state_dtype],
        )


def _slots(model: LanguageModel, device: torch.device, limit: int | None, dtype: torch.dtype) -> int:
    most = SLOTS.get(device.type, CPU_SLOTS)
    if limit is None or device.type != "cuda":
        return most
    room = MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]
    fixed = state_elements(model.config, 0)  # of linear layers, float32 at most
    text = torch.float32.itemsize * fixed + dtype.itemsize * (state_elements(model.config, limit) - fixed)
    return max(1, min(most, int(room // text)))
