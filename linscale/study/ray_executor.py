"""The ray executor: every run of a ladder is a task on a Ray cluster, in a process of its own, with its CPUs and GPU.

The run folder is the interface here too: all nodes see it, and a task goes on from its newest checkpoint wherever the
one before it ran. The folder's lock is the fence: a node that the cluster gave up may live on, cut off, with a process
that still trains, and the next task waits until that lets go.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from linscale.config import UserError, to_dict
from linscale.data.manifest import MANIFEST
from linscale.distributed import Terminated, sigterm_noted
from linscale.run_folder import disk_errors, is_locked
from linscale.study.cluster import Cluster, count, not_shared, one_line, unseen
from linscale.study.executors import ATTEMPTS, POLL_S, STOPPED, train_run
from linscale.study.torchrun import train_on
from linscale.train.config import RunConfig

LOCK_S = 120.0  # a file server takes up to 90 s to give up the locks of a machine that it lost
TOKEN = ".seen-by-every-node-"  # an empty file in the study's folder, named anew each time

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Try:
    path: Path
    config: RunConfig
    number: int = 1


class RayExecutor:
    """Trains runs as tasks of a Ray cluster, as many at a time as there is room for, and ends them with this process.

    A run has `cpus_per_run` cores, its number of threads, and `gpus_per_run` GPUs, by default 1 where the cluster has
    any, else 0; less than 1 lets runs share one, and more make it a run of as many ranks, all on one node. Raises
    UserError when no node has room for a run.
    """

    def __init__(self, cluster: Cluster, *, gpus_per_run: float | None = None, cpus_per_run: int = 1) -> None:
        if cpus_per_run < 1:
            raise UserError(f"cpus_per_run = {cpus_per_run}: expected at least 1")
        if gpus_per_run is not None and not (0 <= gpus_per_run <= 1 or gpus_per_run == int(gpus_per_run) > 0):
            raise UserError(f"gpus_per_run = {gpus_per_run}: expected a whole number, or a share of a GPU from 0 to 1")
        nodes = cluster.nodes()
        if gpus_per_run is None:
            gpus_per_run = 1 if any(count(node, "GPU") for node in nodes) else 0
        self._cluster, self._ray, self.cpus, self.gpus = cluster, cluster.ray, cpus_per_run, gpus_per_run
        if not cluster.with_room(self.cpus, self.gpus):
            found = "; ".join(f"{count(node, 'CPU'):g} and {count(node, 'GPU'):g}" for node in nodes)
            raise UserError(
                f"cpus_per_run = {self.cpus}, gpus_per_run = {self.gpus:g}: "
                f"expected no more than one node of the cluster has; they have {found}"
            )
        # A process of its own for every run: max_calls = 1. How often a run is tried again is counted here.
        self._task = self._ray.remote(max_calls=1, max_retries=0, num_cpus=self.cpus, num_gpus=self.gpus)(_task)

    def device(self, asked: str) -> str:
        """What `train.device` comes to there, whatever this machine has. Raises UserError for CUDA without GPUs."""
        if asked == "cuda" and not self.gpus:
            raise UserError("train.device = 'cuda': gpus_per_run = 0; expected 'auto' or 'cpu', or GPUs in the cluster")
        return ("cuda" if self.gpus else "cpu") if asked == "auto" else asked

    def run(self, runs: Mapping[Path, RunConfig], poll: Callable[[], None]) -> dict[Path, str]:
        """Train every run, the first ones first. Raises UserError when a node does not see the folders of the study.

        A run whose worker or node is lost goes on from its newest checkpoint elsewhere, or waits for a node with room.
        SIGTERM raises Terminated as soon as Ray listens: a handler that raises inside of it would pass for Ctrl-C.
        """
        errors = dict[Path, str]()
        with _tokens(runs) as files, sigterm_noted() as terminated:
            self._cluster.require_shared(files, self._cluster.with_room(self.cpus, self.gpus))
            tasks = {self._submit(item, files): item for item in (_Try(path, config) for path, config in runs.items())}
            try:
                while tasks:
                    for task in self._ray.wait(list(tasks), timeout=POLL_S)[0]:
                        item = tasks.pop(task)
                        lost, error = self._outcome(task)
                        if lost and item.number < ATTEMPTS:
                            again = replace(item, number=item.number + 1)
                            tasks[self._submit(again, files)] = again
                        elif error is not None:
                            errors[item.path] = f"its worker was lost {ATTEMPTS} times: {error}" if lost else error
                    poll()
                    if terminated():
                        raise Terminated
            except BaseException:
                self._stop(list(tasks))
                raise
        return errors

    def _submit(self, item: _Try, files: list[str]) -> Any:
        if not self._cluster.with_room(self.cpus, self.gpus):
            logger.warning("%s: waits for a node with %d CPUs and %g GPUs", item.path.name, self.cpus, self.gpus)
        config = to_dict(item.config)
        assert item.config.data.path is not None
        config["data"]["path"] = str(Path(item.config.data.path).absolute())
        config["train"]["device"] = self.device(item.config.train.device)
        named = self._task.options(name=item.path.name)
        return named.remote(str(item.path.absolute()), config, files, self.cpus, max(1, int(self.gpus)))

    def _outcome(self, task: Any) -> tuple[bool, str | None]:
        """Of a task that ended: whether its worker was lost under it, and what went wrong."""
        ray = self._ray.exceptions
        losses = (ray.WorkerCrashedError, ray.NodeDiedError, ray.LocalRayletDiedError, ray.OutOfMemoryError)
        try:
            error: str | None = self._ray.get(task)
        except ray.RayError as failure:
            return isinstance(failure, losses), f"{type(failure).__name__}: {one_line(failure)}"
        return error == STOPPED, error  # stopped, but not by this process: its node is being drained

    def _stop(self, tasks: list[Any]) -> None:
        """Have each task save the step that it is at, and wait for it; who interrupts that does not want to wait."""
        try:
            with sigterm_noted() as hurried:
                for task in tasks:
                    self._ray.cancel(task)  # a SIGINT to the process that runs it
                while tasks:
                    tasks = self._ray.wait(tasks, num_returns=len(tasks), timeout=POLL_S)[1]
                    if hurried():
                        raise Terminated
        except BaseException:
            for task in tasks:
                self._ray.cancel(task, force=True)
            raise


@contextlib.contextmanager
def _tokens(runs: Mapping[Path, RunConfig]) -> Iterator[list[str]]:
    """What a node must see to train `runs`: new files where they will be, which last as long as this; their data."""
    tokens: list[Path] = []
    try:
        for folder in {path.parent.absolute() for path in runs}:
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                for left in folder.glob(f"{TOKEN}*"):  # by a process that was killed
                    left.unlink(missing_ok=True)
                tokens.append(folder / f"{TOKEN}{uuid.uuid4().hex}")
                tokens[-1].touch()
        data = {Path(config.data.path).absolute() / MANIFEST for config in runs.values() if config.data.path}
        yield [str(path) for path in (*tokens, *data) if path.exists()]
    finally:
        for token in tokens:
            token.unlink(missing_ok=True)


def _task(path: str, config: dict[str, Any], files: list[str], cpus: int, ranks: int) -> str | None:
    """What a node of the cluster runs: train_run, when it sees the files and nobody else trains the run; or so many
    ranks of it."""
    import torch

    logging.basicConfig(format="linscale: %(message)s", level=logging.WARNING)
    with sigterm_noted(signal.SIGINT) as stop:  # SIGTERM when its node is drained, SIGINT when it is cancelled
        if missing := unseen(files):
            return f"node {socket.gethostname()} {not_shared(missing)}"
        torch.set_num_threads(cpus)  # no fewer either: Ray limits a process to the cores of the first task that it had
        deadline = time.monotonic() + LOCK_S
        while is_locked(Path(path)) and not stop() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return train_run(path, config, stop) if ranks == 1 else train_on(ranks, path, config, stop)
