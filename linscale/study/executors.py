"""Executors: how the runs of a ladder are spread over processes. Here: over those of this machine; see ray_executor."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol

from linscale.config import UserError, parse, to_dict
from linscale.distributed import ALONE, Ranks, cores, follow_parent, limit_threads, sigterm_noted, stop_noted
from linscale.train.config import RunConfig

POLL_S = 0.5
STOPPED = "its process was told to stop (SIGTERM); run the same command again to go on"
ATTEMPTS = 3  # of a run whose process died under it; each goes on from the run's newest checkpoint


class Executor(Protocol):
    """Trains runs in their folders and returns what went wrong: run folder -> error, empty when all is well."""

    def device(self, asked: str) -> str:
        """What a run's `train.device` comes to where the runs are trained: "cpu" or "cuda"."""

    def run(self, runs: Mapping[Path, RunConfig], poll: Callable[[], None]) -> dict[Path, str]:
        """Train every run, in the order given. `poll` is called about twice a second meanwhile."""


class LocalExecutor:
    """`workers` processes on this machine, which share its cores and end when this process does, however it ends. Its
    GPUs are dealt out to them in turn.

    Each has the same share of the cores however few runs are left: a resumed run ends with the bits of an undisturbed
    one only with as many threads.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def device(self, asked: str) -> str:
        from linscale.train.settings import resolve_device

        return resolve_device(asked)

    def run(self, runs: Mapping[Path, RunConfig], poll: Callable[[], None]) -> dict[Path, str]:
        waiting, errors = dict(runs), dict[Path, str]()
        for attempt in range(ATTEMPTS):
            died = self._attempt(waiting, errors, poll)
            waiting = {path: waiting[path] for path in died}
            if not waiting:
                break
            if attempt == ATTEMPTS - 1:
                errors |= dict.fromkeys(waiting, f"its process died {ATTEMPTS} times (out of memory?)")
        return errors

    def _attempt(self, runs: Mapping[Path, RunConfig], errors: dict[Path, str], poll: Callable[[], None]) -> list[Path]:
        """Train `runs` in one pool; adds to `errors` and returns the runs whose process died."""
        count = max(1, min(self.workers, len(runs)))
        threads = max(1, cores() // self.workers)
        spawn = multiprocessing.get_context("spawn")
        arguments = (threads, spawn.Value("i", 0))
        pool = ProcessPoolExecutor(count, mp_context=spawn, initializer=_start_worker, initargs=arguments)
        futures: dict[Future[str | None], Path] = {}
        died = []
        try:
            futures = {pool.submit(_work, str(path), to_dict(config)): path for path, config in runs.items()}
            pending = set(futures)
            with stop_noted() as check:
                while pending:
                    done, pending = wait(pending, timeout=POLL_S, return_when=FIRST_COMPLETED)
                    for future in done:
                        if isinstance(future.exception(), BrokenProcessPool):
                            died.append(futures[future])
                        elif (error := future.result()) is not None:
                            errors[futures[future]] = error
                    poll()
                    check()
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()  # each saves the step that it is at
            raise
        finally:
            _shut_down(pool)
        return died


def _shut_down(pool: ProcessPoolExecutor) -> None:
    """Wait for what the pool is doing; who interrupts that as well does not want to wait."""
    try:
        pool.shutdown(cancel_futures=True)
    except BaseException:
        for process in multiprocessing.active_children():
            process.kill()
        raise


_worker = contextlib.ExitStack()  # what lasts as long as this process, when it is a worker
_asked_to_stop: Callable[[], bool]  # whether it had a SIGTERM
_number: int  # of this worker among those of its pool


def _start_worker(threads: int, started: Any) -> None:
    """started: a number that all workers share, how many have started."""
    global _asked_to_stop, _number
    with started.get_lock():
        _number, started.value = started.value, started.value + 1
    _asked_to_stop = _worker.enter_context(sigterm_noted())
    follow_parent()
    logging.basicConfig(format="linscale: %(message)s", level=logging.WARNING)
    limit_threads(threads)


def _work(path: str, config: dict[str, Any]) -> str | None:
    import torch

    if config["train"]["device"] != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(_number % torch.cuda.device_count())
    return train_run(path, config, _asked_to_stop)


def train_run(path: str, config: dict[str, Any], stop: Callable[[], bool], ranks: Ranks = ALONE) -> str | None:
    """Train one run, what a worker of any executor does, until `stop` says yes; alone or as one of `ranks`.

    Returns what went wrong in one line, with the traceback in the run folder if it is our fault.
    """
    from linscale.train.trainer import train

    if ranks.any(stop())[0]:
        return STOPPED
    try:
        status = train(Path(path), parse(RunConfig, config), stop=stop, ranks=ranks)
    except UserError as error:
        return str(error)
    except Exception as error:
        trace = Path(path) / ("traceback.txt" if ranks.first else f"traceback-{ranks.rank}.txt")
        with contextlib.suppress(OSError):
            trace.write_text(traceback.format_exc(), encoding="utf-8")
        return f"{type(error).__name__}: {error} (see {trace})"
    return STOPPED if status["state"] == "stopped" else None
