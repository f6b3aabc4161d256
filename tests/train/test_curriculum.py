"""Copying as data, and its curriculum: what is made, when it gets harder, and that a run resumes where it stood."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from linscale.config import UserError, load_toml, parse
from linscale.data.copying import IGNORED, Copying, CopyingConfig
from linscale.distributed import ALONE
from linscale.evaluate.copying import CopyingTask
from linscale.models import Recurrence, build_model
from linscale.models.count import count_parameters
from linscale.run_folder import latest_records
from linscale.train.config import RunConfig
from linscale.train.curriculum import Course, Curriculum, Stage
from linscale.train.trainer import train


def run_config(**changes: Any) -> RunConfig:
    """20 steps of 4 sequences with 6 tokens of payload and 32 of noise, and looks every 4 that find all easy."""
    task = {"kind": "copy", "noise": 32, "payload": 6, "symbols": 8, **changes.pop("task", {})}
    model = {"arch": "recurrent_transformer", "vocab_size": 8, "d_model": 16, "n_layers": 1, "head_dim": 8, "d_ff": 16}
    length = 2 * task["payload"] + task["noise"]
    recipe = {"tokens": 80 * length, "batch_tokens": 4 * length, "length": length, "checkpoints": 2, "device": "cpu",
              "validation_tokens": 8 * length, "lr": 1e-2, "seed": 3}  # fmt: skip
    course = {"start": 8, "threshold": 10.0, "look_every": 4, "sequences": 8}
    values = {"name": "copy", "model": {**model, "recurrence": {"block": 4}}, "data": {"task": task}}
    recipe |= {"curriculum": course, **changes}
    return parse(RunConfig, {**values, "train": {key: value for key, value in recipe.items() if value is not None}})


@pytest.mark.parametrize("kind", ["copy", "selective"])
def test_sequences_are_what_they_say(kind: Any) -> None:
    task = CopyingConfig(kind=kind, noise=40, payload=5, symbols=7)
    data = Copying(task, seed=1)
    batch = data.batch(3, 8, 20)
    assert batch.tokens.shape == batch.targets.shape == (8, 30)
    assert task.length() == 50
    payload = batch.targets[:, -5:]
    assert (batch.targets[:, :-5] == IGNORED).all()
    assert ((payload >= 1) & (payload <= 5)).all()
    assert set(payload.flatten().tolist()) == {1, 2, 3, 4, 5}
    assert (batch.tokens[:, -5:] == 6).all()
    for row, wanted in zip(batch.tokens[:, :25], payload, strict=True):
        assert row[row != 0].tolist() == wanted.tolist()
        if kind == "copy":
            assert row[:5].tolist() == wanted.tolist()
    places = [tuple(row.nonzero()[:, 0].tolist()) for row in batch.tokens[:, :25]]
    assert len(set(places)) == (1 if kind == "copy" else 8)
    assert torch.equal(data.batch(3, 8, 20).tokens, batch.tokens)
    others = (data.batch(4, 8, 20), data.batch(3, 8, 20, "val"), replace(data, seed=2).batch(3, 8, 20))
    assert not any(torch.equal(other.targets, batch.targets) for other in others)
    halves = [replace(data, rank=rank, world=2).batch(3, 8, 20).tokens for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), batch.tokens)


def test_a_model_that_copies_scores_one() -> None:
    class Copier:
        """Puts the payload of a copying task, and a wrong token for every second one in odd rows."""

        training, config = False, build_model(run_config().model).config

        def parameters(self) -> Any:
            return iter([torch.zeros(1)])

        def eval(self) -> None: ...
        def train(self, on: bool) -> None: ...
        def read(self, tokens: torch.Tensor) -> tuple[torch.Tensor, None]:
            answers = torch.nn.functional.one_hot(tokens[:, :6], 8).float() * 50
            answers[1::2, ::2] = 0
            return torch.cat([torch.zeros(len(tokens), tokens.shape[1] - 6, 8), answers], 1), None

        def logits(self, x: torch.Tensor) -> torch.Tensor:
            return x

    data = Copying(CopyingConfig(kind="copy", noise=32, payload=6, symbols=8), seed=0)
    loss, accuracy = CopyingTask(data, 16, 10).run(Copier())  # type: ignore[arg-type]
    assert accuracy.value == 0.75  # zeros are most probable where nothing is: none of the payload
    assert loss.value == pytest.approx(0.25 * torch.log(torch.tensor(8.0)).item(), rel=1e-5)
    assert loss.count == 60


def test_it_doubles_below_the_threshold_and_the_rate_follows(tmp_path: Path) -> None:
    course = Course(Curriculum(start=8, threshold=0.3, look_every=10), 40, tmp_path, ALONE)
    losses = {10: 0.5, 20: 0.29, 30: 0.1, 40: 0.3, 50: 0.2, 60: 0.5, 70: 0.05, 80: 0.4}
    asked = []

    def loss(step: int, difficulty: int) -> float:
        asked.append((step, difficulty))
        return losses[step]

    stages = [course.stage(step, loss) for step in range(0, 90, 10)]
    assert [stage.difficulty for stage in stages] == [8, 8, 16, 32, 32, 40, 40, 40, 40]
    assert asked == [(10, 8), (20, 8), (30, 16), (40, 32), (50, 32), (60, 40), (70, 40), (80, 40)]
    follow = [1 - 2.718281828459045**-loss for loss in (0.5, 0.05, 0.05)]
    assert [stage.follow for stage in stages] == pytest.approx([1.0] * 6 + follow)
    assert course.rate(Stage(8)) == 0.9
    assert course.rate(stages[-1]) == pytest.approx(0.5 * follow[-1])
    assert course.stage(84, loss) == stages[-1]  # nothing is asked again
    assert len(asked) == 8
    assert course.steps(1, 25) == [range(1, 11), range(11, 21), range(21, 26)]
    assert course.steps(11, 20) == [range(11, 21)]
    assert course.steps(15, 31) == [range(15, 21), range(21, 31), range(31, 32)]


@pytest.mark.slow
def test_a_run_goes_through_its_stages_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    config = run_config()
    assert train(tmp_path / "whole", config)["state"] == "done"
    looks = latest_records(tmp_path / "whole" / "curriculum.jsonl", ("step",))
    assert [(look["step"], look["difficulty"]) for look in looks] == [(4, 8), (8, 16), (12, 32), (16, 32)]
    records = latest_records(tmp_path / "whole" / "metrics.jsonl", ("step", "metric"))
    rates = {record["step"]: record["value"] for record in records if record["metric"] == "learning_rate"}
    assert [rates[step] / 1e-2 for step in (1, 4, 5, 8, 9)] == pytest.approx([0.875, 0.875, 0.75, 0.75, 0.5])
    assert rates[13] < rates[12]
    steps = iter((3, 4, 9, 14))
    for last in steps:  # inside a stage, at a look, and behind it
        seen: list[int] = []
        train(tmp_path / "parts", config, on_step=lambda status, seen=seen: seen.append(status["step"]),
              stop=lambda seen=seen, last=last: _reached(tmp_path / "parts", last))  # fmt: skip
    train(tmp_path / "parts", config)
    whole, parts = (tmp_path / name / "checkpoints" / "step_00000020" for name in ("whole", "parts"))
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert latest_records(tmp_path / "parts" / "curriculum.jsonl", ("step",)) == looks
    values = [json.loads(line) for line in (tmp_path / "whole" / "evaluations.jsonl").read_text().splitlines()]
    assert {value["metric"] for value in values} == {"loss", "accuracy"}


CALLS: dict[Path, int] = {}


def _reached(run: Path, last: int) -> bool:
    """Whether this call is the one behind step `last`: it is asked once a step."""
    CALLS[run] = CALLS.get(run, 0) + 1
    return CALLS[run] >= last


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": {"noise": 4}}, "data.task.noise = 4: less than train.curriculum.start = 8"),
        ({"length": 22, "batch_tokens": 88}, "train.length = 22: expected the 44 tokens of a sequence of data.task"),
        ({"task": {"symbols": 9}}, "model.vocab_size = 8: the task has 9 symbols"),
        ({"documents": True}, "data.task: its sequences are no documents"),
        ({"task": {"kind": "sort"}}, "data.task.kind = 'sort'"),
        ({"curriculum": {"start": 0}}, "train.curriculum.start = 0"),
    ],
)
def test_what_a_run_on_a_task_refuses(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        run_config(**changes)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_recipe_that_ships_is_the_published_model_but_for_its_form() -> None:
    config = load_toml(Path(__file__).parents[2] / "configs" / "train" / "copying.toml", RunConfig)
    assert (config.train.steps, config.train.sequences) == (20_000, 64)
    published = {"alpha": 0.5, "alpha_form": "fixed", "normed": False, "positions": "table", "table": 4128}
    published |= {"closing": "published", "mlp": "relu", "norm": "layer", "block": 32}
    model = replace(config.model, recurrence=Recurrence(**published), norm_eps=1e-5)
    assert count_parameters(model).total == 508_704


def test_text_has_no_curriculum() -> None:
    values = {"name": "x", "model": {"arch": "tnl", "d_model": 128, "n_layers": 1}, "data": {"path": "data"}}
    recipe = {"tokens": 64, "batch_tokens": 64, "length": 32, "validation_tokens": 32, "curriculum": {}}
    with pytest.raises(UserError, match=r"train.curriculum: text has no difficulty"):
        parse(RunConfig, {**values, "train": recipe})
    for data in ({}, {"path": "data", "task": {"kind": "copy"}}):
        with pytest.raises(UserError, match=r"data needs one of path, .* task, and labelled"):
            parse(RunConfig, {**values, "data": data, "train": {**recipe, "curriculum": None}})


def test_training_ends_where_all_is_mastered(tmp_path: Path) -> None:
    """Looks at 4, 8 and 12 double 8 to 32 and find full difficulty below 9 at 12; the run is done, and stays so."""
    course = {"start": 8, "threshold": 10.0, "look_every": 4, "sequences": 8, "stop_below": 9.0}
    config = run_config(curriculum=course)
    status = train(tmp_path / "run", config)
    assert (status["state"], status["step"], status["steps"]) == ("done", 12, 20)
    records = latest_records(tmp_path / "run" / "evaluations.jsonl", keys=("step", "metric"))
    assert max(record["step"] for record in records) == 12
    steps = {record["step"] for record in latest_records(tmp_path / "run" / "metrics.jsonl", ("step", "metric"))}
    assert steps == set(range(1, 13))
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert train(tmp_path / "run", config)["step"] == 12
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
