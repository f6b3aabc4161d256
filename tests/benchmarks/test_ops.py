"""The benchmark of the operators: its floor, its refusal to praise wrong results, and the peer's remembered choices."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    """benchmarks/ holds scripts that import each other by name, as when one of them is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_the_gpu_path_writes_every_section(tmp_path, monkeypatch, capsys):
    import ops

    out = tmp_path / "ops.json"
    wanted = r"head 8x2048 H16|channel 8x2048 H16|step head B1$|scan free 8|length head H8|softmax 8|loss|delta 4.*dec"
    monkeypatch.setattr(sys, "argv", ["ops.py", "--tiny", "--quick", "--rows", wanted, "--json", str(out)])
    ops.main()
    record = json.loads(out.read_text())
    assert [row["row"]["kind"] for row in record["rows"]] == ["head", "channel"]
    for row in record["rows"]:
        assert row["ratio"] > 0
        assert row["numerics_failed"] == []
        assert max(row["ours"]["errors"].values()) < 5e-3
    assert all(len(record[section]) == 1 for section in ("softmax", "step", "scan", "length", "loss", "delta"))
    assert max(record["delta"][0]["ours"]["errors"].values()) < 1e-2
    assert all(max(record["loss"][0][form]["errors"]) < 1e-2 for form in ("ours", "torch"))
    assert "peer/ours" in capsys.readouterr().out


def test_the_floor_is_that_of_the_issue():
    from rows import Row

    for kind, T, expected in (("head", 2048, 0.246), ("none", 2048, 0.246), ("channel", 2048, 0.313)):
        assert Row(kind, 8, T).floor_bytes(backward=True) / 3.01e12 * 1e3 == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("spoil", [lambda o: 1.02 * o, lambda o: o * float("nan"), None], ids=["off", "nan", "raises"])
def test_wrong_results_get_no_speed_up(spoil, capsys):
    import ops
    from measure import Ceilings
    from peers import Peer
    from rows import Row
    from table import measure_row, print_row

    def operator(x):
        if spoil is None:
            raise RuntimeError("no such kernel")
        return spoil(ops.stand_in(x))

    row = Row("channel", 1, 40, 2, 16, 16)
    peers = [Peer("peer", ops.stand_in)]
    found = measure_row(row, peers, CPU, Ceilings(1e9, 1e9), quick=True, operator=operator)
    assert found["numerics_failed"]
    assert found["ratio"] is None
    assert json.loads(json.dumps(found, allow_nan=False))["peer"] == "peer"
    print_row(found, row)
    assert "no speed-up" in capsys.readouterr().out


def test_an_error_larger_than_the_peers_is_a_failure():
    from measure import numerics_failures

    assert numerics_failures({"o": 1.04e-3}, {"o": 1e-3}) == []
    assert numerics_failures({"o": 1.06e-3}, {"o": 1e-3})
    assert numerics_failures({"dg": 0.019}, {}) == []
    assert numerics_failures({"dg": float("nan")}, {})


def test_the_peers_choices_are_remembered_and_replayed(tmp_path):
    pytest.importorskip("triton")
    from tuning import Tuning

    def tuner():
        return SimpleNamespace(
            arg_names=["x", "BT"], keys=["BT"], cache={}, configs=["small", "large"], _do_bench=None,
            base_fn=SimpleNamespace(__name__="kernel"),
        )  # fmt: skip

    searches = []

    def stock(tuner, x, BT):
        key = (BT, str(x.dtype))
        if key not in tuner.cache:
            searches.append(key)
            tuner.cache[key] = "large"

    file = tmp_path / "tuning.json"
    for expected in (1, 1):  # the second time from the file
        tuning, fresh = Tuning(file), tuner()
        for _ in range(2):
            tuning.run(stock, fresh, (torch.zeros(1),), {"BT": 64})
        assert len(searches) == expected
        assert fresh.cache == {(64, "torch.float32"): "large"}
