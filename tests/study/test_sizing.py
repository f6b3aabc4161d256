"""From parameters to shapes, recipes, GPUs and their memory: rules, and the published family as a reference."""

import json
from pathlib import Path

import pytest

from linscale.config import UserError
from linscale.models import SIZES, preset
from linscale.models.count import paper_parameters
from linscale.study.gpus import GPUS, MEASURED_MFU, default_mfu, find_gpu
from linscale.study.recipe import recipe
from linscale.study.sizing import count, nearest_shape, shapes, smallest
from linscale.train.config import TrainConfig


@pytest.mark.parametrize("arch", MEASURED_MFU)
@pytest.mark.parametrize("params", [1e5, 2e6, 2e7, 8.5e7, 3.3e8, 9e8, 2.8e9, 6.5e9, 7e10])
def test_a_shape_is_near_in_parameters_and_sound_in_proportion(arch, params):
    shape = nearest_shape(arch, params)
    assert count(arch, shape) == pytest.approx(params, rel=0.04 if params > 1e7 else 0.1)
    aspect = shape.d_model / shape.n_layers
    assert (32 if params > 2e7 else 12) <= aspect <= 200
    assert shape.d_model % shape.head_dim == 0
    assert paper_parameters(shape.config(arch, 100)) == count(arch, shape)
    if shape.d_model >= 512:
        assert (shape.head_dim, shape.d_ff) == (128, preset_width(arch, shape.d_model))


def preset_width(arch, d_model):
    """The GLU's width by the rule of the models."""
    return type(preset(arch, "1B"))(d_model=d_model, n_layers=1).glu_width


def test_published_sizes_are_among_the_shapes_and_some_come_back():
    every = {(shape.d_model, shape.n_layers) for shape in shapes()}
    assert {SIZES[name] for name in SIZES} - every == {SIZES["1B-3072x8"]}  # the one that the paper found to be worse
    for size in ("160M", "3B"):
        shape = nearest_shape("hgrn2", paper_parameters(preset("hgrn2", size)))
        assert shape.d_model == SIZES[size][0]
        assert abs(shape.n_layers - SIZES[size][1]) <= 1


def test_too_few_parameters_are_an_error_that_says_how_many_are_enough():
    with pytest.raises(UserError, match=r"1e\+03 parameters: no sensible shape is near; the smallest, 16x1, has 3,344"):
        nearest_shape("hgrn2", 1e3)
    with pytest.raises(UserError, match="the widest is 16384"):
        nearest_shape("hgrn2", 1e15)
    assert smallest("hgrn2") == count("hgrn2", nearest_shape("hgrn2", 2500))


def test_a_recipe_is_step_law_rounded_to_what_gpus_and_length_allow():
    trained = recipe(1e9, 1e11, 8192, gpus=8)
    assert trained.wanted_batch == pytest.approx(0.58 * 1e11**0.571)  # 1.1M tokens
    assert trained.batch_tokens == 16 * 8 * 8192
    assert trained.lr == pytest.approx(1.79 * 1e9**-0.713 * 1e11**0.307, rel=0.05)
    assert trained.tokens == trained.steps * trained.batch_tokens == pytest.approx(1e11, rel=1e-4)
    assert trained.warmup_tokens == round(0.02 * trained.steps) * trained.batch_tokens or trained.warmup_tokens == (
        2000 * trained.batch_tokens
    )
    small = recipe(5e3, 1e6, 128)
    assert (small.lr, small.batch_tokens) == (6e-3, 1536)  # held at the highest rate
    assert recipe(1e9, 1e11, 8192, gpus=512).batch_tokens == 512 * 8192  # a sequence a GPU at least


@pytest.mark.parametrize("gpus", [1, 3, 8, 100])
@pytest.mark.parametrize("tokens", [3e5, 1e8, 4e11])
def test_what_a_recipe_says_training_accepts(gpus, tokens):
    trained = recipe(1e8, tokens, 512, gpus)
    config = TrainConfig(
        tokens=trained.tokens,
        batch_tokens=trained.batch_tokens,
        length=512,
        lr=trained.lr,
        warmup_tokens=trained.warmup_tokens,
    )
    assert config.steps == trained.steps
    assert config.sequences % gpus == 0


def test_gpus_by_name():
    assert find_gpu("RTX 4090") is GPUS["rtx4090"]
    assert find_gpu("H100_PCIe") is GPUS["h100-pcie"]
    with pytest.raises(UserError, match="gpu = 'tpu': expected one of h100, "):
        find_gpu("tpu")
    assert default_mfu("tnl", 8) < default_mfu("tnl", 1) == MEASURED_MFU["tnl"]
    assert all(1e14 < gpu.peak_flops < 3e15 and 2e10 < gpu.memory_bytes < 2e11 for gpu in GPUS.values())


def test_measured_utilisation_is_that_of_the_stored_benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "results" / "2026-11-26-nvidia-h100-train.json"
    rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    for arch, share in MEASURED_MFU.items():
        row = rows[f"{arch} 4x8192"]
        assert share == pytest.approx(row["tokens_per_s"] * row["flops_per_token"] / GPUS["h100"].peak_flops, abs=0.005)
