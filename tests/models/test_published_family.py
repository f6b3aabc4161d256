"""The published shapes against the paper's own tables (specification 3.1, 3.5 and the acceptance checks of 14)."""

from dataclasses import replace

import pytest
import torch

from linscale.config import UserError, parse
from linscale.models import CONFIGS, SIZES, ModelConfig, build_model, preset
from linscale.models.count import (
    count_parameters,
    flops_per_token,
    paper_flops_per_step,
    paper_parameters,
    state_elements,
)

MILLIONS = {
    "llama": [20.5, 85.0, 334.1, 906.2, 2775.8, 6476.5],
    "tnl": [21.2, 87.3, 327.7, 918.6, 2798.4, 6509.6],
    "hgrn2": [20.5, 84.9, 334.0, 906.0, 2775.5, 6476.1],
    "cosformer2": [21.3, 87.5, 328.0, 919.1, 2799.0, 6511.0],
}
PFLOPS = {
    "llama": [1.6, 5.6, 18.0, 40.4, 99.6, 202.7],
    "tnl": [0.5, 2.2, 7.9, 22.3, 66.6, 154.4],
    "hgrn2": [0.5, 2.1, 8.0, 22.0, 66.0, 153.6],
    "cosformer2": [0.5, 2.3, 8.1, 22.7, 67.4, 155.6],
}
NAMES = ["70M", "160M", "410M", "1B", "3B", "7B"]
FAMILY = [(arch, size, row) for arch in MILLIONS for row, size in enumerate(NAMES)]


@pytest.mark.parametrize(("arch", "size", "row"), FAMILY)
def test_parameters_and_flops_match_the_tables(arch, size, row):
    config = preset(arch, size)
    with torch.device("meta"):
        model = build_model(config)
    built = sum(parameter.numel() for parameter in model.parameters()) - model.embedding.weight.numel()
    assert built == count_parameters(config).non_embedding
    tolerance = 0.0015 * MILLIONS[arch][row] + 0.05  # 0.15 %, and the table's last digit
    assert abs(built / 1e6 - MILLIONS[arch][row]) <= tolerance
    assert abs(paper_parameters(config) / 1e6 - MILLIONS[arch][row]) <= tolerance
    assert round(paper_flops_per_step(config) / 1e15, 1) == PFLOPS[arch][row]


@pytest.mark.slow
@pytest.mark.parametrize("arch", CONFIGS)
def test_a_forward_pass_on_the_meta_device_costs_nothing(arch):
    with torch.device("meta"):
        model, text = build_model(replace(preset(arch, "7B"), n_layers=4)), torch.zeros(2, 100, dtype=torch.long)
    output = model(text)
    assert output.logits.shape == (2, 100, 100_280)
    assert model(text[:, :1], text[:, :1], state=output.state).loss.shape == (2, 1)


def test_totals_with_the_shared_embedding():
    totals = [count_parameters(preset("llama", size)).total / 1e6 for size in NAMES]
    for total, expected in zip(totals, [71.8, 162.0, 436.8, 1060, 3033, 6887], strict=True):
        assert abs(total - expected) <= 0.0015 * expected


def test_aspect_ratio_variants_hold_the_size():
    variants = ["1B", "1B-1792x24", "1B-2048x18", "1B-3072x8"]
    for size, d_ff, heads in zip(variants, [4096, 4864, 5632, 8192], [12, 14, 16, 24], strict=True):
        config = preset("cosformer2", size)
        assert (config.glu_width, config.n_heads) == (d_ff, heads)
    assert [round(12 * layers * d**2 / 1e6) for d, layers in (SIZES[size] for size in variants)] == [906, 925, 906, 906]


def test_hybrid_follows_the_report_on_one_layer_in_eight():
    """MiniMax-01 (arXiv 2501.08313): N = 12ld² + 7ld²/(4h), FLOPs bracket 1 + n/(48d) + 7/(16h) + 5/(18d)."""
    d, layers, heads, length = 2048, 16, 16, 8192
    config = CONFIGS["tnl"](d_model=d, n_layers=layers, softmax_every=8, d_ff=8 * d // 3)
    expected = 12 * layers * d**2 + 7 * layers * d**2 / (4 * heads)
    assert paper_parameters(config) == pytest.approx(expected, rel=1e-3)
    bracket = 1 + length / (48 * d) + 7 / (16 * heads) + 5 / (18 * d)
    assert paper_flops_per_step(config, 1, length) == pytest.approx(72 * length * layers * d**2 * bracket, rel=1e-9)


def test_decoding_state_of_the_7b_models():
    assert state_elements(preset("llama", "7B"), 8192) == pytest.approx(2.15e9, rel=0.01)
    assert state_elements(preset("hgrn2", "7B")) == pytest.approx(1.68e7, rel=0.01)
    assert state_elements(preset("tnl", "7B")) == pytest.approx(1.68e7 * 33 / 32, rel=0.01)  # LRPE doubles layer 1
    assert state_elements(preset("cosformer2", "7B")) == pytest.approx(3.41e7, rel=0.01)


@pytest.mark.parametrize("arch", CONFIGS)
def test_exact_flops_are_near_six_n_and_steps_of_linear_models_cost_the_same_anywhere(arch):
    config = preset(arch, "7B")
    count = count_parameters(config)
    passes = 2 if arch == "recurrent_transformer" else 1  # of each token through a layer
    expected = 6 * (passes * count.non_embedding + count.embedding)
    assert flops_per_token(config, "train", 2048) == pytest.approx(expected, rel=0.1)
    growth = flops_per_token(config, "step", 10**6) / flops_per_token(config, "step", 10**3)
    assert growth > 10 if arch == "llama" else growth == 1


def test_bad_configs_are_one_clear_line():
    for values, words in [
        ({"arch": "tnl", "d_model": 100, "n_layers": 2}, "d_model = 100 is not a multiple of head_dim = 128"),
        ({"arch": "tnl", "d_model": -128, "n_layers": 2}, "d_model = -128: input should be greater than 0"),
        ({"arch": "tnl", "d_model": 128, "n_layers": 0}, "n_layers = 0"),
        ({"arch": "tnl", "d_model": 128, "n_layers": 2, "width": 3}, "unknown key 'width'"),
        ({"arch": "mamba", "d_model": 128, "n_layers": 2}, "mamba"),
        ({"d_model": 128, "n_layers": 2}, "arch"),
        ({"arch": "llama", "d_model": 512, "n_layers": 2, "n_kv_heads": 3}, "n_kv_heads = 3 does not divide"),
        (
            {"arch": "llama", "d_model": 128, "n_layers": 2, "rope_scaling": {"kind": "ntk"}},
            "rope_scaling.kind = 'ntk'",
        ),
        (
            {"arch": "llama", "d_model": 128, "n_layers": 2, "rope_scaling": {"kind": "yarn", "factor": 2.0}},
            "kind = 'yarn' needs original_length",
        ),
    ]:
        with pytest.raises(UserError) as error:
            parse(ModelConfig, values, source="study.toml")
        assert words in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"size = '13B': expected one of 70M"):
        preset("tnl", "13B")
    with pytest.raises(UserError, match=r"arch = 'gpt': expected one of llama"):
        preset("gpt", "70M")
