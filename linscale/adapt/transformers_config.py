"""The config of linscale's models as transformers knows it: ours, under `linscale`, and what others look for in any."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig


class LinscaleConfig(PreTrainedConfig):
    """config.json of an exported folder. `linscale` is our config as plain values; the other fields follow from it."""

    model_type = "linscale"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (its type there)

    linscale: dict[str, Any] | None = None
    vocab_size: int = 0
    hidden_size: int = 0
    num_hidden_layers: int = 0
    num_attention_heads: int = 0
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = True
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None


AutoConfig.register(LinscaleConfig.model_type, LinscaleConfig, exist_ok=True)
