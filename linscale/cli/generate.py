"""linscale generate: a continuation, shown as it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from linscale.checkpoint import load
from linscale.cli.output import Json, print_json
from linscale.data.tokenizer import Tokenizer
from linscale.distributed import cores, limit_threads
from linscale.generate.continuation import Piece
from linscale.generate.sample import opened, write
from linscale.generate.sampling import Sampling

DEFAULTS = Sampling(temperature=0.8)


def generate(
    path: Annotated[Path, tyro.conf.Positional],
    *,
    prompt: str,
    sampling: Annotated[Sampling, tyro.conf.OmitArgPrefixes, tyro.conf.UseAppendAction] = DEFAULTS,
    json: Json = False,
) -> None:
    """Continue a prompt with a trained model.

    Args:
        path: A run folder, or one of its checkpoints.
        prompt: The text to continue.
        sampling: How tokens are drawn, and where the text ends.
    """
    limit_threads(cores())
    model, tokenizer = load(path)
    pieces = write(model, tokenizer, opened(tokenizer, prompt), sampling)
    if json:
        print_json({"path": str(path), "prompt": prompt, **record(tokenizer, list(pieces), sampling)})
        return
    print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece.text, end="", flush=True)
    print()


def record(tokenizer: Tokenizer, pieces: list[Piece], sampling: Sampling) -> dict[str, Any]:
    """A continuation as JSON values; log-probabilities where they were asked for."""
    values: dict[str, Any] = {
        "continuation": "".join(piece.text for piece in pieces),
        "finish_reason": pieces[-1].finish_reason,
        "tokens": [piece.token for piece in pieces],
    }
    if sampling.logprobs is not None:
        values["logprobs"] = [piece.logprob for piece in pieces]
        values["top_logprobs"] = [
            [{"token": token, "text": tokenizer.decode([token]), "logprob": nats} for token, nats in piece.alternatives]
            for piece in pieces
        ]
        values["offsets"] = [piece.offset for piece in pieces]
    return values
