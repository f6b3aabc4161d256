"""Which tokens end a text of a model that came with a generation_config.json, besides its end-of-text token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from linscale.config import UserError
from linscale.data.tokenizer import FILE, Tokenizer
from linscale.generate.sampling import Sampling
from linscale.run_folder import CHECKPOINTS, read_json

GENERATION = "generation_config.json"


def end_tokens(path: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Every other eos_token_id beside the tokenizer.json of a run folder or checkpoint folder, at which transformers
    ends a text too; () where there are none. Raises UserError for a file that is not what it is expected to be."""
    listed = read_object(tokenizer_folder(path) / GENERATION).get("eos_token_id")
    ends = listed if isinstance(listed, list) else [listed]
    known = {token for token in ends if type(token) is int and 0 <= token < tokenizer.vocab_size}
    return tuple(sorted(known - {tokenizer.eos_id}))


def ended_by(sampling: Sampling, tokens: tuple[int, ...]) -> Sampling:
    """`sampling` whose text ends at `tokens` too, unless it goes on behind the end-of-text token."""
    return sampling if sampling.ignore_eos else replace(sampling, stop_tokens=(*tokens, *sampling.stop_tokens))


def tokenizer_folder(path: Path) -> Path:
    """Where the tokenizer.json of a run folder or checkpoint folder is, and what came with it."""
    inside = not (path / FILE).is_file() and path.resolve().parent.name == CHECKPOINTS
    return path.resolve().parent.parent if inside else path


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a file, empty where there is none. Raises UserError for anything else."""
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content
