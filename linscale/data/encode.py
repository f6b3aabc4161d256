"""Encoding: batches of documents to tokens and splits, in this process or in worker processes, in order."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import numpy as np

from linscale.config import UserError
from linscale.data.tokenizer import Tokenizer
from linscale.distributed import follow_parent


class Encoded(NamedTuple):
    """A tokenized document and the split it belongs to."""

    split: str
    tokens: np.ndarray
    text_bytes: int


class Batch(NamedTuple):
    """Documents in order, each with its source and its number in it; `bytes_read` counts all input so far."""

    positions: list[tuple[int, int]]
    texts: list[str]
    bytes_read: int


def split_of(text: bytes, seed: int, val_fraction: float) -> str:
    """'val' for a share `val_fraction` of all texts, 'train' for the rest: a function of text and seed alone."""
    digest = hashlib.blake2b(text, digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return "val" if int.from_bytes(digest, "little") < val_fraction * 2**64 else "train"


class Encoder:
    """Tokenizes texts and draws their split; what a worker process runs."""

    def __init__(self, tokenizer: Tokenizer, seed: int, val_fraction: float) -> None:
        self.tokenizer, self.seed, self.val_fraction = tokenizer, seed, val_fraction

    def __call__(self, texts: list[str]) -> list[Encoded]:
        encoded = []
        for text, tokens in zip(texts, self.tokenizer.encode_batch(texts), strict=True):
            data = text.encode()
            encoded.append(Encoded(split_of(data, self.seed, self.val_fraction), tokens, len(data)))
        return encoded


def encode_in_order(batches: Iterator[Batch], encode: Encoder, workers: int) -> Generator[tuple[Batch, list[Encoded]]]:
    """Every batch with its documents encoded, in order; at most two batches a worker are under way.

    A single worker is a thread of this process. It never is a process's first thread that encodes: the tokenizers
    library is a third faster in any other one (glibc; benchmarks/NOTES.md, 2026-11-26).
    """
    if workers == 1:
        pool: Executor = ThreadPoolExecutor(1)
        work: Callable[[list[str]], list[Encoded]] = encode
    else:
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (encode,))
        work = _encode
    pending: deque[tuple[Batch, Future[list[Encoded]]]] = deque()
    try:
        for batch in batches:
            pending.append((batch, pool.submit(work, batch.texts)))
            if len(pending) >= 2 * workers:
                done, future = pending.popleft()
                yield done, future.result()
        for done, future in pending:
            yield done, future.result()
    except BrokenProcessPool:
        remedy = "run the same command again to continue, with fewer workers if memory is short"
        raise UserError(f"a worker process died (killed, or out of memory); {remedy}") from None
    finally:
        pool.shutdown(cancel_futures=True)


_encoder: Encoder
_thread: Executor  # of a worker process


def _start_worker(encoder: Encoder) -> None:
    global _encoder, _thread
    _encoder, _thread = encoder, ThreadPoolExecutor(1)
    follow_parent()


def _encode(texts: list[str]) -> list[Encoded]:
    return _thread.submit(_encoder, texts).result()
