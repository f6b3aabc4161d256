"""A LLaMA as a linearized model: SUPRA (arXiv 2405.06640) and the other mixers that its weights fit.

Every tensor of the LLaMA keeps its name, its numbers and its dtype; feature maps, gates and norms of the linear layers
are new, and drawn by a seed. Tensors pass one at a time. What comes out writes nonsense until it is trained.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from linscale.adapt.llama_config import MODEL_TYPES, read_llama_config
from linscale.adapt.llama_names import llama_names
from linscale.adapt.matching import matched
from linscale.adapt.new_run import Origin, new_run, require_tokens
from linscale.adapt.tensor_file import Entry, read_tensor
from linscale.adapt.tokenizer_folder import import_tokenizer
from linscale.checkpoint import read_manifest, verify
from linscale.checkpoint.tensors import MODEL, model_tensors
from linscale.config import UserError, fingerprint, parse, to_dict
from linscale.data.tokenizer import Tokenizer
from linscale.models import LanguageModelConfig, LinearizedConfig, LinearMixer, LlamaConfig, build_model
from linscale.models.linearized import new_parameters
from linscale.models.linearized_mixer import LinearAttention
from linscale.run_folder import CHECKPOINTS, CONFIG, read_json

PADDING = 0.1  # of the embedding's rows, that a tokenizer may leave unused: released models have up to 3%
ROWS = 1024  # that it may leave unused in any case


@dataclass(frozen=True)
class Teacher:
    """A LLaMA in a Hugging Face folder, whose tensors are all there and whose tokenizer is its own."""

    folder: Path
    values: Mapping[str, Any]
    """The content of config.json."""
    config: LlamaConfig
    entries: Mapping[str, Entry]
    """Its tensors, by our names."""
    tokenizer: Tokenizer
    """As it is in a run folder."""

    def read(self, name: str) -> Tensor:
        """A tensor by our name. Raises UserError where it holds a number that is not finite."""
        entry = self.entries[name]
        value = read_tensor(llama_names(self.config)[name], entry)
        if not all(torch.isfinite(bound) for bound in value.aminmax()):
            theirs = llama_names(self.config)[name]
            raise UserError(f"{entry.path}: tensor '{theirs}' holds numbers that are not finite; download it again")
        return value

    @property
    def record(self) -> dict[str, Any]:
        """What tells it from others: its config, and the first row of each tensor, which training changes."""
        digest = hashlib.sha256()
        for name in sorted(self.entries):
            row = read_tensor(llama_names(self.config)[name], self.entries[name], rows=1)
            digest.update(row.view(torch.uint8).numpy().data)
        content = [to_dict(self.config), digest.hexdigest()]
        return {"model_type": self.values["model_type"], "weights": fingerprint(content)}


def read_teacher(folder: Path) -> Teacher:
    """Raises UserError, naming what is wrong, for anything but a whole LLaMA-family folder with its own tokenizer."""
    values = read_json(folder / CONFIG) if folder.is_dir() else None
    if not isinstance(values, dict):
        raise UserError(f"{folder}: not a Hugging Face folder; expected one with {CONFIG} and safetensors weights")
    if "run" in values and "model_type" not in values:
        raise UserError(
            f"{folder}: a run folder; expected a Hugging Face folder, which `linscale export` makes of a run of a LLaMA"
        )
    if (kind := values.get("model_type")) not in MODEL_TYPES:
        raise UserError(f"{folder / CONFIG}: model_type = {kind!r}: expected one of {', '.join(MODEL_TYPES)}")
    config = read_llama_config(values, str(folder / CONFIG))
    with torch.device("meta"):
        model = build_model(config)
    entries = matched(folder, model, llama_names(config))
    with tempfile.TemporaryDirectory() as place:
        tokenizer = import_tokenizer(folder, Path(place), values)
    require_tokens(folder, tokenizer, config)
    unused = config.vocab_size - tokenizer.vocab_size
    if unused > max(ROWS, PADDING * config.vocab_size):
        raise UserError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens, its model rows for {config.vocab_size}; "
            "expected a tokenizer of the model"
        )
    return Teacher(folder, values, config, entries, tokenizer)


def linearized_config(llama: LlamaConfig, linear: LinearMixer, softmax_layers: Iterable[int] = ()) -> LinearizedConfig:
    """The LLaMA with `linear` in all layers but `softmax_layers`, which are counted from 0.

    Raises UserError for a layer that it does not have, or a mixer that its heads do not fit.
    """
    shared = {field.name: to_dict(getattr(llama, field.name)) for field in dataclasses.fields(LanguageModelConfig)}
    own = {"arch": "linearized", "linear": to_dict(linear), "softmax_layers": sorted(softmax_layers)}
    found: LinearizedConfig = parse(LinearizedConfig, shared | own, source="linearize")
    return found


def convert(
    teacher: Teacher,
    out: Path,
    linear: LinearMixer,
    softmax_layers: Iterable[int] = (),
    *,
    seed: int = 0,
    report: Callable[[int, int], None] | None = None,
) -> Path:
    """Make the run folder `out`, with the linearized model at step 0; returns `out`.

    Called again after an interruption it starts anew; where `out` is that very conversion already, nothing is done.
    `report` is told the bytes written so far and in all. Memory is that of the largest tensor. Raises UserError where
    something else is at `out`, its disk has too little room, or a tensor is damaged.
    """
    config = linearized_config(teacher.config, linear, softmax_layers)
    record = teacher.record | {"seed": seed}
    if is_conversion(out, config, record):
        return out
    fresh = _Fresh(config, seed)
    tensors = {**teacher.entries, **fresh.entries(teacher.entries)}
    total, done = sum(entry.bytes for entry in tensors.values()), 0

    def read(name: str) -> Tensor:
        nonlocal done
        done += tensors[name].bytes
        value = teacher.read(name) if name in teacher.entries else fresh.read(name)
        if report:
            report(done, total)
        return value

    return new_run(out, Origin(teacher.folder, teacher.values, record), config, tensors, read)


def is_conversion(out: Path, config: LinearizedConfig, record: Mapping[str, Any]) -> bool:
    """Whether `out` is a run folder that begins with this model, made of weights and a seed of this record, wherever
    they lay. False where nothing is there."""
    step = out / CHECKPOINTS / "step_00000000"
    if not step.is_dir():
        return False
    manifest = read_manifest(step)
    source = {name: value for name, value in (manifest.get("source") or {}).items() if name != "folder"}
    if manifest["model"] != to_dict(config) or source != dict(record):
        raise UserError(f"out = {out}: holds another conversion; expected the path of a new folder")
    verify(step, (MODEL,))
    return True


class _Fresh:
    """The tensors that a linearized model has and a LLaMA has not, made a layer at a time."""

    def __init__(self, config: LinearizedConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self._layer, self._tensors = -1, dict[str, Tensor]()

    def entries(self, taken: Mapping[str, Entry]) -> dict[str, Entry]:
        """What they are written as: those of linear maps in the dtype of the queries' projection beside them, all else
        in float32, as angles and bounds decide over thousands of tokens."""
        with torch.device("meta"):
            model = build_model(self.config)
        tensors, found = model_tensors(model), {}
        for name in sorted(new_parameters(self.config)):
            module = model.get_submodule(name.rpartition(".")[0])
            beside = taken[".".join([*name.split(".")[:3], "q_proj.weight"])]
            dtype = beside.dtype if isinstance(module, nn.Linear) else torch.float32
            found[name] = Entry(Path(), dtype, tuple(tensors[name].shape))
        return found

    def read(self, name: str) -> Tensor:
        """The first value of a tensor."""
        layer, own = int(name.split(".")[1]), name.split(".mixer.")[1]
        if layer != self._layer:
            self._layer, self._tensors = layer, _first_values(self.config, layer, self.seed)
        return self._tensors[own]


def _first_values(config: LinearizedConfig, layer: int, seed: int) -> dict[str, Tensor]:
    """The new tensors of one layer; its projections are never made."""
    with torch.device("meta"):
        mixer = LinearAttention(config, layer)
    for name, module in mixer.named_children():
        if not name.endswith("_proj"):
            module.to_empty(device="cpu")
    mixer.reset_new_parameters(seed)
    return {name: value.detach() for name, value in mixer.named_parameters() if not value.is_meta}
