"""LLaMAs of transformers, and the folders that it writes of them."""

import json

import torch

from linscale.adapt.tokenizer_folder import byte_level_bytes
from tests.lazy import Lazy

transformers = Lazy("transformers")

ROPES = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn-all": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 16.0, "beta_slow": 2.0,
        "truncate": False, "mscale": 0.8, "mscale_all_dim": 0.3,
    },
}  # fmt: skip


def their_model(rope="default", kv_heads=2, tied=False, **options):
    """A random LLaMA of transformers."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=257, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=128, tie_word_embeddings=tied, initializer_range=0.2,
        rope_theta=500.0, rope_scaling=ROPES[rope] and dict(ROPES[rope]), bos_token_id=256, eos_token_id=256, **options,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def their_folder(folder, model, **saving):
    """What save_pretrained writes, with a tokenizer of bytes."""
    model.save_pretrained(folder, **saving)
    (folder / "tokenizer.json").write_text(json.dumps(byte_level_bytes()))
    return folder


def close(ours, theirs):
    """Equal to 1e-5 of the largest logit."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())
