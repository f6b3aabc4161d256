"""Processes: what ends them and how, what a worker has of the process that started it, how many cores there are, and
the ranks that train one model together.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import multiprocessing
import multiprocessing.connection
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar, cast

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.tensor import DTensor

T = TypeVar("T")

CGROUP = Path("/sys/fs/cgroup")


def follow_parent() -> None:
    """Called in a worker process: it ends when its parent does, however that ends, and leaves Ctrl-C to it.

    A pool alone would leave workers of a killed parent waiting, or working on, for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: stop as after Ctrl-C."""


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Inside, SIGTERM raises Terminated, so that workers are stopped and the state of a run is written."""

    def stop(number: int, frame: object) -> None:
        raise Terminated

    with _on_signals((signal.SIGTERM,), stop):
        yield


@contextlib.contextmanager
def sigterm_noted(*others: int) -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM and the signals `others` do nothing but be noted: the function given says whether one came."""
    came: list[int] = []
    with _on_signals((signal.SIGTERM, *others), lambda number, frame: came.append(number)):
        yield lambda: bool(came)


@contextlib.contextmanager
def stop_noted() -> Iterator[Callable[[], None]]:
    """Inside, Ctrl-C and SIGTERM wait until the function given is called, which raises KeyboardInterrupt or Terminated.

    Raised wherever the process happens to be, they are lost in a destructor.
    """
    came: list[int] = []

    def check() -> None:
        if came:
            raise Terminated if came[0] == signal.SIGTERM else KeyboardInterrupt

    with _on_signals((signal.SIGTERM, signal.SIGINT), lambda number, frame: came.append(number)):
        yield check


@contextlib.contextmanager
def _on_signals(numbers: tuple[int, ...], handler: Callable[[int, object], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def cores() -> int:
    """CPU cores that this process may use: fewer than the machine has under an affinity mask or a container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(count, _quota(CGROUP))))


def limit_threads(count: int) -> None:
    """Let torch compute on at most `count` threads in this process; a lower limit that is already set stays."""
    import torch

    torch.set_num_threads(min(count, torch.get_num_threads()))


def _quota(cgroup: Path) -> float:
    """The CPU quota of the control group in cores, infinite where there is none."""
    with contextlib.suppress(OSError, ValueError):
        limit, period = (cgroup / "cpu.max").read_text().split()  # version 2; no limit reads "max"
        return int(limit) / int(period)
    with contextlib.suppress(OSError, ValueError):
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")  # version 1; no limit reads -1
        quota, period_us = (int((cgroup / "cpu" / name).read_text()) for name in names)
        return quota / period_us if quota > 0 else math.inf
    return math.inf


@dataclass(frozen=True)
class Ranks:
    """The processes that train one model, and which of them this one is: a grid of replicas times pieces, row by row.

    A row (replica) reads sequences of its own, and each of its ranks holds one of the `pieces` of every sequence.
    """

    rank: int = 0
    size: int = 1
    pieces: int = 1
    row: str = ""
    "Name of the process group of this rank's row."
    local_size: int = 1
    "How many of them share this machine's cores."

    @property
    def first(self) -> bool:
        """Whether this is the one that writes the run folder."""
        return self.rank == 0

    @property
    def replicas(self) -> int:
        return self.size // self.pieces

    @property
    def replica(self) -> int:
        """The row of this rank."""
        return self.rank // self.pieces

    @property
    def piece(self) -> int:
        """The column of this rank: which piece of its sequences it holds."""
        return self.rank % self.pieces

    def share(self, value: T) -> T:
        """The first rank's value, on every rank. They wait for each other; so they do in what follows."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def lead(self, work: Callable[[], T]) -> T:
        """What `work` gives to the first rank, on every rank; what it raises there, all of them raise."""
        done: T | Exception | None = None
        if self.first:
            try:
                done = work()
            except Exception as error:
                done = error
        told = self.share(done)
        if isinstance(told, Exception):
            raise told
        return cast("T", told)

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in order, on every rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Which flags are set on some rank. Between hosts alone: no device is waited for."""
        if self.size == 1:
            return flags
        import torch
        import torch.distributed as dist

        found = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return tuple(map(bool, found.tolist()))

    def sum(self, x: Tensor) -> Tensor:
        """The sum of x over all ranks, on its device, without waiting for it."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(x)
        return x


ALONE = Ranks()


def piece_of(*tensors: Tensor, ranks: Ranks) -> tuple[Tensor, ...]:
    """This rank's piece of tensors (B, T) or (B, T, ...): T / pieces steps of each."""
    if ranks.pieces == 1:
        return tensors
    steps = tensors[0].shape[1] // ranks.pieces
    return tuple(x[:, ranks.piece * steps : (ranks.piece + 1) * steps] for x in tensors)


def copy_into(target: Tensor, values: Tensor) -> None:
    """Give a parameter or buffer its values; of one that FSDP shards, every rank its own rows. Not differentiated."""
    import torch

    with torch.no_grad():
        local, rows = local_rows(target)
        local.copy_(values[rows] if values.ndim else values)


def sharded(x: Tensor) -> TypeGuard[DTensor]:
    """Whether it is a DTensor, of which every rank holds a part. Where nothing has imported that class yet, nothing is:
    the import takes half a second, and a process that trains alone, or only reads a model, needs it not."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local_rows(x: Tensor) -> tuple[Tensor, slice]:
    """What this rank holds of a tensor, and which of its rows that is: all, unless FSDP shards it by rows."""
    if not sharded(x):
        return x, slice(None)
    size, count = x.device_mesh.size(), x.shape[0]
    first = min(x.device_mesh.get_local_rank() * -(-count // size), count)
    local = x.to_local()
    return local, slice(first, first + len(local))


@contextlib.contextmanager
def join_ranks(pieces: int, *, cuda: bool) -> Iterator[Ranks]:
    """Inside, this process is one of those that torchrun started, or the only one; with its own GPU where `cuda`.

    Between hosts gloo is used, between GPUs NCCL. Raises ValueError where `pieces` does not divide their number.
    """
    import torch
    import torch.distributed as dist

    if not dist.is_torchelastic_launched():
        if pieces > 1:
            raise ValueError(f"sequence_parallel = {pieces}: this process is alone; start it with torchrun")
        yield ALONE
        return
    device = torch.device("cuda", dist.get_node_local_rank()) if cuda else None
    if device is not None:
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, device_id=device, timeout=datetime.timedelta(minutes=30))
    try:
        rank, size = dist.get_rank(), dist.get_world_size()
        if size % pieces:
            raise ValueError(f"sequence_parallel = {pieces}: does not divide the number of ranks, {size}")
        rows = [dist.new_group(range(first, first + pieces)) for first in range(0, size, pieces)]
        local: list[str] = [""] * size
        dist.all_gather_object(local, platform.node())
        yield Ranks(rank, size, pieces, rows[rank // pieces].group_name, local.count(platform.node()))
    finally:
        dist.destroy_process_group()
