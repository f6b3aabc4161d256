"""The training loop: what it records, and that nothing is lost or changed by a crash, a kill, damage or a full disk."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from linscale import checkpoint, run_folder
from linscale.config import UserError, to_dict
from linscale.data.loader import Batch, Loader
from linscale.data.prepare import PrepareOptions, prepare
from linscale.data.shards import TokenDataset
from linscale.distributed import Ranks
from linscale.run_folder import latest_records, locked, read_json, read_records
from linscale.train import trainer
from linscale.train.config import RunConfig, checkpoint_steps
from linscale.train.trainer import train
from tests.quick import quick

CONFIG_KEYS = [
    *("run", "study", "size", "model", "data", "train", "params", "flops_per_token", "precision", "device", "torch"),
    *("fingerprint", "code"),
]
STATUS_KEYS = [
    *("state", "step", "steps", "tokens", "tokens_per_s", "mfu", "loss", "skipped", "elapsed_s", "eta_s", "pid"),
    *("updated", "error"),
]


Make = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def whole(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(run, make())
    return run


def weights(run: Path, step: int = 10) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step_{step:08d}" / "model.safetensors")


def losses(run: Path) -> dict[int, float]:
    records = latest_records(run / "metrics.jsonl", ("step", "metric"))
    return {record["step"]: record["value"] for record in records if record["metric"] == "loss"}


def validation(run: Path) -> dict[tuple[int, str], float]:
    return {(record["step"], record["metric"]): record["value"] for record in latest_records(run / "evaluations.jsonl")}


def assert_same_run(run: Path, other: Path) -> None:
    """Equal to the last bit: final weights, every step's loss, every validation record."""
    left, right = weights(run), weights(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert losses(run) == losses(other)
    assert validation(run) == validation(other)
    assert not list(run.glob("**/*.tmp"))


class CrashError(Exception):
    pass


def crash_at(step: int) -> Callable[[dict[str, Any]], None]:
    def on_step(status: dict[str, Any]) -> None:
        if status["step"] >= step:
            raise CrashError

    return on_step


def test_a_run_learns_and_records_every_step_and_checkpoint(make: Make, data: Path, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    config = make(tokens=60 * 256, checkpoint_spacing="log")
    status = train(tmp_path / "run", config, on_step=seen.append)
    assert list(status) == STATUS_KEYS
    assert status == read_json(tmp_path / "run" / "status.json") == seen[-1]
    assert (status["state"], status["step"], status["tokens"], status["eta_s"]) == ("done", 60, 60 * 256, 0.0)
    assert 0 < status["mfu"] < 1
    settings = read_json(tmp_path / "run" / "config.json")
    assert list(settings) == CONFIG_KEYS
    assert settings["model"] == to_dict(config.model)
    assert (settings["precision"], settings["device"]) == ("fp32", "cpu")
    records = list(read_records(tmp_path / "run" / "metrics.jsonl"))
    metrics = ("loss", "grad_norm", "learning_rate", "tokens_per_s")
    assert [(record["step"], record["metric"]) for record in records] == [(s, m) for s in range(1, 61) for m in metrics]
    for record in records:
        assert list(record) == ["run", "step", "tokens", "flops", "metric", "value", "code"]
        assert record["tokens"] == record["step"] * 256
        assert record["flops"] == pytest.approx(record["tokens"] * settings["flops_per_token"])
    curve = losses(tmp_path / "run")
    assert curve[1] == pytest.approx(5.55, abs=0.1)  # ln 257: nothing is known at the start
    assert curve[60] < 3.5
    scores = validation(tmp_path / "run")
    assert sorted({step for step, _ in scores}) == checkpoint_steps(config.train)
    assert scores[60, "loss"] == pytest.approx(curve[60], abs=0.5)
    first = next(iter(read_records(tmp_path / "run" / "evaluations.jsonl")))
    assert list(first) == [
        *("run", "step", "tokens", "flops", "task", "task_version", "metric", "value", "se", "count", "code"),
    ]


@pytest.mark.slow
def test_accumulation_does_not_change_the_gradient(make: Make, whole: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", make(micro_batch=4))
    expected = losses(whole)
    assert losses(tmp_path / "run") == pytest.approx(expected, abs=2e-5)


def test_bf16_trains_in_mixed_precision_and_is_part_of_the_config(make: Make, whole: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", make(precision="bf16"))
    expected, found = losses(whole), losses(tmp_path / "run")
    assert found == pytest.approx(expected, abs=0.05)
    assert found != expected
    assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path / "run").values())
    with pytest.raises(UserError, match="precision = 'bf16' there, 'fp32' here"):
        train(tmp_path / "run", make())


@pytest.mark.slow
def test_packed_documents_train_and_differ_from_plain_windows(make: Make, whole: Path, tmp_path: Path) -> None:
    train(tmp_path / "one", make(documents=True))
    train(tmp_path / "two", make(documents=True, micro_batch=4))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=2e-5)
    assert losses(tmp_path / "one")[10] != losses(whole)[10]


@pytest.mark.parametrize("step", quick([1, 4, 5, 10], 5))
def test_a_crashed_run_resumes_to_the_same_bits(make: Make, whole: Path, tmp_path: Path, step: int) -> None:
    with pytest.raises(CrashError):
        train(tmp_path / "run", make(log_every=1), on_step=crash_at(step))
    assert read_json(tmp_path / "run" / "status.json")["state"] == "failed"
    train(tmp_path / "run", make())
    assert_same_run(tmp_path / "run", whole)


def test_a_finished_run_is_left_alone(make: Make, whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != ".lock"}
    assert train(whole, make())["state"] == "done"
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != ".lock"} == before


def files(run: Path) -> list[str]:
    return sorted(path.relative_to(run).as_posix() for path in run.rglob("*"))


@pytest.mark.parametrize("steps", quick([(1,), (3, 5, 7), (4,), (9,)], (3, 5, 7)))
def test_a_run_that_is_asked_to_stop_saves_its_step_and_goes_on_from_there(
    make: Make, whole: Path, tmp_path: Path, steps: tuple[int, ...]
) -> None:
    run, config, at = tmp_path / "run", make(), 0
    for step in steps:
        asked = iter([False] * (step - at - 1) + [True])  # once a step
        status = train(run, config, stop=lambda asked=asked: next(asked))
        assert status == read_json(run / "status.json")
        assert (status["state"], status["step"], status["error"]) == ("stopped", step, None)
        assert checkpoint.step_of(checkpoint.list_checkpoints(run)[-1]) == step
        at = step
    train(run, config)
    assert_same_run(run, whole)
    assert files(run) == files(whole)


def test_a_stop_at_the_last_step_changes_nothing(make: Make, whole: Path, tmp_path: Path) -> None:
    asked = iter([False] * 9 + [True])
    status = train(tmp_path / "run", make(), stop=lambda: next(asked))
    assert status["state"] == "done"
    assert_same_run(tmp_path / "run", whole)


RESTARTED = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
import torch._dynamo  # as the first optimizer does
torch.set_num_threads(1)
from linscale.config import parse
from linscale.train.config import RunConfig
from linscale.train.trainer import train

# A process that has loaded everything begins the run again and again in a child, and kills that: half of the times
# after a random while, half of them as soon as it sees a checkpoint being written. Then the run may come to its end.
run, config, kills = Path(sys.argv[1]), parse(RunConfig, json.loads(sys.argv[2])), int(sys.argv[3])
chance, writing, done = random.Random(int(sys.argv[4])), 0, 0

def begin():
    child = os.fork()
    if child == 0:
        train(run, config)
        os._exit(0)
    return child

def unfinished():
    return any(run.glob("checkpoints/.*.tmp"))

for number in range(kills):
    child = begin()
    if number % 2:
        deadline = time.monotonic() + 20
        while not unfinished() and time.monotonic() < deadline and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.0005)  # of the ten milliseconds that a checkpoint takes
        time.sleep(chance.uniform(0, 0.004))
    else:
        time.sleep(chance.uniform(0, 0.15))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    done += not os.WIFSIGNALED(status)
    writing += unfinished()
_, status = os.waitpid(begin(), 0)
print(json.dumps({"status": status, "writing": writing, "done": done}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_sixty_kills_at_random_moments_lose_nothing(make: Make, tmp_path: Path) -> None:
    config = make(tokens=400 * 256, checkpoints=80, keep_optimizer="last")
    train(tmp_path / "whole", config)
    values = {"name": config.name, **{key: to_dict(getattr(config, key)) for key in ("model", "data", "train")}}
    command = [sys.executable, "-c", RESTARTED, str(tmp_path / "run"), json.dumps(values), "60", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout)
    assert (found["status"], found["done"]) == (0, 0), result.stderr
    assert found["writing"] >= 15  # killed inside the writing of a checkpoint
    left, right = weights(tmp_path / "run", 400), weights(tmp_path / "whole", 400)
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert validation(tmp_path / "run") == validation(tmp_path / "whole")
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_a_lost_validation_record_is_made_first_on_resume(make: Make, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(CrashError):
        train(tmp_path / "run", make(log_every=1), on_step=crash_at(5))
    lines = (tmp_path / "run" / "evaluations.jsonl").read_bytes().splitlines(keepends=True)
    assert b'"step": 4' in lines[-1]
    (tmp_path / "run" / "evaluations.jsonl").write_bytes(b"".join(lines[:-2]) + lines[-2][:50])
    train(tmp_path / "run", make())
    assert_same_run(tmp_path / "run", whole)


def test_a_damaged_newest_checkpoint_is_passed_over(
    make: Make, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(CrashError):
        train(tmp_path / "run", make(log_every=1), on_step=crash_at(7))
    newest = tmp_path / "run" / "checkpoints" / "step_00000006"
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    resumed: list[int] = []
    train(tmp_path / "run", make(log_every=1), on_step=lambda status: resumed.append(status["step"]))
    assert resumed[0] == 5
    assert "step_00000006" in caplog.text
    assert "corrupt" in caplog.text
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
def test_optimizer_states_are_kept_as_asked(make: Make, whole: Path, tmp_path: Path) -> None:
    def kept(run: Path) -> list[int]:
        return [
            checkpoint.step_of(path)
            for path in checkpoint.list_checkpoints(run)
            if (path / checkpoint.OPTIMIZER).exists()
        ]

    assert kept(whole) == [10]
    train(tmp_path / "all", make(keep_optimizer="all"))
    assert kept(tmp_path / "all") == [2, 4, 6, 8, 10]
    with pytest.raises(CrashError):
        train(tmp_path / "last", make(log_every=1), on_step=crash_at(9))
    assert kept(tmp_path / "last") == [6, 8]


def test_a_full_disk_stops_the_run_and_loses_nothing(
    make: Make, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, left = checkpoint.tensors.save_file, [5]

    def full(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        left[0] -= 1
        write(tensors, path, metadata=metadata)
        if left[0] < 0:
            path.write_bytes(path.read_bytes()[:100])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint.tensors, "save_file", full)
    with pytest.raises(UserError, match=r"step_00000006.*No space left on device.*free space"):
        train(tmp_path / "run", make())
    status = read_json(tmp_path / "run" / "status.json")
    assert status["state"] == "failed"
    assert "No space left" in status["error"]
    paths = checkpoint.list_checkpoints(tmp_path / "run")
    assert [checkpoint.step_of(path) for path in paths] == [2, 4]
    for path in paths:
        checkpoint.verify(path, (checkpoint.MODEL, checkpoint.OPTIMIZER))
    monkeypatch.undo()
    train(tmp_path / "run", make())
    assert_same_run(tmp_path / "run", whole)


def test_records_that_cannot_be_written_stop_the_run_with_one_line(
    make: Make, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: run_folder.RecordWriter, *records: Any) -> None:
        if records[0]["step"] > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, *records)

    write = run_folder.RecordWriter.write
    monkeypatch.setattr(run_folder.RecordWriter, "write", full)
    with pytest.raises(
        UserError, match=r"run: the disk is full .*No space left on device.*; free space and run the same command again"
    ):
        train(tmp_path / "run", make())
    monkeypatch.undo()
    train(tmp_path / "run", make())
    assert_same_run(tmp_path / "run", whole)


def test_another_config_is_refused_by_field(make: Make, whole: Path) -> None:
    with pytest.raises(UserError, match=r"train.lr = 0.003 there, 0.001 here"):
        train(whole, make(lr=1e-3))
    with pytest.raises(UserError, match=r"model.n_layers = 2 there, 1 here"):
        train(whole, make(model={"n_layers": 1}))


def test_a_field_that_did_not_exist_yet_has_its_default(make: Make, whole: Path, tmp_path: Path) -> None:
    """A run begun by a version whose config lacked a field goes on when the default is asked for, and only then."""
    with pytest.raises(CrashError):
        train(tmp_path / "run", make(log_every=1), on_step=crash_at(3))
    older = read_json(tmp_path / "run" / "config.json")
    del older["train"]["eps"], older["model"]["norm_eps"]
    run_folder.write_json(tmp_path / "run" / "config.json", {**older, "fingerprint": "of the older version"})
    with pytest.raises(UserError, match=r"\(train.eps = 1e-08 there, 1e-07 here\)"):
        train(tmp_path / "run", make(eps=1e-7))
    train(tmp_path / "run", make())
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("content", ["[]", "{}", '{"model": 1, "data": 2, "train": 3}'])
def test_a_config_that_is_none_is_named(make: Make, tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json: not the config of a run"):
        train(tmp_path, make())


def test_what_the_first_rank_is_refused_all_say(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is the first rank's: the others would wait for it until torchrun ends them."""
    told: list[object] = []

    def share(self: Ranks, value: object) -> object:
        if self.first:
            told.append(value)
        return told[-1]

    monkeypatch.setattr(Ranks, "share", share)
    with locked(tmp_path / "run"):
        for rank in (0, 1):
            with pytest.raises(UserError, match="another process is writing this run"):
                train(tmp_path / "run", make(), ranks=Ranks(rank, 2))


def test_a_lack_of_memory_tells_what_one_rank_had_to_hold(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*arguments: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(trainer, "build_for_training", build)
    monkeypatch.setattr(Ranks, "share", lambda self, value: value)
    with pytest.raises(UserError, match="and 4 sequences of 16 tokens a pass of a rank;"):  # of 8, of 32
        train(tmp_path, make(sequence_parallel=2), ranks=Ranks(size=4, pieces=2))


def test_a_process_alone_does_not_take_itself_for_one_that_shares_sequences(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sequence_parallel = 2: expected 1.*torchrun.*--gpus-per-run"):
        train(tmp_path, make(sequence_parallel=2))


def test_a_model_too_large_for_the_memory_is_one_line(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"out of memory with .* parameters .*train.micro_batch or a smaller model"):
        train(tmp_path / "run", make(model={"d_model": 2**40, "d_ff": 1}))


def test_the_same_data_may_move_and_other_data_may_not(make: Make, data: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    with pytest.raises(CrashError):
        train(tmp_path / "run", make(log_every=1), on_step=crash_at(3))
    assert train(tmp_path / "run", make(path=moved))["state"] == "done"
    assert read_json(tmp_path / "run" / "config.json")["data"]["path"] == moved.as_posix()
    (tmp_path / "text.txt").write_text("".join(f"{k} is another line\n" for k in range(400)))
    options = PrepareOptions(document_bytes=100, val_fraction=0.2, workers=1)
    prepare([str(tmp_path / "text.txt")], tokenizer="byte", out=tmp_path / "other", options=options)
    with pytest.raises(UserError, match=r"data.fingerprint = '\w+' there, '\w+' here"):
        train(tmp_path / "run", make(path=tmp_path / "other"))


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.vocab_size = 256.*257 tokens"):
        train(tmp_path / "run", make(model={"vocab_size": 256}))


def test_a_split_shorter_than_a_window_is_refused_before_the_folder_is_made_a_run(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"length = 8192: split 'val'"):
        train(tmp_path / "run", make(length=8192, batch_tokens=8192, tokens=81920, validation_tokens=8192))
    assert train(tmp_path / "run", make())["state"] == "done"


def spoil(monkeypatch: pytest.MonkeyPatch, *steps: int, forward: bool = True) -> None:
    """Make the loss of some steps, or only its gradient, not finite."""
    whole = trainer._loss

    def loss(run: trainer.Run, batch: Batch) -> torch.Tensor:
        value = whole(run, batch)
        if not any(torch.equal(run.loader.batch(step - 1).tokens, batch.tokens) for step in steps):
            return value
        if forward:
            return value * torch.nan
        value.register_hook(lambda gradient: gradient * torch.inf)
        return value

    monkeypatch.setattr(trainer, "_loss", loss)


@pytest.mark.parametrize("forward", quick([True, False], False))
def test_a_step_that_is_not_finite_is_left_out_and_counted(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forward: bool
) -> None:
    spoil(monkeypatch, 5, 6, forward=forward)
    config = make(checkpoints=10, keep_optimizer="all")
    status = train(tmp_path / "run", config)
    assert (status["state"], status["skipped"]) == ("done", 2)
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3, 4, 7, 8, 9, 10]
    records = [r["step"] for r in read_records(tmp_path / "run" / "metrics.jsonl") if r["metric"] == "skipped"]
    assert records == [5, 6]
    for name in (checkpoint.MODEL, checkpoint.OPTIMIZER):
        before, after = (load_file(tmp_path / "run" / "checkpoints" / f"step_{step:08d}" / name) for step in (4, 6))
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(
        not torch.equal(weights(tmp_path / "run", 7)[key], value) for key, value in weights(tmp_path / "run", 6).items()
    )


def test_too_many_steps_that_are_not_finite_stop_the_run_and_say_where(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 5, 6, 7)
    with pytest.raises(UserError) as stop:
        train(tmp_path / "run", make(max_skipped=2, log_every=1))
    assert re.search(
        r"step 7: loss = nan is not finite, 3 steps in a row; first not finite: loss; its batch has windows "
        r"(\d+, ){7}\d+ of 32 tokens of .*data; lower train.lr, .* or raise train.max_skipped = 2",
        str(stop.value),
    )
    status = read_json(tmp_path / "run" / "status.json")
    assert (status["state"], status["error"], status["skipped"]) == ("failed", str(stop.value), 3)
    shown = [int(number) for number in re.findall(r"windows ([\d, ]+) of", str(stop.value))[0].split(", ")]
    batch = Loader(TokenDataset.open(make().data.path), "train", length=32, sequences=8, seed=0).windows_of(6)
    assert shown == batch.tolist()
    assert train(tmp_path / "run", make(max_skipped=3))["skipped"] == 3  # the same run, with more patience


def test_a_rate_far_too_high_names_the_first_bad_tensor(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"first not finite: (weight|output of|gradient of) \w+"):
        train(tmp_path / "run", make(lr=1e38, warmup_tokens=0, weight_decay=0.0, max_skipped=1))


def test_a_shard_that_vanishes_stops_the_run_and_loses_nothing(
    make: Make, data: Path, whole: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)

    def vanish(status: dict[str, Any]) -> None:
        if status["step"] == 5:
            (moved / "train-00000.bin").rename(tmp_path / "kept")

    with pytest.raises(UserError, match=r"train-00000\.bin: missing; "):
        train(tmp_path / "run", make(path=moved, log_every=1), on_step=vanish)
    assert read_json(tmp_path / "run" / "status.json")["state"] == "failed"
    paths = checkpoint.list_checkpoints(tmp_path / "run")
    assert len(paths) >= 2  # batches that were read ahead were still trained on
    for path in paths[-2:]:
        checkpoint.verify(path, (checkpoint.MODEL, checkpoint.OPTIMIZER))
    (tmp_path / "kept").rename(moved / "train-00000.bin")
    train(tmp_path / "run", make(path=moved))
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_becomes_read_only_stops_the_run_and_loses_nothing(
    make: Make, whole: Path, tmp_path: Path
) -> None:
    def close(status: dict[str, Any]) -> None:
        if status["step"] == 5:
            (tmp_path / "run" / "checkpoints").chmod(0o500)

    try:
        with pytest.raises(
            UserError, match=r"cannot write the checkpoint .*Permission denied.*make the folder writable"
        ):
            train(tmp_path / "run", make(log_every=1), on_step=close)
    finally:
        (tmp_path / "run" / "checkpoints").chmod(0o700)
    assert [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(tmp_path / "run")] == [2, 4]
    train(tmp_path / "run", make())
    assert_same_run(tmp_path / "run", whole)


def test_a_place_where_no_checkpoint_can_be_written_is_named(make: Make, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").touch()
    with pytest.raises(UserError, match=r"step_00000002: cannot write the checkpoint \(.*make the folder writable"):
        train(tmp_path / "run", make())


def test_one_writer_at_a_time(make: Make, tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(UserError, match="another process"):
        train(tmp_path / "run", make())


def test_cuda_is_refused_where_there_is_none(make: Make, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(UserError, match=r"train.device = 'cuda'.*expected 'cpu' or 'auto'"):
        train(tmp_path / "run", make(device="cuda"))
