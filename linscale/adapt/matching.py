"""The tensors of a Hugging Face folder, found by our names: all of them, none besides, each in its shape."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from linscale.adapt.llama_names import IGNORED, TIED_HEAD
from linscale.adapt.tensor_file import Entry, entries_of, read_tensor
from linscale.checkpoint.tensors import model_tensors
from linscale.config import UserError
from linscale.models import LanguageModel
from linscale.run_folder import CONFIG


def matched(folder: Path, model: LanguageModel, names: Mapping[str, str]) -> dict[str, Entry]:
    """The folder's tensors by our names; `names` are ours -> the folder's, of the whole model.

    Raises UserError for a tensor that is unknown, missing or of another shape.
    """
    found = {name: entry for name, entry in entries_of(folder).items() if not name.endswith(IGNORED)}
    theirs = set(names.values())
    if TIED_HEAD in found and TIED_HEAD not in theirs and (tied := names["embedding.weight"]) in found:
        if not torch.equal(read_tensor(TIED_HEAD, found[TIED_HEAD]), read_tensor(tied, found[tied])):
            raise UserError(
                f"{folder}: tensor '{TIED_HEAD}' differs from '{tied}', but {CONFIG} has tie_word_embeddings = true"
            )
        del found[TIED_HEAD]
    require_names(folder, set(found), theirs)
    for ours, tensor in model_tensors(model).items():
        shape = found[names[ours]].shape
        if shape != tensor.shape:
            raise UserError(f"{folder}: tensor '{names[ours]}' is {shape}, but {CONFIG} makes it {tuple(tensor.shape)}")
    return {ours: found[name] for ours, name in names.items()}


def require_names(place: Path, found: set[str], expected: set[str]) -> None:
    """Raise UserError naming the first tensor that is unknown, or missing."""
    for problem, names in (("unknown", found - expected), ("missing", expected - found)):
        if names:
            raise UserError(
                f"{place}: {problem} tensor '{min(names)}' ({len(names)} in all); expected those of {CONFIG}"
            )
