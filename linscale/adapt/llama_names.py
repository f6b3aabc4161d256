"""The names that a LLaMA's tensors have in Hugging Face folders, and here. All else about them is the same."""

from __future__ import annotations

from linscale.models import LanguageModelConfig

OUTSIDE = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
BLOCK = {
    "mixer_norm.weight": "input_layernorm.weight",
    "mixer.q_proj.weight": "self_attn.q_proj.weight",
    "mixer.k_proj.weight": "self_attn.k_proj.weight",
    "mixer.v_proj.weight": "self_attn.v_proj.weight",
    "mixer.o_proj.weight": "self_attn.o_proj.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "mlp.gate_proj.weight": "mlp.gate_proj.weight",
    "mlp.up_proj.weight": "mlp.up_proj.weight",
    "mlp.down_proj.weight": "mlp.down_proj.weight",
}
TIED_HEAD = "lm_head.weight"
"""May stand in a folder of a tied model as well; it is the embedding then."""
IGNORED = ("rotary_emb.inv_freq",)
"""Ends of names of constants that old folders hold, which follow from the config."""


def llama_names(config: LanguageModelConfig) -> dict[str, str]:
    """Our name -> theirs, for every tensor of a LLaMA of this config."""
    names = {ours: theirs for ours, theirs in OUTSIDE.items() if ours != "head.weight" or not config.tie_embeddings}
    for layer in range(config.n_layers):
        for ours, theirs in BLOCK.items():
            names[f"blocks.{layer}.{ours}"] = f"model.layers.{layer}.{theirs}"
    return names
