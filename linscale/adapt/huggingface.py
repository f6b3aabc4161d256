"""Hugging Face folders: imported as run folders, and written from checkpoints.

A LLaMA is written as transformers' own; every other architecture as a folder whose model class is linscale's
(`transformers_model`), which it finds once linscale is imported, or by trust_remote_code. Tensors pass one at a time
and are not changed unless a dtype is asked for: what is exported and imported again has the same bits.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from linscale import checkpoint
from linscale.adapt.folder import new_folder
from linscale.adapt.llama_config import read_llama_config, write_llama_config
from linscale.adapt.llama_names import llama_names
from linscale.adapt.matching import matched, require_names
from linscale.adapt.model_card import model_card
from linscale.adapt.new_run import CONTEXT, DTYPES, Origin, new_run
from linscale.adapt.tensor_file import (
    INDEX,
    SINGLE,
    Entry,
    entries_of_file,
    read_tensor,
    shards_of,
    write_file,
)
from linscale.adapt.tokenizer_folder import export_tokenizer
from linscale.checkpoint import MANIFEST, TOKENIZER
from linscale.checkpoint.tensors import MODEL, model_tensors, parts
from linscale.config import UserError, parse, to_dict
from linscale.models import LanguageModel, LanguageModelConfig, LlamaConfig, ModelConfig, build_model
from linscale.run_folder import CONFIG, read_json, write_json

Dtype = Literal["fp32", "bf16", "fp16"]
HUGGING_FACE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
SHARD_BYTES = 5e9
CODE = "modeling_linscale.py"
MODEL_TYPE = "linscale"
PREFIX = "model."  # the wrapped model in the class that transformers sees


def import_folder(folder: Path, out: Path, dtype: Dtype | None = None) -> Path:
    """Make the run folder `out`, with one checkpoint at step 0, of a Hugging Face folder; returns `out`.

    `dtype` converts the weights (of architectures other than LLaMA those of matrix products alone); None keeps them as
    they are. Raises UserError, naming it, for anything in the folder that is unknown, missing or not supported.
    """
    values = read_json(folder / CONFIG) if folder.is_dir() else None
    if not isinstance(values, dict):
        raise UserError(f"{folder}: not a Hugging Face folder; expected one with {CONFIG} and safetensors weights")
    config = _read_config(values, str(folder / CONFIG))
    with torch.device("meta"):
        model = build_model(config)
    names = _names(config, model)
    entries = matched(folder, model, names)
    stored = {ours: _stored(entry, ours, model, dtype) for ours, entry in entries.items()}
    origin = Origin(folder, values, {"model_type": values["model_type"]})
    return new_run(out, origin, config, stored, lambda name: read_tensor(names[name], entries[name]))


def export(path: Path, out: Path, dtype: Dtype | None = None, shard_bytes: float = SHARD_BYTES) -> Path:
    """Make the Hugging Face folder `out` of a run folder's newest checkpoint, or of a checkpoint folder; returns `out`.

    `dtype` as for `import_folder`; weights of more than `shard_bytes` are written in several files.
    """
    chosen, run = _checkpoint(path)
    manifest = checkpoint.verify(chosen, (MODEL,))
    config: LanguageModelConfig = parse(ModelConfig, manifest["model"], source=str(chosen / MANIFEST))
    with torch.device("meta"):
        model = build_model(config)
    names = _names(config, model)
    found = {name: entry for file in parts(manifest, MODEL) for name, entry in entries_of_file(chosen / file)}
    require_names(chosen, set(found), set(names))
    stored = {theirs: _stored(found[ours], ours, model, dtype) for ours, theirs in names.items()}
    ours_of = {theirs: ours for ours, theirs in names.items()}
    context = manifest.get("context") or _trained_length(run) or CONTEXT
    with new_folder(out, sum(entry.bytes for entry in stored.values())) as temporary:
        _write_shards(
            temporary, stored, shard_bytes, lambda theirs: read_tensor(ours_of[theirs], found[ours_of[theirs]])
        )
        ids, opening = export_tokenizer(run, temporary, context)
        kinds = [entry.dtype for entry in stored.values()]
        own = write_llama_config(config, context) if isinstance(config, LlamaConfig) else _wrapped(config, context)
        write_json(temporary / CONFIG, own | ids | {"dtype": HUGGING_FACE_NAMES[max(set(kinds), key=kinds.count)]})
        if not isinstance(config, LlamaConfig):
            shutil.copyfile(Path(__file__).with_name(CODE), temporary / CODE)
        (temporary / "README.md").write_text(model_card(config, manifest, run, opening), encoding="utf-8")
    return out


def _read_config(values: Mapping[str, Any], source: str) -> LanguageModelConfig:
    if values.get("model_type") != MODEL_TYPE:
        return read_llama_config(values, source)
    config: LanguageModelConfig = parse(ModelConfig, values.get("linscale") or {}, source=f"{source}: linscale")
    return config


def _wrapped(config: LanguageModelConfig, context: int) -> dict[str, Any]:
    """config.json of any architecture but LLaMA, less its dtype and special tokens: see `transformers_config`."""
    classes = {"AutoConfig": "LinscaleConfig", "AutoModelForCausalLM": "LinscaleForCausalLM"}
    return {
        "architectures": ["LinscaleForCausalLM"],
        "model_type": MODEL_TYPE,
        "auto_map": {auto: f"{Path(CODE).stem}.{name}" for auto, name in classes.items()},
        "linscale": to_dict(config),
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "max_position_embeddings": context,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
    }


def _names(config: LanguageModelConfig, model: LanguageModel) -> dict[str, str]:
    """Our name -> the folder's, for every tensor."""
    ours = list(model_tensors(model))
    return llama_names(config) if isinstance(config, LlamaConfig) else {name: f"{PREFIX}{name}" for name in ours}


def _stored(entry: Entry, ours: str, model: LanguageModel, dtype: Dtype | None) -> Entry:
    """What a tensor is written as. Beside products only LLaMA's few vectors are converted, as is usual: angles, rates
    and bounds of forgetting decide over thousands of tokens and stay as they are."""
    product = isinstance(model.get_submodule(ours.rpartition(".")[0]), nn.Linear | nn.Embedding)
    if dtype is None or not (product or isinstance(model.config, LlamaConfig)):
        return entry
    return replace(entry, dtype=DTYPES[dtype])


def _write_shards(
    folder: Path, tensors: Mapping[str, Entry], shard_bytes: float, read: Callable[[str], Tensor]
) -> None:
    """model.safetensors, or several files and their index."""
    shards = shards_of(tensors, shard_bytes)
    if len(shards) == 1:
        write_file(folder / SINGLE, shards[0], read)
        return
    places = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file, shard, read)
        places.update(dict.fromkeys(shard, file))
    total = sum(entry.bytes for entry in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _checkpoint(path: Path) -> tuple[Path, Path]:
    """The checkpoint that `path` is or whose run folder it is, and the folder of its tokenizer."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; expected a run folder or a checkpoint folder")
    chosen = path if (path / MANIFEST).exists() else checkpoint.newest(path)
    if chosen is None:
        raise UserError(f"{path}: neither a checkpoint nor a run folder with checkpoints")
    for folder in (chosen, chosen.resolve().parent.parent):
        if (folder / TOKENIZER).is_file():
            return chosen, folder
    raise UserError(
        f"{chosen}: no {TOKENIZER} beside it; copy the run folder's into the checkpoint (a run on a task or on "
        "labelled sequences has none: there is no text to be written or read)"
    )


def _trained_length(run: Path) -> int | None:
    """Tokens of a sequence in training, where the run folder says so."""
    settings = read_json(run / CONFIG) if (run / CONFIG).is_file() else {}
    return (settings.get("train") or {}).get("length")
