"""What test_parallel.py starts: a process that imports torch once, and as often as it is asked forks into ranks.

It reads lines of JSON from stdin, [COUNT, ...], and starts COUNT processes, which find each other as those of torchrun
do. After what they write, it says "ended STATUS"; of ranks of which one fails, the others are killed.

[COUNT, "steps", OUT]           one step of every case
[COUNT, CONFIG, FOLDER, STEP]   a run, stopped after a step
"""

import importlib
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

import torch

from linscale.config import load_toml
from linscale.distributed import Ranks, join_ranks, piece_of
from linscale.models import CONFIGS, LinearMixer, Recurrence
from linscale.train.config import RunConfig, TrainConfig
from linscale.train.optim import build_optimizer, clip_gradient
from linscale.train.parallel import build_for_training, split_batch
from linscale.train.trainer import train

# Architecture, softmax_every, pieces (0: as many as ranks), activation checkpointing, precision
SHARING = [arch for arch in CONFIGS if arch != "recurrent_transformer"]  # whose ranks can share a sequence
CASES = [(arch, 2, pieces, "none", "fp32") for arch in SHARING for pieces in (1, 0)]  # a llama is all softmax
CASES += [(arch, 0, 0, "none", "fp32") for arch in SHARING if arch != "llama"]
CASES += [("recurrent_transformer", 2, 1, again, "fp32") for again in ("none", "full")]
CASES += [("tnl", 2, 2, "full", "fp32"), ("hgrn2", 0, 1, "cheap", "fp32"), ("tnl", 0, 0, "none", "bf16")]
CASES += [("tnl", 2, 2, "cheap", "fp32")]
SEQUENCES, LENGTH, VOCABULARY = 4, 32, 50


def cases_for(ranks: int) -> list[tuple]:
    """All for four ranks, which may be rows of two; for two ranks every architecture, in hybrids."""
    return CASES if ranks == 4 else CASES[: 2 * len(SHARING)]


def step(case: tuple, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Loss, gradients and weights after one step of the optimizer on a fixed batch, whole."""
    arch, every, _, again, precision = case
    # Few channels over 4 ranks: some ranks hold no row of a tensor, others more than one.
    shape = {"vocab_size": VOCABULARY, "d_model": 24, "n_layers": 3, "head_dim": 12, "d_ff": 20, "init_std": 0.2}
    if arch == "recurrent_transformer":
        shape["recurrence"] = Recurrence(block=8, alpha_form="gated")
    if arch == "linearized":
        shape["linear"] = LinearMixer(
            features="softmax", rotary="before", decay="channel", normalizer="denominator", gate=True
        )
    config = CONFIGS[arch](**shape, softmax_every=every, n_kv_heads=1 if arch == "tnl" else None)
    tokens = SEQUENCES * LENGTH
    recipe = TrainConfig(
        tokens=tokens, batch_tokens=tokens, length=LENGTH, seed=3, lr=1e-2, grad_clip=0.5, validation_tokens=LENGTH,
        activation_checkpointing=again, sequence_parallel=ranks.pieces,
    )  # fmt: skip
    model = build_for_training(config, recipe, ranks, "cpu", precision)
    optimizer = build_optimizer(model, recipe)
    sequences, passes = split_batch(recipe, ranks)
    assert (sequences, passes) == (SEQUENCES, 1)
    text = torch.randint(VOCABULARY, (SEQUENCES, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    rows = text.chunk(ranks.replicas)[ranks.replica]
    inputs, targets = piece_of(rows[:, :-1], rows[:, 1:], ranks=ranks)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        loss = model(inputs, targets=targets).loss.sum() / tokens
    (loss * ranks.size).backward()
    found = {"loss": ranks.sum(loss.detach())}
    found |= {f"gradient of {name}": whole(parameter.grad).clone() for name, parameter in model.named_parameters()}
    found["norm"] = clip_gradient(model, optimizer, recipe.grad_clip)
    optimizer.step()
    return found | {name: whole(parameter.detach()) for name, parameter in model.named_parameters()}


def whole(x: torch.Tensor) -> torch.Tensor:
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def main() -> None:
    for name in ("torch._dynamo", "torch.distributed.fsdp"):  # what every rank needs is imported once
        importlib.import_module(name)
    torch.set_num_threads(1)
    for line in sys.stdin:
        count, *arguments = json.loads(line)
        sys.stdout.write(f"ended {fork(count, arguments)}\n")
        sys.stdout.flush()


def fork(count: int, arguments: list) -> int:
    """0 if all ranks end well. This process itself never computes: no thread of torch's is lost in a fork."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count, "TORCHELASTIC_RUN_ID": "test"}
    ranks: set[int] = set()
    for rank in range(count):
        ranks.add(process := os.fork())
        if not process:
            os.environ |= {name: str(value) for name, value in (together | {"RANK": rank, "LOCAL_RANK": rank}).items()}
            status = 1
            try:
                work(*arguments)
                status = 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    worst = 0
    while ranks:
        process, status = os.wait()
        ranks.discard(process)
        worst = worst or status
        for other in ranks if status else ():
            os.kill(other, signal.SIGKILL)
    return worst


def work(job: str, out: str, last: int = 0) -> None:
    """What one rank does."""
    if job == "steps":
        with join_ranks(1, cuda=False) as all_ranks:
            results = {}
            for case in cases_for(all_ranks.size):
                pieces = case[2] or all_ranks.size
                results[case] = step(case, rows_of(all_ranks, pieces))
            if all_ranks.first:
                torch.save(results, out)
        return
    config = load_toml(job, RunConfig)
    with join_ranks(config.train.sequence_parallel, cuda=False) as ranks:
        seen = []
        status = train(Path(out), config, on_step=lambda status: seen.append(status["step"]),
                       stop=lambda: bool(seen) and seen[-1] >= last - 1, ranks=ranks)  # fmt: skip
        sys.stdout.write(f"{ranks.rank} {status['state']} {status['step']}\n")


def rows_of(ranks: Ranks, pieces: int) -> Ranks:
    """The same ranks in rows of `pieces`."""
    rows = [torch.distributed.new_group(range(k, k + pieces)) for k in range(0, ranks.size, pieces)]
    return Ranks(ranks.rank, ranks.size, pieces, rows[ranks.rank // pieces].group_name)


if __name__ == "__main__":
    main()
