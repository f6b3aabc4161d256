"""The loader: batch = f(seed, step), so that resuming needs one integer.

A split is cut into windows of `length` tokens, each with the token after it as its last target. An epoch is a
permutation of the windows, a function of (seed, epoch) that is computed for the windows asked for and stored
nowhere. The epochs follow each other without end, and step k takes windows [k * sequences, (k + 1) * sequences).
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from linscale.config import UserError
from linscale.data.shards import TokenDataset

ROUNDS = 6
DRAWN = -1  # in place of an epoch: the order in which windows are drawn where not all are read
AHEAD = 2  # batches read before they are asked for


@dataclass(frozen=True)
class Batch:
    """`targets` is `tokens` one position later.

    Rows: tokens, targets (B, T) int64, cu_seqlens None. Packed: (1, B*T), and cu_seqlens (N+1,) int32 holds 0, the
    start of every further row, the start of every document inside a row, and B*T.
    """

    tokens: Tensor
    targets: Tensor
    cu_seqlens: Tensor | None


class Loader:
    """Batches of `sequences` windows of `length` tokens, in shuffled order, for ever.

    Rank r of `world` gets rows [r, r + 1) * sequences / world of the batch that world = 1 gets whole.
    With `documents` the rows are packed end to end with the boundaries of rows and documents. With `unique` only so
    many tokens are read, in windows drawn by the seed, those of a smaller number among those of a larger one.
    Raises UserError when a size is not positive, `world` does not divide `sequences`, or the split is too short.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        split: str,
        *,
        length: int,
        sequences: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        documents: bool = False,
        unique: int | None = None,
    ) -> None:
        self.all_windows = count_windows(dataset, split, length, sequences)
        self.windows = self.all_windows if unique is None else min(self.all_windows, unique // length)
        if world < 1 or sequences % world:
            raise UserError(f"sequences = {sequences}: must be a multiple of the number of ranks, {world}")
        if not 0 <= rank < world:
            raise UserError(f"rank = {rank}: must be in 0..{world - 1}")
        self.dataset, self.split, self.length, self.documents = dataset, split, length, documents
        self.sequences, self.seed = sequences, seed
        self._rows = np.arange(sequences // world) + rank * (sequences // world)

    def batch(self, step: int) -> Batch:
        """The batch of `step` >= 0; the same for the same dataset, arguments and step."""
        return read_batch(self.dataset, self.split, self.windows_of(step), self.length, self.documents)

    def windows_of(self, step: int) -> np.ndarray:
        """The numbers of the windows that make up the batch of `step`."""
        if step < 0:
            raise UserError(f"step = {step}: must be at least 0")
        windows = shuffled(step * self.sequences + self._rows, self.windows, self.seed)
        if self.windows == self.all_windows:
            return windows
        return permute(windows, self.all_windows, self.seed, DRAWN)


class Prefetcher:
    """Batches of `steps`, in order, read by a thread of its own while the one before is trained on.

    pin  whether to put them in memory that a GPU copies from while it works
    Leaving it, or its end, ends the thread. What `read` raises, `next` raises.
    """

    def __init__(self, read: Callable[[int], Batch], steps: range, *, pin: bool = False) -> None:
        self._read, self._pin = read, pin
        self._steps = iter(steps)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._waiting = deque(self._submit() for _ in range(min(AHEAD, len(steps))))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __next__(self) -> Batch:
        if not self._waiting:
            raise StopIteration
        batch = self._waiting.popleft().result()
        with contextlib.suppress(StopIteration):
            self._waiting.append(self._submit())
        return batch

    def _submit(self) -> Future[Batch]:
        return self._pool.submit(self._load, next(self._steps))

    def _load(self, step: int) -> Batch:
        batch = self._read(step)
        if not self._pin:
            return batch
        bounds = None if batch.cu_seqlens is None else batch.cu_seqlens.pin_memory()
        return Batch(batch.tokens.pin_memory(), batch.targets.pin_memory(), bounds)


def validation_batches(
    dataset: TokenDataset,
    split: str,
    *,
    length: int,
    sequences: int,
    max_tokens: int | None = None,
    documents: bool = False,
) -> Iterator[Batch]:
    """The windows of a split in order from its beginning, at most `max_tokens` tokens; the last batch may be smaller.

    The tokens behind the last whole window are left out.
    """
    windows = count_windows(dataset, split, length, sequences)
    if max_tokens is not None:
        if max_tokens < length:
            raise UserError(f"max_tokens = {max_tokens}: must be at least one window, {length} tokens")
        windows = min(windows, max_tokens // length)
    for first in range(0, windows, sequences):
        numbers = np.arange(first, min(first + sequences, windows))
        yield read_batch(dataset, split, numbers, length, documents)


def count_windows(dataset: TokenDataset, split: str, length: int, sequences: int) -> int:
    """How many windows of `length` tokens and one more target a split holds. Raises UserError when it is none."""
    for name, value in (("length", length), ("sequences", sequences)):
        if value < 1:
            raise UserError(f"{name} = {value}: must be at least 1")
    tokens = dataset.tokens(split)
    if tokens <= length:
        raise UserError(
            f"length = {length}: split '{split}' of {dataset.folder} has {tokens} tokens, and a window takes "
            "length + 1; choose a shorter length or prepare more text"
        )
    return (tokens - 1) // length


def read_batch(dataset: TokenDataset, split: str, windows: np.ndarray, length: int, documents: bool) -> Batch:
    """The batch of these windows, one a row."""
    rows = torch.from_numpy(dataset.windows(split, windows * length, length + 1))  # (B, T+1)
    tokens, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    if not documents:
        return Batch(tokens, targets, None)
    tokens, targets = tokens.view(1, -1), targets.view(1, -1)
    # No text encodes to eos, so where it stands among the inputs, it opens a document.
    starts = tokens[0] == dataset.eos_id
    starts[::length] = True
    ends = torch.tensor([tokens.shape[1]])
    return Batch(tokens, targets, torch.cat([starts.nonzero()[:, 0], ends]).to(torch.int32))


def shuffled(numbers: np.ndarray, size: int, seed: int) -> np.ndarray:
    """What is read `numbers`-th, from 0, where epochs of range(size) follow each other, each in an order of its own."""
    epochs, places = np.divmod(numbers, size)
    found = np.empty_like(places)
    for epoch in np.unique(epochs):
        rows = epochs == epoch
        found[rows] = permute(places[rows], size, seed, int(epoch))
    return found


def permute(places: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Where a pseudorandom permutation of range(size) sends each of `places`; the key is (seed, epoch).

    A Feistel network on pairs (left, right) of an a x b grid that just covers `size`: each round adds a keyed hash of
    one half to the other, which is invertible whatever the hash is. Values beyond `size` go round again until they
    fall inside (cycle walking), which keeps it one to one. Black and Rogaway, "Ciphers with arbitrary finite
    domains", 2002. Only integer arithmetic modulo 2^64: the order never changes with a library.
    """
    digest = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=8 * ROUNDS).digest()
    keys = np.frombuffer(digest, "<u8").astype(np.uint64)
    height = math.isqrt(size - 1) + 1
    width = -(-size // height)
    values = places.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        left, right = np.divmod(values[outside], np.uint64(width))
        for number in range(0, ROUNDS, 2):
            left = (left + _hash(right, keys[number : number + 1]) % np.uint64(height)) % np.uint64(height)
            right = (right + _hash(left, keys[number + 1 : number + 2]) % np.uint64(width)) % np.uint64(width)
        values[outside] = left * np.uint64(width) + right
        outside = values >= size
    return values.astype(np.int64)


def _hash(values: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Keyed 64-bit mixing: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014) of value XOR key."""
    mixed = values ^ key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
