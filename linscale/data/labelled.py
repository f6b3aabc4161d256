"""Sequences of one length, each with a class: images by the pixel, for instance. One .npz file holds a set:

    train, val                  (N, T)   tokens, integers from 0 to symbols - 1
    train_labels, val_labels    (N,)     classes, from 0
    symbols                     ()       how many tokens there are
    classes                     (C,)     their names

The vocabulary is the symbols and, behind them, a token a class; the target of the last token of a sequence is that of
its class, and no other token has a target. So a class head is rows of the embedding, as a word's is.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from linscale.config import UserError
from linscale.data.loader import Batch, shuffled

IGNORED = -100
SPLITS = ("train", "val")
ARRAYS = (*SPLITS, *(f"{split}_labels" for split in SPLITS), "symbols", "classes")


@dataclass(frozen=True)
class Labelled:
    """A set of sequences with classes, of which a rank reads those of its place among `world`."""

    path: Path
    sequences: dict[str, np.ndarray]
    "By split, (N, T)."
    labels: dict[str, np.ndarray]
    "By split, (N,)."
    symbols: int
    classes: tuple[str, ...]
    rank: int = 0
    world: int = 1

    @classmethod
    def open(cls, path: Path) -> Labelled:
        """Read a file. Raises UserError where it is missing, no such file, or its parts do not fit."""
        try:
            with np.load(path) as file:
                missing = [name for name in ARRAYS if name not in file]
                if missing:
                    raise UserError(f"{path}: no array {missing[0]!r}; expected {', '.join(ARRAYS)}")
                parts = {name: file[name] for name in ARRAYS}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: cannot be read as .npz ({error})") from None
        data = cls(
            path,
            {split: parts[split] for split in SPLITS},
            {split: parts[f"{split}_labels"] for split in SPLITS},
            int(parts["symbols"]),
            tuple(map(str, parts["classes"])),
        )
        data._check()
        return data

    def _check(self) -> None:
        for split in SPLITS:
            sequences, labels = self.sequences[split], self.labels[split]
            if sequences.ndim != 2 or labels.shape != sequences.shape[:1] or not sequences.size:
                raise UserError(
                    f"{self.path}: {split} {sequences.shape} with labels {labels.shape}; expected (N, T), (N,)"
                )
            for name, values, bound in ((split, sequences, self.symbols), ("labels", labels, len(self.classes))):
                if values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= bound:
                    raise UserError(f"{self.path}: {name} of {split}: expected integers from 0 to {bound - 1}")

    @property
    def length(self) -> int:
        """T."""
        return self.sequences["train"].shape[1]

    @property
    def vocab_size(self) -> int:
        return self.symbols + len(self.classes)

    @cached_property
    def fingerprint(self) -> str:
        """Equal digits, equal sets."""
        digest = hashlib.sha256(f"{self.symbols} {self.classes}".encode())
        for split in SPLITS:
            for values in (self.sequences[split], self.labels[split]):
                digest.update(f"{values.shape}".encode() + np.ascontiguousarray(values, "<i8").tobytes())
        return digest.hexdigest()[:16]

    def shared_by(self, rank: int, world: int) -> Labelled:
        """The set as one of several ranks reads it."""
        return replace(self, rank=rank, world=world)

    def take(self, split: str, places: np.ndarray) -> Batch:
        """The sequences at these places of a split: tokens and targets (B, T)."""
        tokens = self.sequences[split][places].astype(np.int64)
        targets = np.full(tokens.shape, IGNORED)
        targets[:, -1] = self.symbols + self.labels[split][places]
        return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), None)


class LabelledReader:
    """Batches of `count` sequences of the training split, in another order every epoch, for ever; this rank's rows."""

    def __init__(self, data: Labelled, count: int, seed: int) -> None:
        self.data, self.count, self.seed = data, count, seed
        share = count // data.world
        self._rows = np.arange(share) + data.rank * share

    def batch(self, step: int) -> Batch:
        """The batch of `step` >= 0."""
        return self.data.take("train", self.windows_of(step))

    def windows_of(self, step: int) -> np.ndarray:
        """The numbers of its sequences."""
        return shuffled(step * self.count + self._rows, len(self.data.labels["train"]), self.seed)
