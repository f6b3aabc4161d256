"""A snapshot as a file: safetensors, whole or not there, bound to its model and tokenizer.

    embedding              state of the position encoder (cosFormer2's TPE), (D, e)
    layers.N               state of linear layer N, (H, K, V), or as models.count.state_shape has it
    layers.N.k, .v         keys and values of softmax layer N, (position, H, K)
    logits                 (V,) behind the last token read, unless tokens are left to read
    seen                   (tokens of the tokenizer,) whether the text has each, where that is known
    tokens                 all tokens of the text, where they were kept

The metadata of the file holds one `StateRecord` as JSON under `linscale_state`, with a checksum over the tensors and
a fingerprint of itself.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import NonNegativeInt
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from linscale.config import UserError, config, fingerprint, parse, to_dict
from linscale.generate.identity import Identity, digests
from linscale.generate.snapshot import Snapshot
from linscale.generate.states import fork
from linscale.layers import SoftmaxAttention
from linscale.layers.softmax_attention import KeyValues
from linscale.models import LanguageModel, State
from linscale.models.count import state_shape
from linscale.run_folder import code_version

FORMAT, METADATA = 1, "linscale_state"
REMEDY = "delete it and make it again, or restore it from a copy"
EXTRAS = ("logits", "tokens", "seen")


@config
class StateRecord:
    """What a file says of the state in it."""

    format: int
    "1; a file of another format is refused."
    tokens: NonNegativeInt
    "Tokens of the text, the end-of-text token that opens it included."
    model: str
    "Hash of the model's config and tensors, sixteen hex digits."
    model_name: str
    "Architecture and size, for people."
    tokenizer: str
    "Fingerprint of the tokenizer, sixteen hex digits."
    tokenizer_name: str
    "For people."
    dtype: str
    "Of the state as stored; several are joined by +."
    rounded: dict[str, str]
    "Tensors that were stored in bfloat16, and the dtype that they had and get again."
    created: float
    "When it was written, s since 1970."
    code: str
    "Version of linscale that wrote it."
    last: tuple[int, ...]
    "The last tokens of the text, at most 64."
    unread: tuple[int, ...]
    "Tokens of the text that are read when it is resumed."
    draws: tuple[int, int] | None
    "Where tokens were made: the seed, and how many times it has drawn."
    kept: bool
    "Whether all tokens of the text are in the file."
    checksum: str
    "Over the tensors."
    fingerprint: str = ""
    "Of all other fields."


def write_state(path: Path, snapshot: Snapshot, identity: Identity, *, bf16: bool = False) -> None:
    """Write a snapshot into `path`, whose folder exists, by way of a temporary file beside it.

    `bf16` rounds a state in float32 to half its size. Raises UserError when it cannot be written; what was at `path`
    before then stays as it was.
    """
    state = _tensors(snapshot.state)
    rounded = {name: str(x.dtype)[6:] for name, x in state.items() if bf16 and x.dtype == torch.float32}
    stored = {name: x.bfloat16() if name in rounded else x for name, x in state.items()}
    dtypes = sorted({str(x.dtype)[6:] for x in stored.values()})
    if snapshot.logits is not None:
        stored["logits"] = snapshot.logits
    if snapshot.tokens is not None:
        stored["tokens"] = torch.as_tensor(snapshot.tokens)
    if snapshot.seen is not None:
        stored["seen"] = torch.as_tensor(snapshot.seen)
    stored = {name: x.detach().cpu().clone(memory_format=torch.contiguous_format) for name, x in stored.items()}
    record = StateRecord(
        format=FORMAT, tokens=snapshot.length, model=identity.model, model_name=identity.model_name,
        tokenizer=identity.tokenizer, tokenizer_name=identity.tokenizer_name, dtype="+".join(dtypes), rounded=rounded,
        created=time.time(), code=code_version(), last=snapshot.last, unread=snapshot.unread,
        draws=snapshot.draws, kept=snapshot.tokens is not None, checksum=fingerprint(digests(stored)),
    )  # fmt: skip
    record = replace(record, fingerprint=fingerprint(to_dict(record)))
    _publish(path, stored, {"format": "pt", METADATA: json.dumps(to_dict(record))})


def _publish(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # by the umask; safetensors would let nobody else read it
        save_file(tensors, temporary, metadata=metadata)
        temporary.chmod(mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: cannot write the state ({error}); nothing was left half: free space or make the folder writable"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def read_record(path: Path) -> StateRecord:
    """What a file says of its state, without reading the state. Raises UserError for one that is not whole or not
    ours, and FileNotFoundError."""
    return _open(path)[0]


def read_state(path: Path, model: LanguageModel, identity: Identity) -> Snapshot:
    """The snapshot of a file, on the device of `model`.

    Raises UserError when the file is damaged, or was written for another model or tokenizer: it names both.
    """
    record, tensors = _open(path, read=True)
    _require_same(path, record, identity)
    if fingerprint(digests(tensors)) != record.checksum:
        raise UserError(f"{path}: corrupt, the content does not match its checksum; {REMEDY}")
    device = model.embedding.weight.device
    kept = {name: tensors.pop(name) for name in EXTRAS if name in tensors}
    tensors = {name: x.to(getattr(torch, record.rounded.get(name, str(x.dtype)[6:]))) for name, x in tensors.items()}
    state = _state({name: x.to(device) for name, x in tensors.items()}, record.tokens - len(record.unread), model, path)
    return Snapshot(
        state,
        kept["logits"].to(device) if "logits" in kept else None,
        record.last,
        record.unread,
        kept["tokens"].numpy() if "tokens" in kept else None,
        record.draws,
        kept["seen"].numpy() if "seen" in kept else None,
    )


def _open(path: Path, *, read: bool = False) -> tuple[StateRecord, dict[str, Tensor]]:
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise UserError(f"{path}: not a file; {REMEDY}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()} if read else {}  # noqa: SIM118
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{path}: damaged or not a state ({error}); {REMEDY}") from None
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    if METADATA not in metadata:
        raise UserError(f"{path}: not a state that linscale saved (its metadata has no {METADATA})")
    return _record(path, metadata[METADATA]), tensors


def _record(path: Path, text: str) -> StateRecord:
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{path}: corrupt, its record is not JSON; {REMEDY}")
    if values.get("format") != FORMAT:
        raise UserError(f"{path}: a state of format {values.get('format')!r}; this linscale reads format {FORMAT}")
    if values.get("fingerprint") != fingerprint({**values, "fingerprint": ""}):
        raise UserError(f"{path}: corrupt, its record does not match its fingerprint; {REMEDY}")
    record: StateRecord = parse(StateRecord, values, source=str(path))
    return record


def _require_same(path: Path, record: StateRecord, identity: Identity) -> None:
    if record.model != identity.model:
        raise UserError(
            f"{path}: made by model {record.model} ({record.model_name}), but this is model {identity.model} "
            f"({identity.model_name}); use the checkpoint that made it, or make the state again"
        )
    if record.tokenizer != identity.tokenizer:
        raise UserError(
            f"{path}: made with tokenizer {record.tokenizer} ({record.tokenizer_name}), but this is tokenizer "
            f"{identity.tokenizer} ({identity.tokenizer_name}); use the one that made it, or make the state again"
        )


def _tensors(state: State) -> dict[str, Tensor]:
    """The tensors of a state of one sequence, without their first axis, by the names that they have in a file."""
    if state.position.shape != (1,):
        raise ValueError(f"a state of {len(state.position)} sequences; one is saved: states.fork takes it out")
    state = fork(state, torch.zeros(1, dtype=torch.int64, device=state.position.device))  # caches cut to length
    tensors = {} if state.embedding is None else {"embedding": state.embedding[0]}
    for number, layer in enumerate(state.layers):
        if isinstance(layer, KeyValues):
            tensors |= {f"layers.{number}.k": layer.k[0], f"layers.{number}.v": layer.v[0]}
        else:
            tensors[f"layers.{number}"] = layer[0]
    return tensors


def _state(tensors: dict[str, Tensor], position: int, model: LanguageModel, path: Path) -> State:
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    if shapes != (expected := _shapes(model, position)):
        name = next(name for name in {**expected, **shapes} if shapes.get(name) != expected.get(name))
        raise UserError(f"{path}: '{name}' is {shapes.get(name)}, the model needs {expected.get(name)}; {REMEDY}")
    whole = {name: x[None] for name, x in tensors.items()}
    layers: list[Any] = []
    for number in range(model.config.n_layers):
        name = f"layers.{number}"
        layers.append(whole[name] if name in whole else KeyValues(whole[f"{name}.k"], whole[f"{name}.v"]))
    read = torch.tensor([position], device=model.embedding.weight.device)
    return State(read, whole.get("embedding"), tuple(layers))


def _shapes(model: LanguageModel, position: int) -> dict[str, tuple[int, ...]]:
    """Of every tensor of a state of one sequence."""
    shape, encoder = model.config, model.position_encoder
    shapes: dict[str, tuple[int, ...]] = {} if encoder is None else {"embedding": tuple(encoder.weight.shape)}
    for number, block in enumerate(model.blocks):
        if isinstance(block.mixer, SoftmaxAttention):
            heads = block.mixer.k_proj.out_features // shape.head_dim
            shapes |= {f"layers.{number}.{part}": (position, heads, shape.head_dim) for part in "kv"}
        else:
            shapes[f"layers.{number}"] = state_shape(shape, number)
    return shapes
