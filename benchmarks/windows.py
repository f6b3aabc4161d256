"""Training of recurrent transformers, whose windows are serial: tokens/s and memory by length and by batch.

    python benchmarks/windows.py [--rows PATTERN] [--size 2M] [--seconds 2] [--profile] [--json F]

Beside a LLaMA and an HGRN2 of the same parameters, forward and backward pass, clipping and fused AdamW, under bf16
autocast on a GPU, on random tokens. A row is model, way, and sequences x tokens:

    eager       every kernel launched by the host            compiled   parts of a window by torch.compile
    captured    compiled, and the passes one CUDA graph      launched   not compiled, but captured
    recomputed  captured, with activation checkpointing "full": kept are what windows hand on

`published` is the form of arXiv 2402.14746 that forgets (alpha = 0), `recurrent` ours. Lengths are 256 to 16,384 at
32,768 tokens a step, batches 8 to 128 at 1,024. Memory is the allocator's peak, model and optimizer included. Two steps
come before the clock starts, compilation included (`first_s`). MFU is by the exact matrix products over the rate of an
8192-cube product.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from linscale.config import parse
from linscale.data.loader import Batch
from linscale.distributed import ALONE
from linscale.evaluate.task import autocast
from linscale.models import CONFIGS
from linscale.models.count import count_parameters, flops_per_token
from linscale.run_folder import code_version
from linscale.train.capture import Captured
from linscale.train.config import TrainConfig
from linscale.train.optim import build_optimizer, clip_gradient
from linscale.train.parallel import build_for_training
from linscale.train.utilisation import matrix_rate

RESULTS = Path(__file__).parent / "results"
WAYS = ("eager", "compiled", "captured", "launched", "recomputed")
FORGETS = {"alpha": 0.0, "alpha_form": "fixed", "normed": False, "positions": "none", "mlp": "gelu", "norm": "layer"}
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "2M": {
        "recurrent": {"d_model": 384, "n_layers": 1, "head_dim": 64, "recurrence": {"block": 32}},
        "recurrent-64": {"d_model": 384, "n_layers": 1, "head_dim": 64, "recurrence": {"block": 64}},
        "published": {"d_model": 384, "n_layers": 1, "head_dim": 64, "recurrence": {"block": 32, **FORGETS}},
        "llama": {"d_model": 192, "n_layers": 4, "head_dim": 64, "d_ff": 528},
        "hgrn2": {"d_model": 192, "n_layers": 4, "head_dim": 64, "d_ff": 528},
    },
    "50M": {
        "recurrent": {"d_model": 1024, "n_layers": 4, "head_dim": 128, "d_ff": 2736, "recurrence": {"block": 64}},
        "recurrent-128": {"d_model": 1024, "n_layers": 4, "head_dim": 128, "d_ff": 2736, "recurrence": {"block": 128}},
        "published": {"d_model": 1024, "n_layers": 4, "head_dim": 128, "recurrence": {"block": 64, **FORGETS}},
        "llama": {"d_model": 512, "n_layers": 16, "head_dim": 128, "d_ff": 1368},
        "hgrn2": {"d_model": 512, "n_layers": 16, "head_dim": 128, "d_ff": 1368},
    },
    "tiny": {
        "recurrent": {"d_model": 16, "n_layers": 1, "head_dim": 8, "d_ff": 32, "recurrence": {"block": 8}},
        "llama": {"d_model": 16, "n_layers": 1, "head_dim": 8, "d_ff": 32},
    },
}
LENGTHS, BATCHES = (256, 1024, 4096, 16_384), (8, 32, 128)
STEP_TOKENS = 32_768
VOCABULARY = 257


def shapes(tiny: bool) -> list[tuple[int, int]]:
    """Sequences and tokens of each."""
    if tiny:
        return [(2, 32), (1, 64)]
    return [(STEP_TOKENS // length, length) for length in LENGTHS] + [(batch, 1024) for batch in BATCHES if batch != 32]


def names(size: str, cuda: bool) -> Iterator[str]:
    """Every row of a size."""
    for batch, length in shapes(size == "tiny"):
        for model in SIZES[size]:
            for way in WAYS if cuda else ("eager",):
                yield f"{model} {way} {batch}x{length}"


def config_of(size: str, name: str) -> Any:
    arch = "recurrent_transformer" if name.startswith(("recurrent", "published")) else name
    return parse(CONFIGS[arch], {"arch": arch, "vocab_size": VOCABULARY, **SIZES[size][name]})


def stepper(config: Any, way: str, batch: int, length: int, device: str) -> Callable[[], torch.Tensor]:
    """One training step: returns its loss, on the device."""
    recipe = TrainConfig(
        tokens=batch * length, batch_tokens=batch * length, length=length, validation_tokens=length,
        compile="off" if way in ("eager", "launched") else "auto",
        activation_checkpointing="full" if way == "recomputed" else "none",
    )  # fmt: skip
    precision = "bf16" if device == "cuda" else "fp32"
    model = build_for_training(config, recipe, ALONE, device, precision)
    optimizer = build_optimizer(model, recipe)
    tokens = torch.randint(VOCABULARY, (batch, length + 1), device=device)
    data = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), None)

    def loss_of(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with autocast(precision, tokens.device):
            return model(tokens, targets=targets).loss.mean()

    captured = Captured(model, loss_of) if way in ("captured", "launched", "recomputed") else None

    def step() -> torch.Tensor:
        if captured:
            loss = captured(data)
        else:
            loss = loss_of(data.tokens, data.targets)
            loss.backward()
        clip_gradient(model, optimizer, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def measure(size: str, name: str, seconds: float, device: str, rate: float, profile: bool) -> dict[str, Any]:
    """tokens/s, memory and MFU of a row, or why there are none."""
    model, way, shape = name.split()
    batch, length = map(int, shape.split("x"))
    config = config_of(size, model)
    found: dict[str, Any] = {"name": name, "params": count_parameters(config).total, "batch": batch, "length": length}
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    try:
        step = stepper(config, way, batch, length, device)
        for _ in range(2):
            step().item()
        found["first_s"] = time.perf_counter() - began
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds or count < 3:
            loss = step()
            count += 1
            if count % 4 == 0:
                loss.item()
        loss.item()
        found["step_ms"] = 1e3 * (time.perf_counter() - began) / count
        if profile:
            found["profile"] = profiled(step)
    except torch.OutOfMemoryError:
        return found | {"failed": "out of memory"}
    except Exception as error:
        return found | {"failed": f"{type(error).__name__}: {error}"[:400]}
    found["tokens_per_s"] = 1e3 * batch * length / found["step_ms"]
    found["mfu"] = found["tokens_per_s"] * flops_per_token(config, "train", length) / rate
    if device == "cuda":
        found["gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def profiled(step: Callable[[], torch.Tensor]) -> list[str]:
    """Kernels of a step by their time on the device, and how many there are."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        step().item()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
    total, launches = sum(e.self_device_time_total for e in events), sum(e.count for e in events)
    top = [f"{e.self_device_time_total / 1e3:8.2f} ms {e.count:6d}x {e.key[:90]}" for e in events[:15]]
    return [f"{total / 1e3:8.2f} ms {launches:6d}x in all", *top]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", metavar="PATTERN", help="a regular expression: only rows that match")
    parser.add_argument("--size", choices=tuple(SIZES), default="2M")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each row")
    parser.add_argument("--profile", action="store_true", help="also kernels by time")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    card = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    today, slug = datetime.date.today().isoformat(), re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    out = options.json or RESULTS / f"{today}-{slug}-windows-{options.size.lower()}.json"
    rate = matrix_rate(device)
    record = {"date": today, "device": card, "torch": torch.__version__, "code": code_version(), "rows": []}
    record |= {"matrix_flops_per_s": rate}
    print(f"{card}, torch {torch.__version__}, product {rate / 1e12:.0f} TFLOP/s")
    print(f"{'row':<40} {'ms/step':>9} {'tokens/s':>12} {'GiB':>7} {'MFU':>6} {'first':>7}")
    for name in names(options.size, device == "cuda"):
        if re.search(options.rows, name):
            row = measure(options.size, name, options.seconds, device, rate, options.profile)
            gc.collect()
            record["rows"].append(row)
            out.write_text(json.dumps(record, indent=1) + "\n")
            print(line(row), flush=True)


def line(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['name']:<40} {row['failed']}"
    numbers = f"{row['step_ms']:>9.2f} {row['tokens_per_s']:>12,.0f} {row.get('gib', 0):>7.2f} {row['mfu']:>6.1%}"
    return "\n    ".join([f"{row['name']:<40} {numbers} {row['first_s']:>6.1f}s", *row.get("profile", ())])


if __name__ == "__main__":
    main()
