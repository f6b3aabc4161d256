"""Experiments: a file of arms is trained, goes on where it was, and becomes tables; those that ship can be run."""

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from linscale.config import parse
from linscale.data.shards import TokenDataset
from linscale.train.trainer import train

ROOT = Path(__file__).parent.parent.parent / "experiments"
FILES = sorted((ROOT / "recurrent").glob("*.toml"))
FILE = """
name = "tiny"
seeds = [3, 4]
lengths = [64]
[data.task]
kind = "copy"
noise = 16
payload = 4
symbols = 8
[model]
vocab_size = 8
d_model = 16
n_layers = 1
head_dim = 8
[train]
tokens = 240
batch_tokens = 48
length = 24
validation_tokens = 192
checkpoints = 2
curriculum = { start = 8, look_every = 2, sequences = 4, threshold = 9.0 }
[[arms]]
name = "windows"
model = { arch = "recurrent_transformer", d_ff = 16, recurrence = { block = 4 } }
[[arms]]
name = "softmax"
model = { arch = "llama", d_ff = 16 }
train = { lr = 1e-2 }
"""


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    import run
    import tables

    return run, tables


def call(script: Any, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["script", *options])
    script.main()


def test_arms_and_seeds_are_trained_once_and_tabulated(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, tables = scripts
    monkeypatch.setattr(run, "train_all", run_here)
    file, out = tmp_path / "tiny.toml", tmp_path / "tiny.json"
    file.write_text(FILE)
    options = [str(file), "--out", str(tmp_path / "runs"), "--json", str(out), "--device", "cpu"]
    call(run, monkeypatch, *options, "--seeds", "3")
    rows = json.loads(out.read_text())["rows"]
    assert [(row["arm"], row["seed"], row["state"]) for row in rows] == [("windows", 3, "done"), ("softmax", 3, "done")]
    assert [point["step"] for point in rows[0]["validation"]] == [1, 5]
    assert [look[:2] for look in rows[0]["looks"]] == [[2, 8], [4, 16]]
    assert 0 < rows[0]["alpha"][0]["low"] <= rows[0]["alpha"][0]["mean"] < 0.5
    assert rows[1]["alpha"] == []
    assert 0 <= rows[0]["lengths"]["64"]["accuracy"] <= 1
    rows[0]["elapsed_s"] = 123.0  # what is done is not done again
    out.write_text(json.dumps({"name": "tiny", "rows": rows}))
    call(run, monkeypatch, *options)
    rows = json.loads(out.read_text())["rows"]
    assert [(row["arm"], row["seed"]) for row in rows] == [(a, s) for a in ("windows", "softmax") for s in (3, 4)]
    assert rows[0]["elapsed_s"] == 123.0
    page = tmp_path / "page.md"
    kinds = ("loss", "accuracy", "copying", "lengths", "alpha", "speed")
    asked = [f"tiny {kind}" for kind in kinds] + ["tiny+none loss of ^soft", "none loss"]
    page.write_text("before\n" + "".join(f"<!-- table {each} -->x<!-- end -->\n" for each in asked) + "after\n")
    for _ in range(2):
        call(tables, monkeypatch, str(page), "--results", str(tmp_path))
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert text.count("| softmax |") == 6  # no alpha, and one of the last but one
    assert text.count("| windows |") == 6
    assert "<!-- table none loss -->\n\nNo results of none yet.\n\n<!-- end -->" in text
    assert text.count("No results of none yet.") == 2
    wanted = [row["validation"][-1]["loss"] for row in rows if row["arm"] == "softmax"]
    assert f"{wanted[0]:.4f} / {wanted[1]:.4f}" in text


def run_here(paths: dict[Path, Any], options: Any) -> None:
    for path, config in paths.items():
        train(path, config)


def test_why_a_length_was_refused_is_one_clause(scripts: Any) -> None:
    _, tables = scripts
    refused = (
        "a text of 72 tokens: the table of positions has 40 rows (model.recurrence.table), and a text cannot be longer"
    )
    row = {
        "arm": "a",
        "state": "done",
        "step": 1,
        "steps": 1,
        "validation": [{"accuracy": 1.0}],
        "lengths": {"64": {"refused": refused}},
    }
    assert tables.lengths([row])[1][2] == "a text of 72 tokens: the table of positions has 40 rows"


def test_runs_that_were_stopped_late_count_and_are_told(scripts: Any) -> None:
    _, tables = scripts
    common = {"arm": "a", "params": 7, "sequences": 2, "noise": 8, "steps": 100}
    done = {**common, "state": "done", "step": 40, "validation": [{"accuracy": 1.0}], "looks": [[40, 8, 0.001]]}
    late, early = ({**done, "state": "stopped", "step": step, "looks": []} for step in (75, 49))
    late["validation"] = [{"accuracy": 0.5}]
    (row,) = tables.copying([done, late, early])[1:]
    assert row[:3] == ("a", "7", "2 (to 75%)")
    assert row[3:] == ("100.00% / 50.00%", "100.00% / 50.00%", "80 / 150", "80 (1 of 2)", "80 (1 of 2)")


def test_the_interval_is_students(scripts: Any) -> None:
    _, tables = scripts
    assert tables.mean([11.0, 12.0, 13.0], ".3f") == "12.000 ± 2.484"  # t = 4.303 at 2 degrees, times 1 / sqrt(3)
    assert tables.mean([1.0]) == "1.0000"
    assert tables.mean([0.5, 1.0], ".0%") == "50% / 100%"
    assert tables.mean([0.1, 0.9, 1.0], ".0%") == "10% / 90% / 100%"  # 67% ± 122%
    assert tables.mean([3.0, 3.0, 3.0]) == "3.0000"
    assert tables.mean([None]) == "-"


def test_characters_are_split_as_nanogpt_splits_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    import prepare

    text = "".join(chr(97 + number % 26) for number in range(1000)) + "é"
    prepare.characters(tmp_path / "data", text)
    dataset = TokenDataset.open(tmp_path / "data")
    assert (dataset.vocab_size, dataset.tokens("train"), dataset.tokens("val")) == (28, 902, 103)
    windows = dataset.windows("val", np.array([1]), 101)
    assert dataset.tokenizer.decode(windows[0]) == text[900:]


def test_images_are_grey_by_luma(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    monkeypatch.syspath_prepend(str(ROOT))
    import prepare

    from linscale.data.labelled import Labelled

    data = np.zeros((2, 3, 1024), np.uint8)
    data[0, 0], data[0, 1], data[0, 2], data[1, :, 5] = 100, 200, 50, 255
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        (tmp_path / name).write_bytes(pickle.dumps({"data": data.reshape(2, 3072), "labels": [3, 9]}))
    prepare.cifar(tmp_path / "out.npz", tmp_path)
    images = Labelled.open(tmp_path / "out.npz")
    assert images.sequences["train"].shape == (10, 1024)
    assert set(images.sequences["val"][0]) == {153}  # 0.299 * 100 + 0.587 * 200 + 0.114 * 50
    assert images.sequences["val"][1].nonzero()[0].tolist() == [5]
    assert images.labels["val"].tolist() == [3, 9]
    assert images.vocab_size == 266


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_that_ships_can_be_run(scripts: Any, path: Path) -> None:
    """Every arm is a run, and arms of one experiment differ in name."""
    run, _ = scripts
    experiment = parse(run.Experiment, tomllib.loads(path.read_text()), source=path.name)
    found = list(run.runs_of(experiment, {}))
    assert len({(arm, seed) for arm, seed, _ in found}) == len(found) >= 2
    assert experiment.name == path.stem
