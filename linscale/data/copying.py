"""Copying, as data that is made and not read: a payload, noise, and as many markers at which the payload comes back.

    copy       p1 ... pn, then `noise` zeros, then n markers
    selective  p1 ... pn in their order at random places among `noise` zeros, then n markers

The target of marker i is p_i; no other token has one, and no answer is among the inputs. Tokens are 0 (noise), 1 to
symbols - 2 (payload) and symbols - 1 (marker). The generator of S4 and Mamba (arXiv 2312.00752, section 4.1.1), with
the payload first. A batch is a function of (seed, split, noise, number of the batch) alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt

from linscale.config import config, fingerprint, to_dict
from linscale.data.loader import Batch

IGNORED = -100
SPLITS = {"train": 0, "val": 1}


@config
class CopyingConfig:
    """A copying task."""

    kind: Literal["copy", "selective"]
    "Whether the payload stands together, or is spread over the noise."
    noise: PositiveInt = 4096
    "Tokens of noise: what makes it hard."
    payload: PositiveInt = 16
    "Tokens to be copied."
    symbols: Annotated[int, Field(ge=3)] = 16
    "Size of the alphabet, noise and marker included."

    def length(self, noise: int | None = None) -> int:
        """Tokens of a sequence with so much noise; by default of the whole task."""
        return 2 * self.payload + (self.noise if noise is None else noise)


@dataclass(frozen=True)
class Copying:
    """The sequences of a task, of which a rank reads those of its place among `world`."""

    task: CopyingConfig
    seed: int
    rank: int = 0
    world: int = 1

    @property
    def fingerprint(self) -> str:
        """Equal digits, equal sequences for equal seeds."""
        return fingerprint(to_dict(self.task))

    @property
    def vocab_size(self) -> int:
        return self.task.symbols

    def batch(self, number: int, sequences: int, noise: int, split: str = "train") -> Batch:
        """This rank's rows of batch `number` of `sequences` with so much noise: tokens and targets (B, T)."""
        task = self.task
        random = np.random.default_rng([self.seed, SPLITS[split], noise, number])
        payload = random.integers(1, task.symbols - 1, (sequences, task.payload))
        shown = np.zeros((sequences, noise + task.payload), np.int64)
        if task.kind == "copy":
            shown[:, : task.payload] = payload
        else:
            places = np.sort(random.random(shown.shape).argpartition(task.payload - 1, axis=1)[:, : task.payload])
            np.put_along_axis(shown, places, payload, axis=1)
        share = sequences // self.world
        mine = slice(self.rank * share, (self.rank + 1) * share)
        markers = np.full((share, task.payload), task.symbols - 1)
        tokens = np.concatenate([shown[mine], markers], axis=1)
        targets = np.full(tokens.shape, IGNORED)
        targets[:, -task.payload :] = payload[mine]
        return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), None)
