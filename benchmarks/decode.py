"""Decoding speed on this machine: linscale's engine beside the peers' `generate`, in one run.

    python benchmarks/decode.py [--sections engine,length,prefill,peers,cpu,states] [--archs tnl,hgrn2,cosformer2,llama]
        [--run RUN] [--steps 200] [--threads N] [--no-peer] [--json F]

On a GPU the model is 24 layers of width 1024 with heads of 128 and 32,000 tokens, 374M parameters, in bf16; on a CPU a
small one in fp32. Weights are random, which changes no time.

engine   `Engine.step` in a loop while every slot writes, text making included: ms a step by wall clock, greedy and
         sampled (temperature 0.8, top-p 0.95); "launched" is steps sent off back to back, whose tokens nobody waits
         for: what the device takes. The floor reads the weights once and reads and writes the states once, at the
         measured copy rate. One slot is behind a long prompt, many are behind a short one, as the peers' are.
length   one slot behind 1,000 to 1,000,000 tokens: ms a token, bytes of the state, memory. decode_chart.py draws it.
prefill  seconds from a prompt to its first token, and from a state of many tokens in memory and on disk.
peers    flash-linear-attention's HGRN2 and transformers' Llama through `generate`, of the same shape, greedy, behind
         the same prompts; the static cache is compiled by transformers itself on a GPU.
cpu      2 threads, fp32: a LLaMA of 12M parameters here, and exported, in transformers: the same tokens, and faster.
states   what bf16 states do to logits over 100,000 tokens (see decode_states.py): only where it is asked for by name or
         `--run`, a trained run, is given.

A peer that is not installed is said and left out. Each peer runs in a process of its own, with a limit in seconds.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import decode_cpu
import decode_ours
import decode_peers
import decode_states
import torch
from decode_setting import ARCHS, Setting, setting_of
from measure import ceilings

from linscale.distributed import cores, limit_threads
from linscale.run_folder import code_version

SECTIONS = ("engine", "length", "prefill", "peers", "cpu", "states")
OURS = {"engine": decode_ours.engine, "length": decode_ours.length, "prefill": decode_ours.prefill}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    options = parse_options()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    limit_threads(options.threads or cores())
    device = torch.device("cuda" if torch.cuda.is_available() and not options.tiny else "cpu")
    setting = setting_of(device, tiny=options.tiny, steps=options.steps)
    if options.peer:
        decode_peers.measure(options.peer, setting)
        return
    run = Run(options, setting)
    if any(section in options.sections for section in ("engine", "length", "prefill")):
        setting.copy_bytes_per_s = run.record["copy_bytes_per_s"] = ceilings(device).copy_bytes_per_s
        print(f"copy {setting.copy_bytes_per_s / 1e9:,.0f} GB/s")
        for arch in options.archs:
            run.ours(arch)
    if "peers" in options.sections and not options.no_peer:
        decode_ours.give_back(device)
        for row in decode_peers.rows(Path(__file__), options):
            run.add("peers", row)
        run.ratios()
    if "cpu" in options.sections:
        for row in decode_cpu.rows(setting, peer=not options.no_peer):
            run.add("cpu", row)
    if "states" in options.sections:
        for row in decode_states.rows(setting, options.run, options.archs):
            run.add("states", row)
    print(f"written to {run.out}")


class Run:
    """One run of the benchmark: the record, on disk after every row."""

    def __init__(self, options: argparse.Namespace, setting: Setting) -> None:
        self.options, self.setting = options, setting
        name = torch.cuda.get_device_name() if setting.device.type == "cuda" else "cpu"
        today = datetime.date.today().isoformat()
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        self.out: Path = options.json or RESULTS / f"{today}-{slug}-decode.json"
        self.record: dict[str, Any] = {
            "date": today, "device": name, "threads": torch.get_num_threads(), "torch": torch.__version__,
            "triton": version("triton"), "transformers": version("transformers"),
            "flash-linear-attention": version("flash-linear-attention") or version("fla-core"),
            "code": code_version(), "shape": setting.shape,
        }  # fmt: skip
        print(", ".join(f"{key} {value}" for key, value in self.record.items() if key not in ("date", "shape")))

    def ours(self, arch: str) -> None:
        """The sections of one architecture, on one model."""
        bench = decode_ours.Ours(arch, self.setting)
        for section, measure in OURS.items():
            if section in self.options.sections:
                for row in measure(bench):
                    self.add(section, row)

    def add(self, section: str, row: dict[str, Any]) -> None:
        """Print a row and keep it."""
        self.record.setdefault(section, []).append(row)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(self.record, indent=1) + "\n")
        print(f"{section:<8} " + ", ".join(f"{key} {shown(value)}" for key, value in row.items()))

    def ratios(self) -> None:
        """The peers' ms a step over ours, for the same architecture and as many texts."""
        for arch, peer, ours in self._pairs():
            ratio = {"arch": arch, "peer": peer["peer"], "texts": peer["texts"], "ratio": peer["ms"] / ours["ms"]}
            self.add("ratios", ratio)

    def _pairs(self) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        for peer in self.record.get("peers", ()):
            for row in self.record.get("engine", ()):
                same = row["arch"] == peer.get("arch") and row["slots"] == peer.get("texts")
                if same and "ms" in peer and "ms" in row and (row["draw"], row["states"]) == ("greedy", "float32"):
                    yield row["arch"], peer, row


def version(package: str) -> str | None:
    """Of an installed package; None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def shown(value: object) -> str:
    if isinstance(value, bool | list):
        return str(value)
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", type=names, metavar="NAME,NAME", help="by default all but states")
    parser.add_argument("--archs", type=names, default=[*ARCHS], metavar="NAME,NAME")
    parser.add_argument("--run", type=Path, action="append", help="a trained run, for states; may be given again")
    parser.add_argument("--steps", type=int, help="of each timing; by default 200 on a GPU, 50 on a CPU")
    parser.add_argument("--threads", type=int, help="of the CPU; by default one a core")
    parser.add_argument("--no-peer", action="store_true", help="ours alone")
    parser.add_argument("--peer-limit", type=float, default=180.0, metavar="SECONDS", help="for each peer's process")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # toy sizes on a CPU, for tests
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.sections = options.sections or [*SECTIONS[:-1], *(SECTIONS[-1:] if options.run else ())]
    for kind, given, known in (("--sections", options.sections, SECTIONS), ("--archs", options.archs, ARCHS)):
        if unknown := [each for each in given if each not in known]:
            parser.error(f"{kind} {', '.join(unknown)}: expected some of {', '.join(known)}")
    return options


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


if __name__ == "__main__":
    main()
