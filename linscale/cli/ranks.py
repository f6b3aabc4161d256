"""The ranks that a training command runs as, under torchrun or alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from linscale.config import UserError
from linscale.distributed import Ranks, cores, join_ranks, limit_threads
from linscale.train.config import TrainConfig
from linscale.train.settings import resolve_device


@contextlib.contextmanager
def joined(train: TrainConfig) -> Iterator[Ranks]:
    """All ranks, which share the cores of their machine.

    Raises UserError where there is no such device, and where pieces of sequences do not fit the ranks.
    """
    device = resolve_device(train.device)
    with contextlib.ExitStack() as stack:
        try:
            ranks = stack.enter_context(join_ranks(train.sequence_parallel, cuda=device == "cuda"))
        except ValueError as error:
            raise UserError(f"train.{error}") from None
        limit_threads(max(1, cores() // ranks.local_size))
        yield ranks
