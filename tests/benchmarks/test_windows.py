"""The benchmark of windows: its rows, at a toy size on a CPU, and that models of one size have the same parameters."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import windows

    return windows


@pytest.mark.slow
def test_rows_are_measured(benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "windows.json"
    monkeypatch.setattr(sys, "argv", ["windows.py", "--size", "tiny", "--seconds", "0", "--json", str(out)])
    monkeypatch.setattr(benchmark, "matrix_rate", lambda device: 1e11)
    monkeypatch.setattr(benchmark.torch.cuda, "is_available", lambda: False)
    benchmark.main()
    rows = json.loads(out.read_text())["rows"]
    assert [row["name"] for row in rows] == [
        f"{model} eager {shape}" for shape in ("2x32", "1x64") for model in ("recurrent", "llama")
    ]
    assert all(row["tokens_per_s"] > 0 and row["mfu"] > 0 for row in rows)


@pytest.mark.parametrize("size", ["2M", "50M"])
def test_models_of_a_size_have_the_same_parameters(benchmark: Any, size: str) -> None:
    counts = [benchmark.count_parameters(benchmark.config_of(size, name)).total for name in benchmark.SIZES[size]]
    assert max(counts) < 1.02 * min(counts), counts
