"""The peer's kernels, warm before anything is timed: compiled in parallel, then tuned by its own search.

Its kernels choose their tiles by timing every candidate (`triton.autotune`), over a thousand compilations for the rows
here. First, processes of their own compile one share of the candidates each into Triton's cache on disk and launch
nothing. Then the peer's search runs in the timing process, alone on the GPU, over all its candidates; only the time
spent on each is shorter (25 ms in place of 100). Choices can be kept in a file, and a later run with that file compiles
nothing but them.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import both_call, forward_call
from peers import Peer, peers_of
from rows import Row, make_inputs

WARM_MS, TIMED_MS = 5, 25  # per candidate
COMPILE_LENGTH = 256  # the kernels do not depend on T


class Tuning:
    """Between Triton's autotuner and the peer's kernels: remembers and replays choices."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.choices: dict[str, str] = {}
        if file is not None and file.exists():
            self.choices = json.loads(file.read_text())
        self.searched, self.search_s = 0, 0.0

    def install(self) -> None:
        """From here on every `triton.autotune` of this process goes through `run`. Ours has none."""
        from triton.runtime.autotuner import Autotuner

        stock, tuning = Autotuner.run, self

        def run(tuner: Any, *args: Any, **kwargs: Any) -> Any:
            return tuning.run(stock, tuner, args, kwargs)

        Autotuner.run = run

    def run(self, stock: Any, tuner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Launch as the stock autotuner does, with the remembered choice if there is one."""
        from triton.testing import do_bench

        key = search_key(tuner, args, kwargs)
        if key in tuner.cache or len(tuner.configs) < 2:
            return stock(tuner, *args, **kwargs)
        label = f"{tuner.base_fn.__name__} {key}"
        known = [config for config in tuner.configs if str(config) == self.choices.get(label)]
        if known:
            tuner.cache[key] = known[0]
            return stock(tuner, *args, **kwargs)
        if tuner._do_bench is None:
            tuner._do_bench = functools.partial(do_bench, warmup=WARM_MS, rep=TIMED_MS)
        start = time.perf_counter()
        result = stock(tuner, *args, **kwargs)
        self.search_s += time.perf_counter() - start
        self.searched += 1
        self.choices[label] = str(tuner.cache[key])
        self.save()
        return result

    def save(self) -> None:
        """Write the choices where the next run finds them."""
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(self.choices, indent=1, sort_keys=True) + "\n")


def search_key(tuner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """What Triton's autotuner remembers a choice under: the values of its key and the dtype of every tensor."""
    named = {**dict(zip(tuner.arg_names, args, strict=False)), **kwargs}
    named = {name: value for name, value in named.items() if name in tuner.arg_names}
    dtypes = [str(value.dtype) for value in named.values() if hasattr(value, "dtype")]
    return (*(named[name] for name in tuner.keys if name in named), *dtypes)


def shapes_to_compile(rows: Iterable[Row]) -> list[Row]:
    """Rows that differ in more than their length, each short. B stays: a few of the peer's kernels are built for it."""
    return list(dict.fromkeys(replace(row, T=COMPILE_LENGTH, h100_peer_ms=None, h100_goal_ms=None) for row in rows))


def compile_in_parallel(script: Path, pattern: str, choices: Path | None, workers: int) -> float:
    """Fill Triton's cache on disk by `workers` processes of `script`. Returns the seconds that it took."""
    start = time.perf_counter()
    command = [sys.executable, "-W", "ignore", str(script), "--rows", pattern]
    command += [] if choices is None else ["--peer-tuning", str(choices)]
    running = [subprocess.Popen([*command, "--compile-share", f"{share}/{workers}"]) for share in range(workers)]
    for process in running:
        process.wait()
    return time.perf_counter() - start


def compile_share(rows: Iterable[Row], share: int, workers: int, choices: dict[str, str]) -> None:
    """Compile every `workers`-th candidate of the peer's kernels for these rows, or of those chosen before."""
    compile_only(share, workers, choices)
    for row in shapes_to_compile(rows):
        for peer in peers_of(row):
            if peer.same_function:
                run_once(peer, row)


def run_once(peer: Peer, row: Row) -> None:
    """Walk through the peer's passes. Under `compile_only` nothing is computed, and what is not there may be missed."""
    x = make_inputs(row, torch.device("cuda"))
    call = forward_call(peer.call, x) if peer.forward_only else both_call(peer.call, x)
    with contextlib.suppress(Exception):
        call()


def compile_only(share: int, workers: int, choices: dict[str, str]) -> None:
    """Make every autotuned kernel of this process compile its share of candidates in place of running."""
    from triton.runtime.autotuner import Autotuner

    done: set[str] = set()

    def run(tuner: Any, *args: Any, **kwargs: Any) -> None:
        label = f"{tuner.base_fn.__name__} {search_key(tuner, args, kwargs)}"
        if label in done:
            return
        done.add(label)
        tuner.nargs = dict(zip(tuner.arg_names, args, strict=False))
        candidates = tuner.prune_configs(kwargs)
        candidates = [config for config in candidates if str(config) == choices.get(label)] or candidates
        options = {name: value for name, value in kwargs.items() if name != "warmup"}
        # Kernels with few candidates would all land on the first workers: each kernel starts at another one.
        offset = share + sum(label.encode())
        for position, config in enumerate(candidates):
            if (position + offset) % workers == 0:
                with contextlib.suppress(Exception):  # a candidate that does not compile is none
                    tuner.fn.warmup(*args, **options, **config.all_kwargs())

    Autotuner.run = run
