"""The local executor: a run's share of the cores decides its bits, so it must not depend on how many runs are left."""

import pytest

from linscale.cli.executor import processes
from linscale.study import executors
from linscale.study.executors import LocalExecutor
from linscale.study.plan import load_study, planned_runs


class StartedError(Exception):
    """Raised in place of starting a pool, with what it would have been given."""


@pytest.mark.parametrize("left", [1, 2, 6])
def test_a_run_has_the_same_threads_however_few_are_left(study_file, tmp_path, monkeypatch, left):
    def start(count, *, mp_context, initializer, initargs):
        raise StartedError(count, initargs[:1])

    monkeypatch.setattr(executors, "ProcessPoolExecutor", start)
    monkeypatch.setattr(executors, "cores", lambda: 8)
    runs = planned_runs(load_study(study_file), vocab_size=257, data_path="-")[:left]
    with pytest.raises(StartedError) as started:
        LocalExecutor(4).run({tmp_path / run.name: run.config for run in runs}, lambda: None)
    assert started.value.args == (min(left, 4), (2,))


def test_gpus_are_dealt_out_to_workers_in_turn(monkeypatch):
    import torch

    seen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", seen.append)
    monkeypatch.setattr(executors, "train_run", lambda path, config, stop: None)
    monkeypatch.setattr(executors, "_asked_to_stop", lambda: False, raising=False)
    for number, device in ((0, "auto"), (1, "cuda"), (2, "auto"), (3, "cpu")):
        monkeypatch.setattr(executors, "_number", number, raising=False)
        executors._work("run", {"train": {"device": device}})
    assert seen == [0, 1, 0]
    assert [processes(None, device) for device in ("auto", "cuda")] == [2, 2]
    assert processes(5, "auto") == 5
    monkeypatch.setattr("linscale.cli.executor.cores", lambda: 7)
    assert processes(None, "cpu") == 7
