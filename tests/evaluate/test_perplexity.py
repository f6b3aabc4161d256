"""Validation loss against planted values, and the records of a run's checkpoints."""

import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from linscale import checkpoint
from linscale.config import UserError, parse
from linscale.data.prepare import PrepareOptions, prepare
from linscale.data.shards import TokenDataset
from linscale.evaluate.perplexity import Score, Validation, validation_loss
from linscale.evaluate.records import Evaluations
from linscale.evaluate.run import evaluate_validation
from linscale.models import ModelConfig, build_model
from linscale.run_folder import latest_records, read_records, write_json


def corpus(folder: Path, seed: int) -> Path:
    chance = random.Random(seed)
    lines = ["".join(chance.choices("abcdefgh ", k=59)) for _ in range(100)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    options = PrepareOptions(document_bytes=120, val_fraction=0.3, workers=1)
    prepare([str(folder / "text.txt")], tokenizer="byte", out=folder / "data", options=options)
    return folder / "data"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    return TokenDataset.open(corpus(tmp_path_factory.mktemp("corpus"), 0))


class Planted(nn.Module):
    """A model whose loss at a token is the target's id over 100, and that remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.bounds: list[torch.Tensor | None] = []

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor, cu_seqlens: torch.Tensor | None = None) -> Any:
        assert not self.training
        self.bounds.append(cu_seqlens)
        return SimpleNamespace(loss=targets.float() / 100)


def score(model: Any, dataset: TokenDataset, **changes: Any) -> Score:
    return validation_loss(model, dataset, **{"length": 32, "sequences": 4, "max_tokens": 320, **changes})


def test_a_planted_loss_is_measured_with_its_standard_error(dataset: TokenDataset) -> None:
    targets = dataset.read("val", 1, 321).reshape(10, 32) / 100
    model = Planted().train()
    result = score(model, dataset)
    means = targets.mean(1)
    assert result.count == 320
    assert result.loss == pytest.approx(targets.mean(), rel=1e-6)
    assert result.se == pytest.approx(np.std(means, ddof=1) / math.sqrt(10), rel=1e-5)
    assert result.bits_per_byte == pytest.approx(result.loss / math.log(2) / dataset.bytes_per_token("val"))
    assert result.bits_per_byte_se == pytest.approx(result.se / result.loss * result.bits_per_byte)
    assert model.training


def test_a_single_window_has_no_standard_error(dataset: TokenDataset) -> None:
    result = score(Planted(), dataset, max_tokens=32)
    assert (result.count, result.se, result.bits_per_byte_se) == (32, None, None)


def test_packed_windows_are_scored_by_window_too(dataset: TokenDataset) -> None:
    model = Planted()
    packed = score(model, dataset, documents=True)
    assert packed == score(Planted(), dataset)
    assert sum(len(bounds) - 1 for bounds in model.bounds if bounds is not None) > 10  # windows and document starts


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("arch", ["llama", "tnl", "hgrn2", "cosformer2"])
def test_the_batch_size_does_not_matter(dataset: TokenDataset, arch: str, documents: bool) -> None:
    shape = {"arch": arch, "vocab_size": 257, "d_model": 32, "n_layers": 2, "head_dim": 16, "d_ff": 64}
    model = build_model(parse(ModelConfig, shape))
    model.init_weights(0)
    expected = score(model, dataset, sequences=1, documents=documents)
    for sequences in (3, 10, 64):
        result = score(model, dataset, sequences=sequences, documents=documents)
        assert result.count == expected.count == 320
        assert result.loss == pytest.approx(expected.loss, rel=1e-6)
        assert result.se == pytest.approx(expected.se, rel=1e-3)


def make_run(run: Path, data: Path, steps: tuple[int, ...] = (1, 2, 3)) -> dict[str, Any]:
    """A run folder as the trainer leaves it, without evaluations."""
    shape = {"arch": "hgrn2", "vocab_size": 257, "d_model": 32, "n_layers": 2, "head_dim": 16, "d_ff": 64}
    train = {"length": 32, "batch_tokens": 128, "micro_batch": None, "validation_tokens": 160, "documents": False}
    source = {"path": str(data), "fingerprint": TokenDataset.open(data).fingerprint}
    settings = {"run": "tiny", "model": shape, "data": source, "train": train, "precision": "fp32", "device": "cpu"}
    write_json(run / "config.json", {**settings, "flops_per_token": 10.0})
    TokenDataset.open(data).tokenizer.save(run)
    for step in steps:
        model = build_model(parse(ModelConfig, shape))
        model.init_weights(step)
        checkpoint.save(run, step, model, torch.optim.AdamW(model.parameters()), {"tokens": 128 * step})
    return {**settings, "flops_per_token": 10.0}


def test_a_run_is_evaluated_where_records_are_missing(tmp_path: Path) -> None:
    data = corpus(tmp_path, 0)
    settings = make_run(tmp_path / "run", data)
    assert evaluate_validation(tmp_path / "run") == 3
    path = tmp_path / "run" / "evaluations.jsonl"
    records = list(read_records(path))
    assert [(record["step"], record["metric"]) for record in records] == [
        (step, metric) for step in (1, 2, 3) for metric in ("loss", "bits_per_byte")
    ]
    assert all(record["flops"] == 10 * record["tokens"] == 1280 * record["step"] for record in records)
    dataset = TokenDataset.open(data)
    model = checkpoint.load_model(tmp_path / "run" / "checkpoints" / "step_00000002")
    assert records[2]["value"] == pytest.approx(score(model, dataset, max_tokens=160).loss, rel=1e-6)
    assert dataset.fingerprint in records[0]["task_version"]
    assert evaluate_validation(tmp_path / "run") == 0
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3] + lines[4:5]) + lines[5][:30])  # step 2 lost one metric, step 3 half of one
    task = Validation(dataset, settings)
    assert Evaluations(tmp_path / "run", settings).missing([1, 2, 3], task, dataset.tokenizer) == [2, 3]
    assert evaluate_validation(tmp_path / "run") == 2
    values = {(record["step"], record["metric"]): record["value"] for record in latest_records(path)}
    assert values == {(record["step"], record["metric"]): record["value"] for record in records}


def test_a_run_is_evaluated_on_its_data_wherever_that_is_now(tmp_path: Path) -> None:
    data = corpus(tmp_path, 0)
    make_run(tmp_path / "run", data, steps=(1,))
    moved = data.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="not a prepared corpus"):
        evaluate_validation(tmp_path / "run")
    assert evaluate_validation(tmp_path / "run", TokenDataset.open(moved)) == 1
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"holds data \w+, but .* was trained on \w+"):
        evaluate_validation(tmp_path / "run", TokenDataset.open(corpus(tmp_path / "other", 1)))


def test_changed_data_and_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    settings = make_run(tmp_path / "run", corpus(tmp_path, 0), steps=(1, 2))
    (tmp_path / "other").mkdir()
    write_json(
        tmp_path / "run" / "config.json",
        {**settings, "data": {**settings["data"], "path": str(corpus(tmp_path / "other", 1))}, "flops_per_token": 1.0},
    )
    with pytest.raises(UserError, match=r"holds data \w+, but .* was trained on \w+"):
        evaluate_validation(tmp_path / "run")
    write_json(tmp_path / "run" / "config.json", {**settings, "flops_per_token": 1.0})
    (tmp_path / "run" / "checkpoints" / "step_00000002" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="step_00000002"):
        evaluate_validation(tmp_path / "run")
    assert {record["step"] for record in read_records(tmp_path / "run" / "evaluations.jsonl")} == {1}
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        evaluate_validation(tmp_path)
