"""linscale generate: a continuation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from linscale.checkpoint import load
from linscale.cli.output import Json, print_json
from linscale.distributed import cores, limit_threads
from linscale.generate.sample import sample


def generate(
    path: Annotated[Path, tyro.conf.Positional],
    *,
    prompt: str,
    max_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
    json: Json = False,
) -> None:
    """Continue a prompt with a trained model.

    Args:
        path: A run folder, or one of its checkpoints.
        prompt: The text to continue.
        max_tokens: The most tokens to write.
        temperature: 0 always takes the most probable token.
        top_k: Draw among this many of the most probable tokens.
        seed: The same seed writes the same text.
    """
    limit_threads(cores())
    model, tokenizer = load(path)
    text = sample(model, tokenizer, prompt, max_tokens=max_tokens, temperature=temperature, top_k=top_k, seed=seed)
    if json:
        print_json({"path": str(path), "prompt": prompt, "continuation": text})
    else:
        print(prompt + text)
