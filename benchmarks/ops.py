"""Time linscale's operators on this machine's GPU, against the best published kernels and against the floor.

    python benchmarks/ops.py [--rows PATTERN] [--quick] [--no-peer] [--peer-tuning FILE] [--first-call] [--json OUT]

The peer is flash-linear-attention (`pip install flash-linear-attention`), in the same process and the same run, bf16,
scale 1, warm. Milliseconds are medians with a cold L2 before each call; every number is taken twice and "noise" is the
larger relative difference. "Replayed" is forward and backward captured as a CUDA graph: what the device takes when the
host, whose speed differs from machine to machine, does not hold it up. Forward alone keeps nothing for a backward pass.
The floor reads every input once and writes every output once at the measured copy rate. The goals in milliseconds are
for an H100. Memory is the peak of forward and backward above the inputs, results included. Before anything is timed, o
and every gradient of the last sequence are compared with float64: where ours misses its tolerance or has a larger error
than the peer (by more than 5 %), no speed-up is printed.

Without a GPU it times the chunk form on the CPU, against the loop over time and against length (ops_cpu.py).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import first_call
import ops_cpu
import peers
import torch
import tuning
from measure import Ceilings, attempt, ceilings
from rows import KINDS, Inputs, Row
from section_delta import Delta
from sections import Length, Loss, Scan, Section, Softmax, Step
from table import HEADER, measure_row, print_row

from linscale.ops import decay_attention
from linscale.run_folder import code_version

ROWS = (
    Row("head", 8, 2048, h100_peer_ms=1.139, h100_goal_ms=0.37),
    Row("head", 2, 8192, h100_peer_ms=1.309, h100_goal_ms=0.43),
    Row("head", 1, 32768, h100_peer_ms=3.223, h100_goal_ms=0.85),
    Row("none", 8, 2048, h100_peer_ms=1.094, h100_goal_ms=0.36),
    Row("channel", 8, 2048, h100_peer_ms=3.466, h100_goal_ms=1.15),
    Row("channel", 2, 8192, h100_peer_ms=3.780, h100_goal_ms=1.25),
    Row("channel", 1, 32768, h100_peer_ms=8.408, h100_goal_ms=2.7),
    Row("none", 8, 2048, K=256),
    Row("head", 8, 2048, H=8, K=64, V=64),
    Row("channel", 8, 2048, H=8, K=64, V=64),
    Row("token", 8, 2048),
)
TOKENS, LENGTHS = 1 << 20, tuple(1 << n for n in (11, 13, 15, 17, 20))
SECTIONS: tuple[Section | Delta, ...] = (
    Softmax(8, 2048),
    Softmax(2, 8192),
    Softmax(1, 32768),
    *(Step(kind, 1 << n) for kind in ("head", "channel") for n in range(9)),
    Scan(8, 2048, 2048, constant=False),
    Scan(8, 2048, 2048, constant=True),
    Scan(1, 32768, 2048, constant=False),
    Loss(32768, 1024, 32000),
    *(Delta(4, 2048, 9, 64, 64, decay) for decay in (True, False)),
    *(Delta(1, 8192, 16, 128, 128, decay) for decay in (True, False)),
    *(Length(kind, H, width, TOKENS, LENGTHS) for H, width in ((8, 64), (16, 128)) for kind in KINDS),
)
RESULTS = Path(__file__).parent / "results"


class Run:
    """One run of the benchmark: what it was asked for, and the record that grows with every measurement."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.options, self.device = options, device
        self.pattern = re.compile(options.rows)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        today = datetime.date.today().isoformat()
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        self.out: Path = options.json or RESULTS / f"{today}-{slug}-ops.json"
        self.record: dict[str, Any] = {"date": today, "device": name, "torch": torch.__version__}

    def wanted(self, things: Iterable[Any]) -> list[Any]:
        return [thing for thing in things if self.pattern.search(thing.name)]

    def add(self, section: str, found: object) -> None:
        """Keep a measurement, on disk at once."""
        self.record.setdefault(section, []).append(found)
        self.write()

    def write(self) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(self.record, indent=1) + "\n")


def main() -> None:
    options = parse()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if options.compile_share:
        share, workers = map(int, options.compile_share.split("/"))
        rows = [row for row in ROWS if re.search(options.rows, row.name)]
        tuning.compile_share(rows, share, workers, tuning.Tuning(options.peer_tuning).choices)
    elif options.first_call_of:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        first_call.first_call_of(options.first_call_of, device)
    elif options.tiny:
        measure_all(Run(options, torch.device("cpu")))
    elif torch.cuda.is_available():
        measure_all(Run(options, torch.device("cuda", torch.cuda.current_device())))
    else:
        ops_cpu.main(options.threads, options.json)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", default="", metavar="PATTERN", help="a regular expression: only what has it in its name"
    )
    parser.add_argument("--quick", action="store_true", help="time once, fewer batch sizes and lengths")
    parser.add_argument("--no-peer", action="store_true", help="ours alone")
    parser.add_argument(
        "--peer-warm-parallel",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compile the peer's candidates in processes of their own first",
    )
    parser.add_argument("--peer-tuning", type=Path, metavar="FILE", help="read the peer's choices there, or write them")
    parser.add_argument("--first-call", action="store_true", help="also time first calls on an empty cache")
    parser.add_argument("--first-call-peer", type=float, metavar="SECONDS", help="the peer's too, each up to this long")
    parser.add_argument("--json", type=Path, metavar="OUT", help="default on a GPU: results/<date>-<device>-ops.json")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="on a CPU")
    for hidden in ("--compile-share", "--first-call-of"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # the GPU's path on a CPU, for tests
    return parser.parse_args()


def measure_all(run: Run) -> None:
    """Everything that was asked for, in one process; partial results are written as they come."""
    rows = run.wanted(ROWS)
    peers_of = peers_wanted(run)
    describe(run)
    limits = ceilings(run.device)
    run.record["ceilings"] = vars(limits)
    print(f"copy {limits.copy_bytes_per_s / 1e12:.2f} TB/s, bf16 product {limits.matmul_flops / 1e12:.0f} TFLOP/s")
    tuner = warm_peer(run) if run.record["peer"] and rows else None
    measure_table(run, rows, peers_of, limits)
    if tuner is not None:
        print(f"the peer's search: {tuner.searched} kernels, {tuner.search_s:.0f} s of all of the above")
        run.record["peer_search"] = {"kernels": tuner.searched, "seconds": tuner.search_s}
    measure_sections(run, limits)
    if run.options.first_call:
        measure_first_calls(run)
    run.write()
    print(f"written to {run.out}")


def peers_wanted(run: Run) -> Callable[[Row], list[peers.Peer]]:
    """The peers of a row: none where none are asked for or installed, and a stand-in on a CPU."""
    if run.options.tiny:
        run.record["peer"] = "stand-in"
        return lambda row: [peers.Peer("stand-in", stand_in)]
    run.record["peer"] = None if run.options.no_peer else peers.version()
    return peers.peers_of if run.record["peer"] else lambda row: []


def stand_in(x: Inputs) -> torch.Tensor:
    return decay_attention(x.q, x.k, x.v, x.log_decay, backend="chunk")[0]


def describe(run: Run) -> None:
    """Print and record what is being measured."""
    versions = {"code": code_version()}
    if run.device.type == "cuda":
        import triton

        versions["triton"] = triton.__version__
    run.record |= versions
    peer = "no peer" if run.record["peer"] is None else f"flash-linear-attention {run.record['peer']}"
    installed = f"torch {torch.__version__}, triton {versions.get('triton')}"
    print(f"{run.record['device']}, {installed}, {peer}, linscale {versions['code']}")


def warm_peer(run: Run) -> tuning.Tuning | None:
    """Compile the peer's candidates in parallel; its search then finds them compiled, when each kernel is first met."""
    if run.options.tiny:
        return None
    tuner = tuning.Tuning(run.options.peer_tuning)
    tuner.install()
    if run.options.peer_warm_parallel:
        workers = min(16, os.cpu_count() or 1)
        seconds = tuning.compile_in_parallel(Path(__file__), run.options.rows, run.options.peer_tuning, workers)
        print(f"the peer's candidates compiled in {seconds:.0f} s by {workers} processes", flush=True)
        run.record["peer_compile_s"] = seconds
    return tuner


def measure_table(run: Run, rows: list[Row], peers_of: Callable[[Row], list[peers.Peer]], limits: Ceilings) -> None:
    """The table itself."""
    print(HEADER)
    for row in rows:
        if run.options.tiny:
            row = replace(row, B=2, T=70, H=2, K=row.K // 8, V=row.V // 8)
        start = time.perf_counter()
        work = partial(measure_row, row, peers_of(row), run.device, limits, run.options.quick)
        found = {"name": row.name, **attempt(work, run.device), "seconds": time.perf_counter() - start}
        if "failed" in found:
            print(f"{row.name:<28} failed: {found['failed']}")
        else:
            print_row(found, row)
        run.add("rows", found)


def measure_sections(run: Run, limits: Ceilings) -> None:
    """What stands beside the table."""
    for thing in run.wanted(SECTIONS):
        if run.options.quick and not thing.quick:
            continue
        thing = thing.tiny() if run.options.tiny else thing
        found = attempt(partial(thing.measure, run.device, limits), run.device)
        print(f"{thing.name}: {found.get('failed') or thing.line(found)}")
        run.add(thing.section, {"name": thing.name, **found})


def measure_first_calls(run: Run) -> None:
    """First calls on an empty cache, each in a process of its own."""
    print(f"first forward + backward on an empty cache (goal {first_call.GOAL_S:.0f} s):")
    found = first_call.measure_first_calls(Path(__file__), first_call.OPERATORS, 300.0)
    if run.options.first_call_peer and run.record["peer"]:
        names = tuple(f"peer:{kind}" for kind in KINDS)
        found |= first_call.measure_first_calls(Path(__file__), names, run.options.first_call_peer)
    run.record["first_call"] = found


if __name__ == "__main__":
    main()
