"""What a run reports while it trains, on a clock that the test turns."""

from pathlib import Path
from typing import Any

import pytest
import torch

from linscale.config import UserError
from linscale.run_folder import read_json, read_records
from linscale.train import metrics
from linscale.train.metrics import RunLog, read_status

SETTINGS = {"run": "tiny", "flops_per_token": 2.0, "train": {"batch_tokens": 100, "log_every": 4}}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1.7e9 + self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(metrics, "time", clock)
    return clock


def add(log: RunLog, clock: Clock, steps: range, seconds: float) -> None:
    for step in steps:
        clock.now += seconds
        log.add(step, 0.1, torch.tensor(5.0 - step), torch.tensor(1.0))


def values(run: Path, metric: str) -> dict[int, Any]:
    return {r["step"]: r["value"] for r in read_records(run / "metrics.jsonl") if r["metric"] == metric}


def test_throughput_and_eta_keep_training_and_checkpoints_apart(tmp_path: Path, clock: Clock) -> None:
    log = RunLog(tmp_path, SETTINGS, [10, 20, 50, 110], start=10)
    assert read_json(tmp_path / "status.json")["eta_s"] is None
    add(log, clock, range(11, 21), 2.0)
    log.flush()
    clock.now += 30.0
    log.checkpoint_done()
    add(log, clock, range(21, 31), 4.0)
    log.flush()
    assert values(tmp_path, "tokens_per_s") == {
        **dict.fromkeys(range(11, 21), 50.0),
        **dict.fromkeys(range(21, 31), 25.0),
    }
    status = read_json(tmp_path / "status.json")
    assert (status["state"], status["step"], status["steps"], status["tokens"]) == ("running", 30, 110, 3000)
    assert status["eta_s"] == 80 * 3.0 + 2 * 30.0
    assert status["elapsed_s"] == 90.0
    log.finish()
    assert RunLog(tmp_path, SETTINGS, [10, 20, 50, 110], start=110).status["elapsed_s"] == 90.0


def test_the_device_is_read_after_some_steps_or_a_second(tmp_path: Path, clock: Clock) -> None:
    log = RunLog(tmp_path, SETTINGS, [100], start=0)
    add(log, clock, range(1, 4), 0.1)
    assert not log.due()
    add(log, clock, range(4, 5), 0.1)
    assert log.due()
    log.flush()
    add(log, clock, range(5, 6), 0.9)
    assert not log.due()
    add(log, clock, range(6, 7), 0.2)
    assert log.due()


def test_the_status_is_written_about_once_a_second(tmp_path: Path, clock: Clock) -> None:
    log = RunLog(tmp_path, SETTINGS, [100], start=0)
    seen = []
    for step in range(1, 31):
        add(log, clock, range(step, step + 1), 0.125)
        log.flush()
        seen.append(read_json(tmp_path / "status.json")["step"])
    assert sorted(set(seen)) == [0, 8, 16, 24]
    log.fail("interrupted")
    status = read_status(tmp_path)
    assert (status["state"], status["step"], status["error"]) == ("failed", 30, "interrupted")


@pytest.mark.parametrize(("loss", "norm", "words"), [("nan", "1", "loss = nan"), ("1", "inf", "grad_norm = inf")])
def test_the_first_step_that_is_not_finite_is_named(
    tmp_path: Path, clock: Clock, loss: str, norm: str, words: str
) -> None:
    log = RunLog(tmp_path, SETTINGS, [100], start=0)
    add(log, clock, range(1, 4), 0.1)
    for step in (4, 5):
        log.add(step, 0.1, torch.tensor(float(loss)), torch.tensor(float(norm)))
    with pytest.raises(UserError, match=f"step 4: {words}"):
        log.flush()
    assert values(tmp_path, "loss") == {1: 4.0, 2: 3.0, 3: 2.0}


def test_a_damaged_status_says_nothing(tmp_path: Path) -> None:
    assert read_status(tmp_path) == {}
    for content in ('{"state": "do', "[]", '{"state": "running", "step": "many"}'):
        (tmp_path / "status.json").write_text(content)
        assert read_status(tmp_path) == {}
