"""A run folder made of a model from elsewhere: one checkpoint, at step 0, and the tokenizer that came with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from linscale.adapt.folder import new_folder
from linscale.adapt.tensor_file import Entry, write_file
from linscale.adapt.tokenizer_folder import import_tokenizer
from linscale.checkpoint import FORMAT, MANIFEST
from linscale.checkpoint.tensors import MODEL
from linscale.config import UserError, fingerprint, to_dict
from linscale.data.tokenizer import Tokenizer
from linscale.models import LanguageModelConfig
from linscale.models.count import count_parameters, paper_flops_per_step, paper_parameters
from linscale.run_folder import CHECKPOINTS, CONFIG, STATUS, code_version, write_json

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CONTEXT = 2048  # tokens, where nothing says what a model was trained for


@dataclass(frozen=True)
class Origin:
    """The Hugging Face folder that a model comes from."""

    folder: Path
    values: Mapping[str, Any]
    """The content of its config.json."""
    record: Mapping[str, Any]
    """What the manifest says of it, beside the folder's name."""

    @property
    def context(self) -> int:
        """Tokens of a text that the model was made for."""
        value = self.values.get("max_position_embeddings")
        return value if isinstance(value, int) and value > 0 else CONTEXT


def new_run(
    out: Path, origin: Origin, config: LanguageModelConfig, tensors: Mapping[str, Entry], read: Callable[[str], Tensor]
) -> Path:
    """Make the run folder `out`; returns it.

    `tensors` are those of a model of `config` in the dtypes that they are written in, each read in its turn. Raises
    UserError where the tokenizer is not one of the model, or the disk does not take the folder.
    """
    with new_folder(out, sum(entry.bytes for entry in tensors.values())) as temporary:
        step = temporary / CHECKPOINTS / "step_00000000"
        step.mkdir(parents=True)
        tokenizer = import_tokenizer(origin.folder, temporary, origin.values)
        require_tokens(origin.folder, tokenizer, config)
        written = write_file(step / MODEL, tensors, read)
        kinds = {entry.dtype for entry in tensors.values()}
        dtype = next(key for key, kind in DTYPES.items() if kind in kinds) if len(kinds) == 1 else "mixed"
        manifest: dict[str, Any] = {
            "format": FORMAT, "step": 0, "tokens": 0, "tokenizer": tokenizer.fingerprint, "dtype": dtype,
            "context": origin.context, "source": {"folder": origin.folder.resolve().name, **origin.record},
            "model": to_dict(config), "files": {MODEL: written}, "code": code_version(),
        }  # fmt: skip
        write_json(step / MANIFEST, {**manifest, "fingerprint": fingerprint(manifest)})
        write_json(temporary / CONFIG, _settings(out.name, config, dtype, origin.context))
        write_json(temporary / STATUS, {"state": "done", "step": 0, "steps": 0, "tokens": 0})
    return out


def require_tokens(folder: Path, tokenizer: Tokenizer, config: LanguageModelConfig) -> None:
    """Raise UserError where the tokenizer has tokens that the model has no row for."""
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens, its model {config.vocab_size}; "
            "expected a tokenizer of the model"
        )


def _settings(run: str, config: LanguageModelConfig, dtype: str, context: int) -> dict[str, Any]:
    """config.json of the run folder: what evaluation reads of a run. Nothing was trained here."""
    total, own = count_parameters(config).total, paper_parameters(config)
    return {
        "run": run, "study": None, "size": None, "model": to_dict(config),
        "data": {"path": None, "fingerprint": None}, "train": {"tokens": 0, "batch_tokens": 0, "length": context},
        "params": {"non_embedding": own, "total": total},
        "flops_per_token": paper_flops_per_step(config, 1, context) / context,
        "precision": "fp32" if dtype == "fp32" else "bf16",
        "device": "cuda" if torch.cuda.is_available() else "cpu", "torch": torch.__version__, "code": code_version(),
    }  # fmt: skip
