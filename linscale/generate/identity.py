"""Which model and tokenizer a state belongs to: hashes of what they are, not of where they came from.

The hash of a model is over its config and every tensor, so that a run folder, a copy of its checkpoint and a model
made in memory agree. Loading a checkpoint already reads every byte for its checksum, on one core; this reads them
once more on all cores, and once a process: a model that has not been changed since is not hashed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from linscale.config import fingerprint, human, to_dict
from linscale.data.tokenizer import Tokenizer
from linscale.distributed import cores
from linscale.models import LanguageModel

DIGITS = 16  # of a hash, as fingerprints have
_known: WeakKeyDictionary[LanguageModel, tuple[Any, str]] = WeakKeyDictionary()


class Identity(NamedTuple):
    """What a state is bound to, with the words for people beside the hashes."""

    model: str
    """`model_hash`, sixteen hex digits."""
    model_name: str
    """Such as 'hgrn2, 374M parameters'."""
    tokenizer: str
    """The tokenizer's fingerprint, sixteen hex digits."""
    tokenizer_name: str


def identify(model: LanguageModel, tokenizer: Tokenizer) -> Identity:
    """The identity of states that this model makes from texts of this tokenizer."""
    size = human(sum(parameter.numel() for parameter in model.parameters()))
    name = f"{to_dict(model.config)['arch']}, {size} parameters"
    return Identity(model_hash(model), name, tokenizer.fingerprint, tokenizer.name)


def model_hash(model: LanguageModel) -> str:
    """Sixteen hex digits of a model's config and of every parameter and persistent buffer, in their dtype.

    The device does not matter; the dtype does: hash a model before it is cast where both shall share states.
    """
    tensors = dict(model.state_dict())
    versions = tuple((x.data_ptr(), x.dtype, 0 if x.is_inference() else x._version) for x in tensors.values())
    if model in _known and _known[model][0] == versions:
        return _known[model][1]
    found = fingerprint({"config": to_dict(model.config), "tensors": digests(tensors)})[:DIGITS]
    _known[model] = versions, found
    return found


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The sha256 of each tensor's dtype, shape and bytes, by name in order; as many at once as there are cores."""
    names = sorted(tensors)
    with ThreadPoolExecutor(cores()) as pool:
        return dict(zip(names, pool.map(_digest, [tensors[name] for name in names]), strict=True))


def _digest(x: Tensor) -> str:
    whole = x.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{whole.dtype} {tuple(whole.shape)} ".encode())
    if whole.numel():
        digest.update(whole.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
