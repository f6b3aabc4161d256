"""The step as one graph: recorded once for a shape, and replayed on new batches. A stand-in records on a CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from linscale.config import UserError
from linscale.data.loader import Batch
from linscale.distributed import ALONE
from linscale.run_folder import latest_records
from linscale.train.capture import Captured, captures
from linscale.train.config import TrainConfig
from linscale.train.trainer import train

from .test_curriculum import run_config


class Recorder:
    """Runs a function once, as a graph is recorded, and again at each replay, into the memory of that first time."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.recorded, self.replayed = model, 0, 0

    def __call__(self, function: Callable[[], torch.Tensor]) -> tuple[Callable[[], Any], torch.Tensor]:
        self.recorded += 1
        result = function()
        places = [p.grad for p in self.model.parameters()]

        def replay() -> None:
            self.replayed += 1
            result.copy_(function())
            for place, parameter in zip(places, self.model.parameters(), strict=True):
                if place is not None:
                    assert parameter.grad is not None
                    place.copy_(parameter.grad)
                    parameter.grad = None

        return replay, result


def test_a_recording_that_fails_is_tried_once_more() -> None:
    model = nn.Linear(3, 1)
    recorder = Recorder(model)
    failures = [RuntimeError("operation failed due to a previous error during capture")]

    def flaky(function: Callable[[], torch.Tensor]) -> tuple[Callable[[], Any], torch.Tensor]:
        if failures:
            raise failures.pop()
        return recorder(function)

    def loss_of(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (model(tokens) - targets).square().mean()

    batch = Batch(torch.randn(2, 3), torch.randn(2, 1), None)
    assert torch.equal(Captured(model, loss_of, flaky)(batch), loss_of(batch.tokens, batch.targets))
    for given in ([RuntimeError("again"), RuntimeError("first")], [torch.OutOfMemoryError("too large")]):
        failures[:] = given
        with pytest.raises(RuntimeError, match=r"again|too large"):
            Captured(model, loss_of, flaky)(batch)
        assert not failures


def test_a_recorded_step_is_that_of_each_batch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 11))
    model.register_parameter("unused", nn.Parameter(torch.zeros(2)))

    def loss_of(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())

    recorder = Recorder(model)
    captured = Captured(model, loss_of, recorder)
    for number, length in enumerate((5, 5, 5, 8, 8)):
        batch = Batch(torch.randint(11, (3, length)), torch.randint(11, (3, length)), None)
        loss = captured(batch).clone()
        found = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        wanted = loss_of(batch.tokens, batch.targets)
        wanted.backward()
        assert torch.equal(loss, wanted.detach()), number
        for gradient, parameter in zip(found, model.parameters(), strict=True):
            assert (gradient is None) == (parameter.grad is None)
            assert gradient is None or torch.equal(gradient, parameter.grad)
        model.zero_grad()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)  # an optimizer's step between two of them
    assert (recorder.recorded, recorder.replayed) == (2, 5)


def test_where_there_is_no_graph_is_said() -> None:
    recipe = {"tokens": 64, "batch_tokens": 64, "length": 32, "validation_tokens": 32}
    assert not captures(TrainConfig(**recipe), ALONE, "cpu", 2)
    on, auto = (TrainConfig(**recipe, capture=capture) for capture in ("on", "auto"))
    assert captures(on, ALONE, "cuda", 1)
    assert captures(auto, ALONE, "cuda", 1)
    assert not captures(auto, ALONE, "cpu", 1)
    assert not captures(auto, ALONE, "cuda", 2)
    with pytest.raises(UserError, match="the device is 'cpu'"):
        captures(on, ALONE, "cpu", 1)
    with pytest.raises(UserError, match="a step is 2 passes"):
        captures(on, ALONE, "cuda", 2)
    recomputed = TrainConfig(**recipe, capture="on", activation_checkpointing="full", dropout=0.1)
    with pytest.raises(UserError, match="drop out the same again"):
        captures(recomputed, ALONE, "cuda", 1)
    with pytest.raises(UserError, match=r"train\.documents"):
        captures(TrainConfig(**recipe, capture="on", documents=True), ALONE, "cuda", 1)


@pytest.mark.slow
def test_a_run_with_a_curriculum_is_the_same_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every length of it is recorded once; losses, and so weights, are those of a run that is not captured."""
    recorders: list[Recorder] = []

    def captured(model: nn.Module, loss: Any) -> Captured:
        recorders.append(Recorder(model))
        return Captured(model, loss, recorders[-1])

    monkeypatch.setattr("linscale.train.trainer.Captured", captured)
    monkeypatch.setattr("linscale.train.trainer.captures", lambda train, *given: train.capture == "on")
    found = []
    for capture in ("off", "on"):
        train(tmp_path / capture, run_config(capture=capture))
        records = latest_records(tmp_path / capture / "metrics.jsonl", ("step", "metric"))
        found.append([record["value"] for record in records if record["metric"] in ("loss", "grad_norm")])
    assert found[0] == found[1]
    assert len(found[0]) == 2 * recorders[0].replayed == 40
    assert recorders[0].recorded == 3  # noise of 8, 16 and 32
