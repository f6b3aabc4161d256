"""The benchmark of training: its rows, its peers and what it does with a row that fails, at toy sizes on a CPU."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.mark.slow
def test_rows_are_measured_by_the_trainer_and_a_failure_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import train as benchmark

    out = tmp_path / "train.json"
    rows = r"^(peer-)?hgrn2.* 16x2048"
    options = ["--tiny", "--steps", "6", "--rows", rows, "--compile", "off", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["train.py", *options])
    monkeypatch.setattr(benchmark, "matrix_rate", lambda device: 1e11)
    benchmark.main()
    ours, peer = json.loads(out.read_text())["rows"]
    assert ours["tokens_per_s"] > 0
    assert ours["first_step_s"] > 0
    assert ours["mfu"] == pytest.approx(ours["flops_per_token"] * ours["tokens_per_s"] / 1e11)
    assert "No module named 'fla'" in peer.get("failed", "No module named 'fla'")  # where it is not installed
    assert "hgrn2 16x2048" in capsys.readouterr().out
