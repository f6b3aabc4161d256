"""A corpus of a few words, and runs on it that take a moment."""

import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from linscale.config import parse
from linscale.data.prepare import PrepareOptions, prepare
from linscale.train import trainer
from linscale.train.config import RunConfig


@pytest.fixture(scope="session", autouse=True)
def measured_once() -> Iterator[None]:
    """What the machine can do, which every run measures first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "matrix_rate", functools.cache(trainer.matrix_rate))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    words = random.Random(0).choices(["the", "cat", "sat", "on", "a", "mat", "and", "ran"], k=6000)
    (folder / "text.txt").write_text("\n".join(" ".join(words[k : k + 8]) for k in range(0, len(words), 8)) + "\n")
    options = PrepareOptions(document_bytes=300, val_fraction=0.1, workers=1)
    prepare([str(folder / "text.txt")], tokenizer="byte", out=folder / "data", options=options)
    return folder / "data"


Make = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def make(data: Path) -> Make:
    """A function that makes the config of a run of 10 steps with checkpoints at 2, 4, ..., 10."""

    def config(*, model: dict[str, Any] | None = None, path: Path = data, **changes: Any) -> RunConfig:
        shape = {
            "arch": "tnl",
            "vocab_size": 257,
            "d_model": 32,
            "n_layers": 2,
            "head_dim": 16,
            "d_ff": 64,
            **(model or {}),
        }
        recipe = {"tokens": 2560, "batch_tokens": 256, "length": 32, "lr": 3e-3, "warmup_tokens": 512, "device": "cpu"}
        recipe |= {"checkpoints": 5, "checkpoint_spacing": "linear", "validation_tokens": 256, "log_every": 3}
        values = {
            "name": "tiny",
            "model": {**shape, **(model or {})},
            "data": {"path": str(path)},
            "train": {**recipe, **changes},
        }
        return parse(RunConfig, values)

    return config
