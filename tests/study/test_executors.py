"""The local executor: a run's share of the cores decides its bits, so it must not depend on how many runs are left."""

import pytest

from linscale.study import executors
from linscale.study.executors import LocalExecutor
from linscale.study.plan import load_study, planned_runs


class StartedError(Exception):
    """Raised in place of starting a pool, with what it would have been given."""


@pytest.mark.parametrize("left", [1, 2, 6])
def test_a_run_has_the_same_threads_however_few_are_left(study_file, tmp_path, monkeypatch, left):
    def start(count, *, mp_context, initializer, initargs):
        raise StartedError(count, initargs)

    monkeypatch.setattr(executors, "ProcessPoolExecutor", start)
    monkeypatch.setattr(executors, "cores", lambda: 8)
    runs = planned_runs(load_study(study_file), vocab_size=257, data_path="-")[:left]
    with pytest.raises(StartedError) as started:
        LocalExecutor(4).run({tmp_path / run.name: run.config for run in runs}, lambda: None)
    assert started.value.args == (min(left, 4), (2,))
