"""Any number of ranks trains the same model: losses, gradients, steps, and checkpoints that others resume from."""

import functools
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from linscale import checkpoint
from linscale.config import UserError, to_dict
from linscale.distributed import ALONE, Ranks
from linscale.layers import softmax_attention
from linscale.models import CONFIGS, build_model
from linscale.ops.pieces import Piece
from linscale.run_folder import latest_records, read_json
from linscale.train.config import RunConfig, TrainConfig
from linscale.train.parallel import build_for_training, compiles, split_batch
from linscale.train.trainer import train

from .ranks import cases_for, step
from .teachers import save_run, student_of, teacher_of

WORKER = Path(__file__).parent / "ranks.py"
Make = Callable[..., RunConfig]


Run = Callable[..., list[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A function that runs a job of ranks.py on so many ranks and gives the lines they write."""
    errors = tmp_path_factory.mktemp("ranks") / "stderr"
    with errors.open("w") as file, subprocess.Popen(
        [sys.executable, WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True
    ) as process:  # fmt: skip

        def run(count: int, *arguments: object) -> list[str]:
            assert process.stdin is not None
            assert process.stdout is not None
            words = [argument if isinstance(argument, int) else str(argument) for argument in arguments]
            process.stdin.write(json.dumps([count, *words]) + "\n")
            process.stdin.flush()
            lines = []
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                if line.startswith("ended "):
                    break
            assert lines[-1:] == ["ended 0"], errors.read_text()[-6000:]
            return lines[:-1]

        yield run


@functools.cache
def by_one(case: tuple) -> dict[str, torch.Tensor]:
    return step(case, ALONE)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_ranks_together_do_what_one_does(count: int, run: Run, tmp_path: Path) -> None:
    run(count, "steps", tmp_path / "found.pt")
    found = torch.load(tmp_path / "found.pt")
    assert list(found) == cases_for(count)
    for case in found:
        expected, exact = by_one(case), by_one((*case[:-1], "fp32"))
        assert found[case].keys() == expected.keys()
        for name, value in exact.items():
            error, own_error = ((x[name] - value).norm() / value.norm() for x in (found[case], expected))
            # The first step of Adam is near the sign of a gradient, whatever its size.
            bound = 1e-5 if name.startswith(("gradient", "loss", "norm")) else 1e-3
            if case[-1] == "bf16":
                bound = max(3e-3, 2 * own_error)
            assert error <= bound, (case, name, float(error))


def write_config(config: RunConfig, path: Path) -> Path:
    """As a TOML file."""
    path.write_text("\n".join(toml(to_dict(config))) + "\n")
    return path


def toml(values: dict[str, Any], table: str = "") -> Iterator[str]:
    """The lines of a table."""
    if table:
        yield f"[{table}]"
    inner = {key: value for key, value in values.items() if isinstance(value, dict)}
    yield from (f"{key} = {json.dumps(values[key])}" for key in values.keys() - inner if values[key] is not None)
    for key, value in inner.items():
        yield from toml(value, f"{table}.{key}" if table else key)


def losses(folder: Path) -> torch.Tensor:
    records = latest_records(folder / "metrics.jsonl", ("step", "metric"))
    return torch.tensor([record["value"] for record in records if record["metric"] == "loss"], dtype=torch.float64)


def validation(folder: Path) -> torch.Tensor:
    return torch.tensor([record["value"] for record in latest_records(folder / "evaluations.jsonl")])


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(make: Make, run: Run, tmp_path: Path) -> None:
    """Four ranks, of which two share a sequence; two; one, which also reads what four wrote and two did."""
    alone = make(model={"arch": "hgrn2"}, log_every=1, micro_batch=2)
    train(tmp_path / "whole", alone)
    for count, pieces, last in ((4, 2, 4), (2, 1, 7)):
        config = make(model={"arch": "hgrn2"}, log_every=1, sequence_parallel=pieces, micro_batch=2)
        said = run(count, write_config(config, tmp_path / "run.toml"), tmp_path / "run", last)
        assert sorted(said)[-count:] == [f"{rank} stopped {last}" for rank in range(count)]
        shutil.copytree(tmp_path / "run", tmp_path / f"after-{count}")
    newest = checkpoint.list_checkpoints(tmp_path / "run")[-1]
    files = sorted(newest.glob("*-of-*"))
    assert len(files) == 2 * 2
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(b"damaged")
        with pytest.raises(UserError, match=file.name):
            checkpoint.verify(newest, (checkpoint.MODEL, checkpoint.OPTIMIZER))
        file.write_bytes(whole)
    for name in ("run", "after-4"):
        assert train(tmp_path / name, alone)["state"] == "done"
        for read in (losses, validation):
            torch.testing.assert_close(read(tmp_path / name), read(tmp_path / "whole"), rtol=1e-5, atol=0)
        models = [checkpoint.load_model(checkpoint.list_checkpoints(tmp_path / run)[-1]) for run in (name, "whole")]
        for left, right in zip(*(model.parameters() for model in models), strict=True):
            assert (left - right).norm() <= 1e-4 * right.norm()
        assert not list((tmp_path / name).glob("**/*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "trained", "pieces"), [
    ("attention", "new", 1), ("attention", "mixers", 2), ("logits", "all", 2)
])  # fmt: skip
def test_ranks_learn_from_a_teacher_as_one_does(
    loss: str, trained: str, pieces: int, make: Make, run: Run, tmp_path: Path
) -> None:
    """Their teacher lies in shards too, and frozen weights beside others; also where they share sequences."""
    student = student_of(teacher_of(), "gated", softmax_layers=[1], n_layers=3)
    save_run(build_model(replace(teacher_of().config, n_layers=3), seed=2), tmp_path / "teacher")
    config = make(
        model=to_dict(student.config), start=str(save_run(student, tmp_path / "start")), trained=trained, log_every=1,
        teacher={"folder": str(tmp_path / "teacher"), "loss": loss}, micro_batch=2, new_lr=1e-2, tokens=1024,
    )  # fmt: skip
    train(tmp_path / "whole", config)
    several = replace(config, train=replace(config.train, sequence_parallel=pieces))
    run(2, write_config(several, tmp_path / "run.toml"), tmp_path / "run", 100)
    for read in (losses, validation):
        torch.testing.assert_close(read(tmp_path / "run"), read(tmp_path / "whole"), rtol=2e-5, atol=1e-7)
    models = [checkpoint.load_model(checkpoint.newest(tmp_path / name)) for name in ("run", "whole", "start")]
    chosen = {"all": "", "mixers": r"blocks\.[02]\.mixer\.", "new": r"blocks\.[02]\.mixer\.(?!._proj)"}[trained]
    for (name, left), right, first in zip(
        models[0].named_parameters(), *(m.parameters() for m in models[1:]), strict=True
    ):
        assert (left - right).norm() <= 2e-4 * right.norm()
        assert torch.equal(left, first) != bool(re.match(chosen, name)), name


@pytest.mark.slow
def test_sigterm_stops_all_ranks_at_the_same_step_and_saves(make: Make, tmp_path: Path) -> None:
    config = write_config(make(tokens=256 * 4000, checkpoints=1), tmp_path / "a.toml")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "-m", "linscale", "train", str(config), "--out", str(tmp_path / "run"), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        status = tmp_path / "run" / "status.json"
        while not (status.exists() and read_json(status)["step"] > 3):
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    found = read_json(status)
    assert found["state"] == "stopped"
    assert re.search(rf"stopped by SIGTERM and saved at step {found['step']} of 4000", err)
    assert checkpoint.step_of(checkpoint.newest(tmp_path / "run", resumable=True)) == found["step"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # the compiler's own
def test_a_compiled_block_trains_as_an_eager_one_does() -> None:
    torch.compiler.reset()
    shape = {"vocab_size": 50, "d_model": 32, "n_layers": 2, "head_dim": 16, "d_ff": 48}
    text = torch.randint(50, (2, 40), generator=torch.Generator().manual_seed(0))
    found = []
    for compiled in (False, True):
        mode = "cheap" if compiled else "none"
        recipe = TrainConfig(tokens=80, batch_tokens=80, length=40, validation_tokens=40, activation_checkpointing=mode)
        model = build_for_training(CONFIGS["tnl"](**shape), recipe, ALONE, "cpu", "fp32")
        for block in model.blocks if compiled else ():
            block.compile(fullgraph=True, dynamic=False, backend="aot_eager")
        loss = model(text, targets=text).loss.mean()
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for eager, same in zip(*found, strict=True):
        torch.testing.assert_close(same, eager, rtol=1e-5, atol=1e-7)


def test_softmax_over_pieces_of_sequences_is_recomputed_cheaply_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax_attention, "gather", lambda x, piece: torch.stack([x] * piece.size))
    shape = {"vocab_size": 50, "d_model": 32, "n_layers": 2, "head_dim": 16, "d_ff": 48}
    text = torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(0))
    found = []
    for mode in ("none", "cheap"):
        recipe = TrainConfig(tokens=80, batch_tokens=80, length=40, validation_tokens=40, activation_checkpointing=mode)
        model = build_for_training(CONFIGS["llama"](**shape), recipe, ALONE, "cpu", "fp32")
        model.piece = Piece(1, 2, "")
        loss = model(text, targets=text).loss.mean()
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for kept, same in zip(*found, strict=True):
        torch.testing.assert_close(same, kept, rtol=1e-5, atol=1e-7)


def test_where_there_are_no_kernels_nothing_is_compiled() -> None:
    recipe = TrainConfig(tokens=80, batch_tokens=80, length=40, validation_tokens=40)
    assert not compiles(recipe, "cpu")
    with pytest.raises(UserError, match=r"train.compile = 'on': .* Triton kernels need a CUDA or ROCm GPU.*try 'auto'"):
        compiles(replace(recipe, compile="on"), "cpu")


def test_a_batch_is_split_or_refused() -> None:
    def recipe(micro: int | None) -> TrainConfig:
        return TrainConfig(tokens=640, batch_tokens=640, length=32, micro_batch=micro, validation_tokens=32)

    assert split_batch(recipe(None), ALONE) == (20, 1)
    assert split_batch(recipe(5), ALONE) == (5, 4)
    assert split_batch(recipe(5), Ranks(size=2)) == (10, 2)
    assert split_batch(recipe(5), Ranks(size=4, pieces=2)) == (10, 2)
    assert split_batch(recipe(20), Ranks(size=10)) == (20, 1)  # more than a rank's share: all of it
    with pytest.raises(UserError, match=r"20 sequences a step, for 3 groups of ranks"):
        split_batch(recipe(None), Ranks(size=3))
    with pytest.raises(UserError, match=r"micro_batch = 4 must divide the 10 sequences"):
        split_batch(recipe(4), Ranks(size=2))


def test_sequences_are_cut_evenly_and_not_through_packed_documents(make: Make) -> None:
    with pytest.raises(UserError, match=r"sequence_parallel = 3 must divide length = 32"):
        make(sequence_parallel=3)
    with pytest.raises(UserError, match=r"packed documents are not cut between ranks"):
        make(sequence_parallel=2, documents=True)
    linear = {"update": "delta", "decay": "head", "rotary": "before"}
    with pytest.raises(
        UserError, match=r"sequence_parallel = 2: model.linear.update = 'delta' reads a sequence as one"
    ):
        make(sequence_parallel=2, model={"arch": "linearized", "linear": linear})
    with pytest.raises(UserError, match=r"sequence_parallel = 2: model.linear.conv = 4 reads a sequence as one"):
        make(sequence_parallel=2, model={"arch": "linearized", "linear": {"conv": 4}})
