"""Parameter groups, learning rate and clipping against what they promise."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from linscale.config import parse
from linscale.models import LanguageModel, ModelConfig, build_model
from linscale.train.config import TrainConfig
from linscale.train.optim import (
    build_optimizer,
    clip_gradient,
    learning_rate,
    parameter_groups,
    set_learning_rate,
    skip_unless,
)

ARCHITECTURES = ["llama", "tnl", "hgrn2", "cosformer2", "recurrent_transformer", "linearized"]


def tiny(arch: str) -> LanguageModel:
    shape = {"arch": arch, "vocab_size": 257, "d_model": 32, "n_layers": 2, "head_dim": 16, "d_ff": 64}
    model = build_model(parse(ModelConfig, shape))
    model.init_weights(0)
    return model


def recipe(**changes: Any) -> TrainConfig:
    return parse(TrainConfig, {"tokens": 100_000, "batch_tokens": 1000, "length": 50, **changes})


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_groups_cover_the_model_once_and_decay_matrices_only(arch: str) -> None:
    model = tiny(arch)
    decayed, others = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    covered = [names[id(parameter)] for group in (decayed, others) for parameter in group["params"]]
    assert sorted(covered) == sorted(names.values())
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.dim() == 2 for parameter in decayed["params"])
    rest = {names[id(parameter)] for parameter in others["params"]}
    assert not any("_proj" in name or name.startswith(("embedding", "head")) for name in rest), rest


def test_filters_that_begin_as_the_identity_are_not_drawn_away_from_it() -> None:
    shape = {
        "arch": "linearized",
        "vocab_size": 257,
        "d_model": 32,
        "n_layers": 2,
        "head_dim": 16,
        "linear": {"conv": 4},
    }
    model = build_model(parse(ModelConfig, shape))
    filters = {id(parameter) for name, parameter in model.named_parameters() if name.endswith("_conv.weight")}
    assert len(filters) == 6
    assert filters <= {id(parameter) for parameter in parameter_groups(model, 0.1)[1]["params"]}


def test_weight_decay_is_decoupled_from_the_gradient() -> None:
    model = tiny("hgrn2")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, recipe(lr=0.5, weight_decay=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    for name, parameter in model.named_parameters():
        factor = 1 - 0.5 * 0.1 if id(parameter) in decayed else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_a_skipped_step_leaves_everything_as_it_is_and_others_keep_their_bits() -> None:
    models = {name: tiny("tnl") for name in ("guarded", "plain")}
    optimizers = {name: build_optimizer(model, recipe(lr=0.01)) for name, model in models.items()}

    def step(name: str, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in models[name].parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizers[name].step()

    def state(name: str) -> list[torch.Tensor]:
        tensors = [tensor for entry in optimizers[name].state.values() for tensor in entry.values()]
        return [tensor.detach().clone() for tensor in (*models[name].parameters(), *tensors)]

    for seed in range(3):
        skip_unless(optimizers["guarded"], torch.tensor(True))
        step("guarded", seed)
        step("plain", seed)
    before = state("guarded")
    assert all(map(torch.equal, before, state("plain")))
    skip_unless(optimizers["guarded"], torch.tensor(False))
    step("guarded", 99)
    assert all(map(torch.equal, before, state("guarded")))
    skip_unless(optimizers["guarded"], torch.tensor(True))
    step("guarded", 3)
    step("plain", 3)
    assert all(map(torch.equal, state("guarded"), state("plain")))


def test_constant_rate_after_linear_warm_up() -> None:
    train = recipe(lr=1.0, warmup_tokens=4000)
    assert [learning_rate(train, step) for step in (1, 2, 3, 4, 5, 100)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert learning_rate(recipe(lr=1.0), 1) == 1.0


def test_cosine_falls_from_the_peak_through_the_mean_to_the_minimum() -> None:
    train = recipe(lr=2.0, schedule="cosine", warmup_tokens=20_000, min_lr_ratio=0.1)
    rates = [learning_rate(train, step) for step in range(1, 101)]
    assert rates[19] == pytest.approx(2.0)
    assert rates[59] == pytest.approx(1.1)
    assert rates[99] == pytest.approx(0.2)
    assert all(a > b for a, b in pairwise(rates[19:]))


def test_wsd_is_constant_and_then_linear() -> None:
    train = recipe(lr=1.0, schedule="wsd", warmup_tokens=10_000, decay_fraction=0.2, min_lr_ratio=0.0)
    rates = [learning_rate(train, step) for step in range(1, 101)]
    assert rates[9:80] == [1.0] * 71
    assert rates[80:] == pytest.approx([1 - k / 20 for k in range(1, 21)])


def test_the_optimizer_sees_the_clipped_gradient_and_the_norm_is_the_whole_one() -> None:
    for grad_clip, expected in ((1.0, [0.6, 0.8]), (0.0, [3.0, 4.0]), (10.0, [3.0, 4.0])):
        stepped = []
        for gradient in ([3.0, 4.0], expected):
            model = torch.nn.Linear(2, 1, bias=False)
            torch.nn.init.ones_(model.weight)
            # A large eps: the first step of Adam is otherwise the same for every scale of the gradient.
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, eps=1.0, weight_decay=0.0, fused=True)
            model.weight.grad = torch.tensor([gradient])
            if gradient != expected or not stepped:
                assert clip_gradient(model, optimizer, grad_clip).item() == 5.0
            else:
                clip_gradient(model, optimizer, 0.0)
            optimizer.step()
            stepped.append(model.weight.detach())
        torch.testing.assert_close(stepped[0], stepped[1])


def test_the_rate_is_set_in_every_group() -> None:
    optimizer = build_optimizer(tiny("hgrn2"), recipe())
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]
