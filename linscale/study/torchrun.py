"""One run of a study on several GPUs of a machine: by torchrun, told to stop and asked for errors like any other run.

python -m torch.distributed.run --nproc-per-node N -m linscale.study.torchrun RUN CONFIG.json      what a rank runs
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from linscale.config import UserError, parse
from linscale.distributed import cores, join_ranks, limit_threads, sigterm_noted
from linscale.study.executors import POLL_S, STOPPED, train_run
from linscale.train.config import RunConfig

LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
PATIENCE_S = 900  # for a step to end and to be saved, once told to stop; torchrun kills after 30 s by itself


def train_on(count: int, path: str, config: dict[str, Any], stop: Callable[[], bool]) -> str | None:
    """Train one run on `count` ranks of this machine; returns what went wrong in one line, as train_run does.

    Its processes end with this one, however it ends.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, errors = Path(folder, "config.json"), Path(folder, "errors")
        file.write_text(json.dumps(config), encoding="utf-8")
        command = ["env", f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={PATIENCE_S}"]
        command += [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        command += ["-m", "linscale.study.torchrun", path, str(file)]
        with (
            open(errors, "wb") as said,
            subprocess.Popen(command, stdout=said, stderr=said, preexec_fn=_die_with_parent) as process,
        ):
            told = False
            while process.poll() is None:
                if stop() and not told:
                    process.send_signal(signal.SIGTERM)
                    told = True
                time.sleep(POLL_S)
        told_by_a_rank = file.with_suffix(".error")
        if told_by_a_rank.exists():
            return told_by_a_rank.read_text(encoding="utf-8")
        if told:
            return STOPPED
        if process.returncode:
            lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return f"torchrun ended with status {process.returncode}: {lines[-1] if lines else 'it said nothing'}"
    return None


def _die_with_parent() -> None:
    """In torchrun, before it starts: SIGKILL when the process that started it is gone."""
    if LIBC is not None:
        LIBC.prctl(DEATH_SIGNAL, signal.SIGKILL)


def main() -> None:
    """One rank. Writes what went wrong beside the config for train_on, before it leaves the others, which fail then."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    logging.basicConfig(format="linscale: %(message)s", level=logging.WARNING)
    path, file = sys.argv[1], Path(sys.argv[2])
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    train = parse(RunConfig, config).train
    with sigterm_noted() as stop:
        try:
            with join_ranks(train.sequence_parallel, cuda=train.device == "cuda") as ranks:
                limit_threads(max(1, cores() // ranks.local_size))
                error = train_run(path, config, stop, ranks)
                _tell(file, error)
        except (UserError, ValueError) as problem:
            error = str(problem)
            _tell(file, error)
    sys.exit(0 if error in (None, STOPPED) else 1)


def _tell(file: Path, error: str | None) -> None:
    """The first rank that has something to say is heard; what the others meet follows from it."""
    with contextlib.suppress(FileExistsError):
        if error is not None:
            with open(file.with_suffix(".error"), "x", encoding="utf-8") as told:
                told.write(error)


def _end_with(parent: int) -> None:
    """End this rank when torchrun is gone: killed, it leaves its ranks behind."""
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os._exit(1)


if __name__ == "__main__":
    main()
