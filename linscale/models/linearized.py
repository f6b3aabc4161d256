"""A LLaMA whose softmax attention is linear attention made of choices: what a pretrained model is turned into.

    q, k, v = x W_q, x W_k, x W_v          as in LLaMA, keys and values repeated for the heads that share them
    q, k, v = w_q ∗ q, w_k ∗ k, w_v ∗ v    optional: short causal convolutions over time, one filter a channel
    q, k    = φ(q), φ(k)                   with rotations before or after φ
    S_t     = diag(exp g_t) S_{t-1} + k_t v_tᵀ / sqrt(K),   o_t = S_tᵀ q_t
    y       = [norm(o) * silu(x W_g + b)] W_o

SUPRA (arXiv 2405.06640) is φ = relu(W x + b) over all heads, RoPE after it, a fixed g a head and a group norm. T2R
divides by Σ w_ts in place of the norm. With update = "delta" S_t is that of the gated delta rule, q and k of length 1.
Weights that LLaMA has keep their names, so that they are taken over by name; `new_parameters` are the others. Layers
may stay softmax attention.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import NonNegativeInt, model_validator

from linscale.config import config
from linscale.layers import RMSNorm
from linscale.models.language_model import LanguageModel, LanguageModelConfig
from linscale.models.linear_mixer import MIXERS, LinearMixer
from linscale.models.linearized_mixer import LinearAttention


@config
class LinearizedConfig(LanguageModelConfig):
    """Shape of a linearized LLaMA. Heads of keys and values, and RoPE, are those of its linear layers too."""

    arch: Literal["linearized"] = "linearized"
    linear: LinearMixer = LinearMixer()
    "Its linear attention."
    softmax_layers: tuple[NonNegativeInt, ...] = ()
    "Layers that stay softmax attention, counted from 0, beside those of softmax_every."

    @model_validator(mode="after")
    def _layers_exist(self) -> Self:
        if any(layer >= self.n_layers for layer in self.softmax_layers):
            raise ValueError(
                f"softmax_layers = {list(self.softmax_layers)}: expected numbers from 0 to {self.n_layers - 1}"
            )
        if len(set(self.softmax_layers)) < len(self.softmax_layers):
            raise ValueError(f"softmax_layers = {list(self.softmax_layers)}: expected each layer once")
        return self

    def is_softmax(self, layer: int) -> bool:
        return layer in self.softmax_layers or super().is_softmax(layer)


class Linearized(LanguageModel):
    config: LinearizedConfig

    def __init__(self, config: LinearizedConfig) -> None:
        super().__init__(config, mixer=LinearAttention, norm=RMSNorm, activation="silu")

    def init_weights(self, seed: int = 0) -> Self:
        super().init_weights(seed)
        for mixer in self.linear_layers():
            mixer.reset_new_parameters(seed)
        return self

    def reset_buffers(self) -> None:
        super().reset_buffers()
        for mixer in self.linear_layers():
            mixer.reset_log_decay()

    def linear_layers(self) -> list[LinearAttention]:
        """Mixers of the layers that are not softmax attention."""
        return [block.mixer for block in self.blocks if isinstance(block.mixer, LinearAttention)]


def new_parameters(config: LinearizedConfig) -> set[str]:
    """Names of the parameters that a LLaMA of this shape does not have, as in `named_parameters`."""
    with torch.device("meta"):
        names = [name for name, _ in LinearAttention(config, 0).named_parameters()]
    new = [name for name in names if name.partition(".")[0] not in ("q_proj", "k_proj", "v_proj", "o_proj")]
    layers = [layer for layer in range(config.n_layers) if not config.is_softmax(layer)]
    return {f"blocks.{layer}.mixer.{name}" for layer in layers for name in new}


__all__ = ["MIXERS", "Linearized", "LinearizedConfig", "new_parameters"]
