"""The bill of a study, as it is printed."""

import pytest

from linscale.cli.bill import _print_memory


def test_runs_that_one_gpu_alone_cannot_train_have_a_bill_too(capsys: pytest.CaptureFixture[str]) -> None:
    """train.sequence_parallel = 2: the memory of one GPU is no question."""
    sizes = {1: None, 2: {"bytes": 3.2e9, "sequence_parallel": 2}}
    _print_memory([{"run": "tnl-a", "arch": "tnl", "params": 1, "rank_memory": sizes}])
    assert "3/2" in capsys.readouterr().out
    _print_memory([{"run": "tnl-a", "arch": "tnl", "params": 1, "rank_memory": {1: None, 2: None}}])
    assert not capsys.readouterr().out
