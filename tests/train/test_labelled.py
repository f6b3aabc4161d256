"""Sequences with classes: how they are read, what is measured, and that a model learns to tell them apart."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from linscale.config import UserError, parse
from linscale.data.labelled import IGNORED, Labelled, LabelledReader
from linscale.evaluate.classes import ClassesTask
from linscale.models import build_model
from linscale.run_folder import latest_records
from linscale.train.config import RunConfig
from linscale.train.trainer import train


def write(path: Any, count: int = 40, **changes: Any) -> Any:
    """`count` + 12 sequences of 10 tokens, of class 0 if the first token is below 4, else of 1."""
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {"symbols": np.array(8), "classes": np.array(["low", "high"])}
    for split, rows in (("train", count), ("val", 12)):
        arrays[split] = random.integers(0, 8, (rows, 10)).astype(np.uint8)
        arrays[f"{split}_labels"] = (arrays[split][:, 0] >= 4).astype(np.int64)
    arrays |= changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def run_config(path: Any, **changes: Any) -> RunConfig:
    model = {"arch": "llama", "vocab_size": 10, "d_model": 16, "n_layers": 1, "head_dim": 8, "d_ff": 16}
    recipe = {"tokens": 12_000, "batch_tokens": 80, "length": 10, "checkpoints": 2, "device": "cpu", "lr": 1e-2,
              "validation_tokens": 1000, "weight_decay": 0.0, **changes}  # fmt: skip
    return parse(RunConfig, {"name": "r", "model": model, "data": {"labelled": str(path)}, "train": recipe})


def test_batches_are_epochs_of_the_set_and_ranks_share_them(tmp_path: Any) -> None:
    data = Labelled.open(write(tmp_path / "set.npz"))
    reader = LabelledReader(data, 8, seed=5)
    for epoch in range(2):
        numbers = np.concatenate([reader.windows_of(step) for step in range(5 * epoch, 5 * epoch + 5)])
        assert sorted(numbers) == list(range(40))
    assert not np.array_equal(reader.windows_of(0), reader.windows_of(5))
    batch = reader.batch(3)
    assert (batch.targets[:, :-1] == IGNORED).all()
    assert torch.equal(batch.targets[:, -1] == 9, batch.tokens[:, 0] >= 4)
    halves = [LabelledReader(data.shared_by(rank, 2), 8, seed=5).batch(3).tokens for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), batch.tokens)
    assert data.fingerprint != replace(data, symbols=9).fingerprint


@pytest.mark.slow
def test_a_model_learns_the_classes_and_is_measured_on_them_alone(tmp_path: Any) -> None:
    config = run_config(write(tmp_path / "set.npz", 400))
    train(tmp_path / "run", config)
    records = latest_records(tmp_path / "run" / "evaluations.jsonl", keys=("step", "metric"))
    found = {record["metric"]: record["value"] for record in records if record["step"] == 150}
    assert found["accuracy"] > 0.9
    assert found["loss"] < 0.3
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert settings["data"]["labelled"].endswith("set.npz")


def test_losses_are_those_of_a_softmax_over_the_classes(tmp_path: Any) -> None:
    data = Labelled.open(write(tmp_path / "set.npz"))
    model = build_model(run_config(tmp_path / "set.npz").model, seed=1)
    loss, accuracy = ClassesTask(data, 7).run(model)
    tokens, labels = torch.from_numpy(data.sequences["val"][:7].astype(int)), torch.from_numpy(data.labels["val"][:7])
    logits = model(tokens).logits[:, -1, 8:10]
    assert loss.value == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert accuracy.value == pytest.approx((logits.argmax(-1) == labels).double().mean().item())
    assert loss.count == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val": None}, "no array 'val'"),
        ({"train_labels": np.zeros(3, int)}, "expected (N, T), (N,)"),
        ({"symbols": np.array(7)}, "expected integers from 0 to 6"),
        ({"val_labels": np.full(12, 2)}, "expected integers from 0 to 1"),
    ],
)
def test_a_file_that_is_no_set_is_refused(tmp_path: Any, changes: Any, message: str) -> None:
    with pytest.raises(UserError) as raised:
        Labelled.open(write(tmp_path / "set.npz", **changes))
    assert message in str(raised.value)


def test_what_does_not_fit_is_refused(tmp_path: Any) -> None:
    path = write(tmp_path / "set.npz")
    with pytest.raises(UserError, match="have 10 tokens"):
        train(tmp_path / "run", run_config(path, length=20))
    with pytest.raises(UserError, match="documents = false"):
        run_config(path, documents=True)
    values = {"name": "r", "model": {"arch": "llama", "d_model": 16, "n_layers": 1, "head_dim": 8}}
    with pytest.raises(UserError, match="data needs one of path"):
        parse(RunConfig, {**values, "data": {}, "train": {"tokens": 80, "batch_tokens": 80, "length": 10}})
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(UserError, match=r"cannot be read as \.npz"):
        Labelled.open(tmp_path / "text.npz")
