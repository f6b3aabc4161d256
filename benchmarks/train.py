"""Training throughput and memory on this machine's GPU: linscale's trainer beside the peers' models in a plain loop.

    python benchmarks/train.py [--rows PATTERN] [--no-peer] [--ranks N] [--steps 30] [--profile] [--startup] [--json F]

24 layers of width 1024, 8 heads of 128, vocabulary 32,000, untied head: 374 M parameters. AdamW, bf16 autocast, batches
of 32,768 tokens as 16 x 2048 and 4 x 8192. Ours is `linscale.train.trainer.train` itself, loader, clipping and records
included, with activation checkpointing "cheap" unless asked otherwise; a peer is its library's causal language model
with its own loss, fused AdamW and clipping. tokens/s are of the last two thirds of the steps, memory is the allocator's
peak. MFU is by the exact matrix products of linscale.models.count (LLaMA's for every softmax model, HGRN2's for every
HGRN2) over the rate of an 8192-cube bf16 product on this device, and by 6N for comparison with others. `--startup` runs
one row again, in a new process, with what is compiled in the cache. Each row runs in a process of its own.

`--ranks N` adds rows of TNL on N GPUs of this machine, as N times the batch (FSDP2) and as sequences N times as long
(sequence parallel), with the same tokens on each GPU as in the row of one GPU beside them.

Peers: flash-linear-attention's HGRN2, eager, as its users run it (its kernels search their tiles first, which is not
timed), and transformers' Llama (sdpa), eager and under torch.compile.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from linscale.config import parse
from linscale.data.prepare import PrepareOptions, prepare
from linscale.distributed import Ranks, join_ranks
from linscale.models import CONFIGS
from linscale.models.count import count_parameters, flops_per_token
from linscale.run_folder import code_version
from linscale.train.config import RunConfig
from linscale.train.trainer import train
from linscale.train.utilisation import matrix_rate

OURS = ("tnl", "hgrn2", "cosformer2", "llama")
PEERS = ("peer-hgrn2-eager", "peer-llama-eager", "peer-llama-compile")
SHAPES = {"16x2048": (16, 2048), "4x8192": (4, 8192), "1x32768": (1, 32768)}
GOALS = {"tnl": 225e3, "hgrn2": 200e3, "cosformer2": 185e3, "llama": 200e3}  # tokens/s at 16x2048 on an H100
SIZE = {"vocab_size": 32_000, "d_model": 1024, "n_layers": 24, "head_dim": 128, "tie_embeddings": False}
TINY = {"vocab_size": 300, "d_model": 32, "n_layers": 2, "head_dim": 16, "d_ff": 64, "tie_embeddings": False}
RESULTS = Path(__file__).parent / "results"


class EnoughError(Exception):
    """The steps asked for are done."""


def main() -> None:
    options = parse_options()
    if options.row:
        found = measure(options)
        if found:
            sys.stdout.write(json.dumps(found) + "\n")
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    today = datetime.date.today().isoformat()
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    out = options.json or RESULTS / f"{today}-{slug}-train.json"
    record: dict[str, Any] = {"date": today, "device": device, "torch": torch.__version__, "code": code_version()}
    record |= {"matrix_flops_per_s": matrix_rate("cuda" if torch.cuda.is_available() else "cpu"), "rows": []}
    print(f"{device}, torch {torch.__version__}, bf16 product {record['matrix_flops_per_s'] / 1e12:.0f} TFLOP/s")
    print(f"{'row':<28} {'tokens/s':>9} {'goal':>6} {'GiB':>6} {'MFU':>6} {'6N':>6} {'first step':>10}")
    kinds = OURS + (() if options.no_peer else PEERS)
    names = [f"{name} {shape}" for shape in ("16x2048", "4x8192") for name in kinds]
    if options.ranks > 1:
        names += [f"tnl 16x2048 fsdp:{options.ranks}", "tnl 1x32768", f"tnl 1x32768 sequence:{options.ranks}"]
    for name in names:
        if re.search(options.rows, name):
            record["rows"].append(run_row(name, options, record["matrix_flops_per_s"]))
            out.write_text(json.dumps(record, indent=1) + "\n")
    if options.startup and record["rows"]:
        again = run_row(record["rows"][0]["name"], options, record["matrix_flops_per_s"])
        record["warm_start_s"] = again.get("first_step_s")
        print(f"{again['name']}: process start to first step, compiled before, {record['warm_start_s']} s (goal 60)")
        out.write_text(json.dumps(record, indent=1) + "\n")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", metavar="PATTERN", help="a regular expression: only rows that match")
    parser.add_argument("--no-peer", action="store_true", help="ours alone")
    parser.add_argument("--ranks", type=int, default=1, help="also on so many GPUs")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="of ours")
    parser.add_argument("--checkpointing", choices=("none", "cheap", "full"), default="cheap", help="of ours")
    parser.add_argument("--profile", action="store_true", help="ten more steps under torch.profiler, by kernel")
    parser.add_argument("--startup", action="store_true", help="also the first row's time to its first step, warm")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # toy sizes, for tests on a CPU
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser.parse_args()


def launcher(name: str) -> list[str]:
    """torchrun for rows of several ranks."""
    if ":" not in name:
        return []
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={name.split(':')[1]}"]


def run_row(name: str, options: argparse.Namespace, rate: float) -> dict[str, Any]:
    """One row in a process of its own, printed."""
    command = [
        sys.executable,
        *launcher(name),
        __file__,
        "--row",
        name,
        "--steps",
        str(options.steps),
        "--compile",
        options.compile,
    ]
    command += ["--checkpointing", options.checkpointing]
    command += ["--tiny"] * options.tiny + ["--profile"] * options.profile + ["--began", str(time.time())]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"status {done.returncode}"
        print(f"{name:<28} failed: {reason}", flush=True)
        return {"name": name, "failed": done.stderr[-4000:]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    rate *= int(name.partition(":")[2] or 1)
    found["mfu"] = found["flops_per_token"] * found["tokens_per_s"] / rate
    found["mfu_6n"] = 6 * found["params"] * found["tokens_per_s"] / rate
    goal = GOALS.get(name.split()[0]) if name.endswith("16x2048") else None
    print(
        f"{name:<28} {found['tokens_per_s']:>9,.0f} {f'{goal / 1e3:.0f}k' if goal else '-':>6} {found['gib']:>6.1f}"
        f" {found['mfu']:>6.1%} {found['mfu_6n']:>6.1%} {found['first_step_s']:>9.1f}s",
        flush=True,
    )
    for line in found.get("profile", ()):
        print("    " + line)
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """tokens/s, peak memory and time to the first step of one row, in this process."""
    name, shape, *several = options.row.split()
    sequences, length = SHAPES[shape] if not options.tiny else (2, 64)
    way, count = several[0].split(":") if several else ("", "1")
    pieces = int(count) if way == "sequence" else 1
    sequences, length = sequences * (int(count) // pieces), length * pieces
    arch = name.removeprefix("peer-").split("-")[0]
    config = CONFIGS[arch](**(TINY if options.tiny else SIZE))
    clock = Clock(options, sequences * length)
    if name in OURS:
        with join_ranks(pieces, cuda=torch.cuda.is_available()) as ranks:
            train_ours(config, sequences, length, options, clock, ranks)
        if not ranks.first:
            return {}
    else:
        train_peer(name, config, sequences, length, options, clock)
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    found = {"name": options.row, "gib": peak, "params": count_parameters(config).total, **clock.found()}
    found["flops_per_token"] = flops_per_token(config, "train", length)
    return found | ({"profile": clock.profile} if options.profile else {})


class Clock:
    """Told of every reading of the device, it says what was reached, and when it is enough."""

    def __init__(self, options: argparse.Namespace, tokens: int) -> None:
        self.options, self.tokens = options, tokens
        self.times: dict[int, float] = {}
        self.profile: list[str] = []
        self._profiler: Any = None
        self._profiled_from = 0

    def __call__(self, step: int) -> None:
        """The device has done `step` steps."""
        self.times[step] = time.time()
        if self._profiler is not None:
            self._profiler.__exit__(None, None, None)
            self.profile = by_kernel(self._profiler.key_averages(), step - self._profiled_from)
            raise EnoughError
        if step >= self.options.steps:
            if not self.options.profile:
                raise EnoughError
            self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self._profiler.__enter__()
            self._profiled_from = step

    def found(self) -> dict[str, float]:
        self.times.pop(0, None)  # the first step is on its way
        steps = sorted(step for step in self.times if self.options.steps // 3 <= step <= self.options.steps)
        first, last = steps[0], steps[-1]
        seconds = self.times[last] - self.times[first]
        return {
            "tokens_per_s": (last - first) * self.tokens / seconds if seconds else 0.0,
            "first_step_s": self.times[min(self.times)] - self.options.began if self.options.began else 0.0,
        }


def by_kernel(events: Any, steps: int) -> list[str]:
    """Milliseconds a step of the dearest kernels, and of all."""
    events = sorted(events, key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events)
    lines = [
        f"{e.self_device_time_total / 1e3 / steps:8.2f} ms {e.self_device_time_total / total:6.1%}"
        f" {e.count // steps:5d}x {e.key[:90]}"
        for e in events[:24]
    ]
    return [*lines, f"{total / 1e3 / steps:8.2f} ms of work on the device in a step"]


def train_ours(
    config: Any, sequences: int, length: int, options: argparse.Namespace, clock: Clock, ranks: Ranks
) -> None:  # fmt: skip
    """The trainer itself, on Shakespeare by the byte over and over; stopped before it writes a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        choices = PrepareOptions(document_bytes=4096, val_fraction=0.05, workers=1)
        prepare(["builtin:tinyshakespeare"], tokenizer="byte", out=place / "data", options=choices)
        batch = sequences * length
        recipe = {"tokens": 10_000 * batch, "batch_tokens": batch, "length": length, "validation_tokens": length}
        recipe |= {"checkpoints": 1, "log_every": 1 if options.tiny else 10, "compile": options.compile}
        recipe |= {"activation_checkpointing": options.checkpointing, "sequence_parallel": ranks.pieces}
        model = {"arch": config.arch, **(TINY if options.tiny else SIZE)}
        values = {"name": "run", "model": model, "data": {"path": str(place / "data")}, "train": recipe}
        try:
            train(place / "run", parse(RunConfig, values), on_step=lambda status: clock(status["step"]), ranks=ranks)
        except EnoughError:
            return


def train_peer(
    name: str, config: Any, sequences: int, length: int, options: argparse.Namespace, clock: Clock
) -> None:  # fmt: skip
    """The peer's model in the loop of its users: its own loss, fused AdamW, clipping, bf16 autocast."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = peer_model(name, config, length).to(device)
    model.train()
    forward: Callable[..., Any] = torch.compile(model) if name.endswith("compile") else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    text = torch.randint(config.vocab_size, (sequences, length), device=device)
    step = 0
    try:
        while True:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                loss = forward(input_ids=text, labels=text).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step % 10 == 0 or step == 1 or options.tiny or step > options.steps:
                loss.item()
                clock(step)
    except EnoughError:
        return


def peer_model(name: str, config: Any, length: int) -> Any:
    """A causal language model of the same shape, from its library's stock config."""
    shape = {
        "vocab_size": config.vocab_size, "hidden_size": config.d_model, "intermediate_size": config.glu_width,
        "num_hidden_layers": config.n_layers, "max_position_embeddings": length, "tie_word_embeddings": False,
    }  # fmt: skip
    if name.startswith("peer-hgrn2"):
        from fla.models import HGRN2Config, HGRN2ForCausalLM

        return HGRN2ForCausalLM(HGRN2Config(**shape, num_heads=config.n_heads, use_cache=False))
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = LlamaConfig(**shape, num_attention_heads=config.n_heads, use_cache=False, attn_implementation="sdpa")
    return LlamaForCausalLM(llama)


if __name__ == "__main__":
    main()
