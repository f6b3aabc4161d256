"""LLaMA: softmax attention, the quadratic baseline (Touvron et al. 2023).

    o_t = Σ_{s<=t} softmax_s(q_t · k_s / sqrt(K)) v_s          RoPE on q and k, RMSNorm, SwiGLU

Its memory is every key and value so far: it grows with the text. Weights have the names and the layout of released
LLaMA checkpoints, so conversion is a rename.
"""

from __future__ import annotations

from typing import Literal

from linscale.config import config
from linscale.layers import RMSNorm
from linscale.models.language_model import LanguageModel, LanguageModelConfig, softmax_mixer


@config
class LlamaConfig(LanguageModelConfig):
    """Shape of a LLaMA. Every layer is softmax attention, whatever softmax_every says."""

    arch: Literal["llama"] = "llama"


class Llama(LanguageModel):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config, mixer=softmax_mixer, norm=RMSNorm, activation="silu")
