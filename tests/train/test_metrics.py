"""What a run reports while it trains, on a clock that the test turns."""

from pathlib import Path
from typing import Any

import pytest
import torch

from linscale.run_folder import read_json, read_records
from linscale.train import metrics
from linscale.train.metrics import RunLog, TooManySkippedError, read_status, skipped_steps

SETTINGS = {"run": "tiny", "flops_per_token": 2.0, "train": {"batch_tokens": 100, "log_every": 4, "max_skipped": 1}}


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
    log = RunLog(tmp_path, SETTINGS, [10, 20, 50, 110], start=10, limit=100.0)
    assert read_json(tmp_path / "status.json")["eta_s"] is None
    add(log, clock, range(11, 21), 2.0)
    log.flush()
    clock.now += 30.0
    log.checkpoint_done(20, {})
    add(log, clock, range(21, 31), 4.0)
    log.flush()
    assert values(tmp_path, "tokens_per_s") == {
        **dict.fromkeys(range(11, 21), 50.0),
        **dict.fromkeys(range(21, 31), 25.0),
    }
    status = read_json(tmp_path / "status.json")
    assert (status["state"], status["step"], status["steps"], status["tokens"]) == ("running", 30, 110, 3000)
    assert status["eta_s"] == 80 * 3.0 + 2 * 30.0
    assert status["mfu"] == 0.25
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
def test_too_many_steps_in_a_row_that_are_not_finite_end_the_run(
    tmp_path: Path, clock: Clock, loss: str, norm: str, words: str
) -> None:
    def bad(log: RunLog, *steps: int) -> None:
        for step in steps:
            log.add(step, 0.1, torch.tensor(float(loss)), torch.tensor(float(norm)))

    log = RunLog(tmp_path, SETTINGS, [100], start=0)
    add(log, clock, range(1, 3), 0.1)
    bad(log, 3)
    add(log, clock, range(4, 5), 0.1)
    bad(log, 5)
    log.flush()
    assert (log.status["skipped"], log.status["step"], log.status["loss"]) == (2, 5, 1.0)
    bad(log, 6, 7)
    with pytest.raises(TooManySkippedError, match=f"step 6: {words}") as stop:
        log.flush()
    assert (stop.value.step, stop.value.count) == (6, 2)
    assert values(tmp_path, "loss") == {1: 4.0, 2: 3.0, 4: 1.0}
    assert values(tmp_path, "skipped") == {3: 1.0, 5: 1.0, 6: 1.0}
    assert sorted(values(tmp_path, "learning_rate")) == [1, 2, 3, 4, 5, 6]


def test_steps_left_out_in_an_earlier_session_count(tmp_path: Path, clock: Clock) -> None:
    nan = torch.tensor(torch.nan)
    log = RunLog(tmp_path, SETTINGS, [100], start=0)
    add(log, clock, range(1, 2), 0.1)
    log.add(2, 0.1, nan, nan)
    add(log, clock, range(3, 4), 0.1)
    log.add(4, 0.1, nan, nan)
    log.flush()
    assert skipped_steps(tmp_path, 3) == {2}
    again = RunLog(tmp_path, SETTINGS, [100], start=1)  # killed, and this time step 2 is well
    assert again.status["skipped"] == 0
    add(again, clock, range(2, 4), 0.1)
    again.add(4, 0.1, nan, nan)
    again.flush()
    third = RunLog(tmp_path, SETTINGS, [100], start=4)
    assert third.status["skipped"] == 1
    third.add(5, 0.1, nan, nan)
    with pytest.raises(TooManySkippedError, match="step 5"):
        third.flush()


def test_a_damaged_status_says_nothing(tmp_path: Path) -> None:
    assert read_status(tmp_path) == {}
    for content in ('{"state": "do', "[]", '{"state": "running", "step": "many"}'):
        (tmp_path / "status.json").write_text(content)
        assert read_status(tmp_path) == {}
