"""The benchmark of zero-shot scoring, at a toy size on a CPU; with the peer where lm-eval is installed."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from linscale.data.tokenizer import train_bpe

FILE = Path(__file__).parent.parent.parent / "benchmarks" / "evaluate.py"
HARNESS = all(importlib.util.find_spec(name) for name in ("lm_eval", "accelerate", "transformers"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "peer", [False, pytest.param(True, marks=pytest.mark.skipif(not HARNESS, reason="no lm-eval"))]
)
def test_a_task_is_timed_for_each_model_and_the_peer(peer, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("evaluate_benchmark", FILE)
    benchmark = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "evaluate_benchmark", benchmark)
    spec.loader.exec_module(benchmark)
    monkeypatch.setattr(benchmark, "TINY", (64, 1))
    monkeypatch.setattr(benchmark, "tokenizer_of", lambda path: train_bpe(["the cat sat on a mat"], 300))
    out = tmp_path / "evaluate.json"
    options = ["--size", "tiny", "--limit", "2", "--tasks", "piqa,boolq", "--archs", "tnl,llama", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *options, *([] if peer else ["--no-peer"])])
    benchmark.main()
    found = json.loads(out.read_text())
    names = (["peer"] if peer else []) + ["tnl", "llama"]
    assert [row["task"] for row in found["rows"]] == ["piqa", "boolq"]
    assert all(list(row["seconds"]) == names and min(row["seconds"].values()) > 0 for row in found["rows"])
    assert found["all"]["questions"] == 4
    assert set(found["all"]["ratios"]) == (set(names) if peer else set())
    assert "piqa" in capsys.readouterr().out
