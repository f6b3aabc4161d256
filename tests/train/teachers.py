"""A tiny LLaMA that was trained a little, and runs that learn from it."""

from pathlib import Path

import torch

from linscale import checkpoint
from linscale.data.tokenizer import load_tokenizer
from linscale.models import LlamaConfig, build_model
from linscale.models.linearized import MIXERS, LinearizedConfig

SHAPE = {"vocab_size": 257, "d_model": 32, "n_layers": 2, "head_dim": 8, "d_ff": 48, "n_kv_heads": 2}


def teacher_of(seed=0):
    """A LLaMA whose attention looks at few places: its matrices are large."""
    return build_model(LlamaConfig(**SHAPE, init_std=0.15), seed=seed)


def student_of(teacher, mixer="hedgehog", **fields):
    """The linearized model with the weights that it has in common with a LLaMA."""
    config = LinearizedConfig(**{**SHAPE, "init_std": 0.15, "linear": MIXERS[mixer], **fields})
    model = build_model(config, seed=7)
    model.load_state_dict(teacher.state_dict(), strict=False)
    return model


def save_run(model, folder: Path, tokenizer=None) -> Path:
    """A run folder with the model at step 0 and the tokenizer, by default that of bytes."""
    tokenizer = tokenizer or load_tokenizer("byte")
    folder.mkdir(parents=True)
    tokenizer.save(folder)
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoint.save(folder, 0, model, optimizer, {"tokens": 0, "tokenizer": tokenizer.fingerprint})
    return folder
