"""The first tensor that is not finite is found wherever one is planted."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from linscale.config import parse
from linscale.models import LanguageModel, ModelConfig, build_model
from linscale.train.diagnose import first_bad_tensor

Plant = Callable[[LanguageModel], Any]


def in_a_weight(model: LanguageModel) -> None:
    with torch.no_grad():
        dict(model.named_parameters())["blocks.1.mixer_norm.weight"][3] = torch.nan


def in_an_output(model: LanguageModel) -> None:
    layer = dict(model.named_modules())["blocks.0.mlp_norm"]
    layer.register_forward_hook(lambda module, inputs, output: output / 0)


def in_a_gradient(model: LanguageModel) -> None:
    layer = dict(model.named_modules())["blocks.0.mlp_norm"]

    def hook(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        output = output * 1
        output.register_hook(lambda gradient: gradient * torch.inf)
        return output

    layer.register_forward_hook(hook)


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (lambda model: None, None),
        (in_a_weight, "weight blocks.1.mixer_norm.weight"),
        (in_an_output, "output of blocks.0.mlp_norm"),
        (in_a_gradient, "gradient of blocks.0.mlp_norm.weight"),  # those before it in the model are not finite either
    ],
)
def test_the_first_is_named(plant: Plant, found: str | None) -> None:
    shape = {"arch": "llama", "vocab_size": 257, "d_model": 32, "n_layers": 2, "head_dim": 16, "d_ff": 64}
    model = build_model(parse(ModelConfig, shape), seed=0)
    plant(model)
    tokens = torch.arange(2 * 8).view(2, 8)
    assert first_bad_tensor(model, lambda: model(tokens, targets=tokens).loss.mean()) == found
    assert all(parameter.grad is None for parameter in model.parameters())
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    assert hooks == (plant in (in_an_output, in_a_gradient))


def test_a_loss_that_is_not_finite_comes_after_the_outputs() -> None:
    shape = {"arch": "tnl", "vocab_size": 257, "d_model": 32, "n_layers": 1, "head_dim": 16, "d_ff": 64}
    model = build_model(parse(ModelConfig, shape), seed=0)
    tokens = torch.arange(8).view(1, 8)
    assert first_bad_tensor(model, lambda: model(tokens, targets=tokens).loss.mean() * torch.inf) == "loss"
