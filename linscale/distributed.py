"""Processes: what ends them and how, what a worker has of the process that started it, and how many cores there are."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

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

    with _on_sigterm(stop):
        yield


@contextlib.contextmanager
def sigterm_noted() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM does nothing but be noted: the function given says whether one came. Ctrl-C is as ever."""
    came: list[int] = []
    with _on_sigterm(lambda number, frame: came.append(number)):
        yield lambda: bool(came)


@contextlib.contextmanager
def _on_sigterm(handler: Callable[[int, object], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
