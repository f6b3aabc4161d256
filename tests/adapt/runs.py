"""Runs of tiny models, and folders as transformers writes them."""

from pathlib import Path

import torch

from linscale import checkpoint
from linscale.data.tokenizer import load_tokenizer
from linscale.models import CONFIGS, build_model


def tiny(arch, **fields):
    """A model with weights large enough that every part of it matters to the logits."""
    shape = {"vocab_size": 257, "d_model": 32, "n_layers": 2, "head_dim": 8, "d_ff": 48, "init_std": 0.3}
    return build_model(CONFIGS[arch](**{**shape, **fields}), seed=1).eval()


def run_of(model, folder: Path) -> Path:
    """A run folder with the model at step 3 and the byte tokenizer."""
    tokenizer = load_tokenizer("byte")
    folder.mkdir(parents=True)
    tokenizer.save(folder)
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoint.save(folder, 3, model, optimizer, {"tokens": 72, "tokenizer": tokenizer.fingerprint})
    return folder


def weights(folder: Path) -> Path:
    """The weights of the only checkpoint of a run."""
    (path,) = folder.glob("checkpoints/*/model.safetensors")
    return path
