"""Models: one skeleton, one short file for each architecture, the published sizes and exact counts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from linscale.models.cosformer2 import CosFormer2, CosFormer2Config
from linscale.models.hgrn2 import HGRN2, HGRN2Config
from linscale.models.language_model import LanguageModel, LanguageModelConfig, Output, State
from linscale.models.linear_mixer import MIXERS, LinearMixer
from linscale.models.linearized import Linearized, LinearizedConfig
from linscale.models.llama import Llama, LlamaConfig
from linscale.models.recurrent_transformer import Recurrence, RecurrentTransformer, RecurrentTransformerConfig
from linscale.models.sizes import CONFIGS, SIZES, preset
from linscale.models.tnl import TNL, TNLConfig

ModelConfig = Annotated[
    LlamaConfig | TNLConfig | HGRN2Config | CosFormer2Config | RecurrentTransformerConfig | LinearizedConfig,
    Field(discriminator="arch"),
]
"""The config of any architecture, told apart by its field `arch`."""


def build_model(config: LanguageModelConfig, *, seed: int = 0) -> LanguageModel:
    """The model of a config with freshly initialised weights. Under torch.device("meta") it takes no memory."""
    model = _construct(config)
    return model if model.embedding.weight.is_meta else model.init_weights(seed)


def _construct(config: LanguageModelConfig) -> LanguageModel:
    if isinstance(config, LlamaConfig):
        return Llama(config)
    if isinstance(config, TNLConfig):
        return TNL(config)
    if isinstance(config, HGRN2Config):
        return HGRN2(config)
    if isinstance(config, CosFormer2Config):
        return CosFormer2(config)
    if isinstance(config, RecurrentTransformerConfig):
        return RecurrentTransformer(config)
    if isinstance(config, LinearizedConfig):
        return Linearized(config)
    raise TypeError(f"no architecture has the config {type(config).__name__}")


__all__ = [
    "CONFIGS",
    "HGRN2",
    "MIXERS",
    "SIZES",
    "TNL",
    "CosFormer2",
    "CosFormer2Config",
    "HGRN2Config",
    "LanguageModel",
    "LanguageModelConfig",
    "LinearMixer",
    "Linearized",
    "LinearizedConfig",
    "Llama",
    "LlamaConfig",
    "ModelConfig",
    "Output",
    "Recurrence",
    "RecurrentTransformer",
    "RecurrentTransformerConfig",
    "State",
    "TNLConfig",
    "build_model",
    "preset",
]
