"""The benchmark of decoding: all sections, at toy sizes on a CPU."""

import json
import sys
import xml.etree.ElementTree
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from linscale.models.hgrn2 import HGRN2Config

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.mark.slow
def test_every_section_is_measured_and_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import decode
    import decode_chart

    out = tmp_path / "decode.json"
    archs = ("hgrn2", "llama")
    options = [
        "--tiny",
        "--no-peer",
        "--steps",
        "2",
        "--archs",
        ",".join(archs),
        "--sections",
        ",".join(decode.SECTIONS),
        "--json",
        str(out),
    ]
    monkeypatch.setattr(sys, "argv", ["decode.py", *options])
    decode.main()
    record = json.loads(out.read_text())
    assert {(row["arch"], row["slots"], row["draw"]) for row in record["engine"]} == {
        (arch, slots, draw) for arch in archs for slots in (1, 2) for draw in ("greedy", "sampled")
    }
    for row in record["engine"]:
        assert row["tokens_per_s"] == pytest.approx(1e3 * row["slots"] / row["ms"])
        assert row["floor_ms"] > 0
    sizes = {row["arch"]: [] for row in record["length"]}
    for row in record["length"]:
        sizes[row["arch"]].append(row["state_bytes"])
    assert sizes["hgrn2"] == [2 * 2 * 16 * 16 * 4] * 2  # layers, heads, K, V, bytes
    assert sizes["llama"][1] == 4 * sizes["llama"][0]
    assert sum("resume_ms" in row for row in record["prefill"]) == 1
    assert all(row["same_tokens"] for row in record["cpu"] if "float16" not in row["writer"])
    for row in record["states"]:
        assert 0 < row["relative_error"] < 0.1
        assert row["finite"]
    assert "resume_ms" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["decode_chart.py", str(out), "--out", str(tmp_path / "decode.svg")])
    decode_chart.main()
    drawn = xml.etree.ElementTree.parse(tmp_path / "decode.svg").getroot()
    assert len(drawn.findall(".//{*}polyline")) == 4


def test_a_peer_that_is_not_installed_is_said_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import decode
    import decode_peers

    monkeypatch.setattr(decode_peers, "PEERS", {"transformers-llama": "no_such_package"})
    out = tmp_path / "decode.json"
    monkeypatch.setattr(sys, "argv", ["decode.py", "--tiny", "--sections", "peers", "--json", str(out)])
    decode.main()
    assert json.loads(out.read_text())["peers"] == [
        {"peer": "transformers-llama", "failed": "no_such_package is not installed"}
    ]
    assert "no_such_package is not installed" in capsys.readouterr().out


def test_the_state_of_a_hybrid_is_float32_where_it_is_fixed(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from decode_ours import Ours

    bench = object.__new__(Ours)
    shape = {"vocab_size": 300, "d_model": 32, "n_layers": 3, "head_dim": 16, "d_ff": 32}
    bench.model = SimpleNamespace(config=HGRN2Config(**shape, softmax_every=3))
    bench.setting = SimpleNamespace(dtype=torch.bfloat16)
    fixed, grown = 2 * 2 * 16 * 16, 2 * 32 * 100  # two layers of two heads; keys and values of a hundred tokens
    assert bench.state_bytes(100) == 4 * fixed + 2 * grown
    assert bench.state_bytes(100, "bfloat16") == 2 * fixed + 2 * grown
    assert bench.moved_bytes(100, "float32") == 8 * fixed + 2 * grown
