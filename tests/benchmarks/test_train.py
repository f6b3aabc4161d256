"""The benchmark of training: a row, at a toy size on a CPU."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.mark.slow
def test_a_row_is_measured_by_the_trainer(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import train as benchmark

    out = tmp_path / "train.json"
    rows = r"^hgrn2 16x2048"
    options = ["--tiny", "--steps", "6", "--rows", rows, "--compile", "off", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["train.py", *options])
    monkeypatch.setattr(benchmark, "matrix_rate", lambda device: 1e11)
    benchmark.main()
    (ours,) = json.loads(out.read_text())["rows"]
    assert ours["tokens_per_s"] > 0
    assert ours["first_step_s"] > 0
    assert ours["mfu"] == pytest.approx(ours["flops_per_token"] * ours["tokens_per_s"] / 1e11)
    assert "hgrn2 16x2048" in capsys.readouterr().out
