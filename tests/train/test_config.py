"""The recipe: what is derived from it, where checkpoints lie, and what is refused."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from linscale.config import UserError, load_toml, parse
from linscale.train.config import RunConfig, TrainConfig, checkpoint_steps

RECIPE: dict[str, Any] = {"tokens": 100_000, "batch_tokens": 1000, "length": 50}


def recipe(**changes: Any) -> TrainConfig:
    return parse(TrainConfig, {**RECIPE, **changes}, source="train")


def test_steps_and_accumulation_follow_from_tokens() -> None:
    train = recipe(tokens=100_999, micro_batch=4, warmup_tokens=1001)
    assert (train.steps, train.sequences, train.grad_accum_steps, train.warmup_steps) == (100, 20, 5, 2)
    assert recipe().grad_accum_steps == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_tokens": 1020}, ["batch_tokens = 1020", "multiple of length = 50"]),
        ({"micro_batch": 3}, ["micro_batch = 3", "divide", "20"]),
        ({"tokens": 999}, ["tokens = 999", "at least batch_tokens = 1000"]),
        ({"warmup_tokens": 100_000}, ["warmup_tokens = 100000", "fewer than tokens = 100000"]),
        ({"schedule": "wsd", "decay_fraction": 0.9, "warmup_tokens": 20_000}, ["decay_fraction = 0.9", "overlap"]),
        ({"validation_tokens": 49}, ["validation_tokens = 49", "at least length = 50"]),
        ({"length": 0}, ["length = 0", "greater than 0"]),
        ({"lr": -1.0}, ["lr = -1.0", "greater than 0"]),
        ({"betas": [0.9, 1.0]}, ["betas.1 = 1.0", "less than 1"]),
        ({"schedule": "linear"}, ["schedule = 'linear'", "constant", "cosine", "wsd"]),
        ({"learning_rate": 1.0}, ["unknown key 'learning_rate'"]),
    ],
)
def test_bad_values_are_refused_in_one_line(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        recipe(**changes)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("spacing", ["linear", "log"])
@pytest.mark.parametrize("steps", [1, 2, 7, 100, 76_293])
@pytest.mark.parametrize("count", [1, 2, 20, 57])
def test_checkpoints_ascend_to_the_last_step(spacing: str, steps: int, count: int) -> None:
    train = recipe(tokens=1000 * steps, checkpoints=count, checkpoint_spacing=spacing)
    chosen = checkpoint_steps(train)
    assert chosen[-1] == steps
    assert chosen[0] >= 1
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= count


def test_log_spacing_has_equal_ratios_and_linear_spacing_equal_distances() -> None:
    logarithmic = checkpoint_steps(recipe(tokens=100_000_000, checkpoints=20))
    ratios = [b / a for a, b in pairwise(logarithmic)]
    assert len(logarithmic) == 20
    assert max(ratios) / min(ratios) == pytest.approx(1.0, rel=1e-3)
    assert logarithmic[0] == 2000
    linear = checkpoint_steps(recipe(tokens=100_000_000, checkpoints=20, checkpoint_spacing="linear"))
    assert linear == list(range(5000, 100_001, 5000))


def test_the_example_is_a_valid_config() -> None:
    config = load_toml(Path(__file__).parents[2] / "configs" / "train" / "small.toml", RunConfig)
    assert config.model.arch == "hgrn2"
    assert config.train.steps > 100
