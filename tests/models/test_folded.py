"""Folded feature maps give what the layer gives, from fewer products."""

from dataclasses import replace

import pytest
import torch

from linscale.generate.steps import decoding_step
from linscale.models import MIXERS, LinearizedConfig, LinearMixer, build_model
from linscale.models.folded import FoldedAttention, fold

FOLDED = {
    "supra": (MIXERS["supra"], None),
    "grouped": (LinearMixer(feature_dim=6, decay="retnet"), 2),
    "softmax": (LinearMixer(features="softmax", feature_dim=5, rotary="none", normalizer="denominator"), 2),
    "exp": (LinearMixer(features="exp", decay="head", normalizer="rms"), 1),
    "delta": (LinearMixer(decay="head", normalizer="none", update="delta", gate=True), 2),
    "lrpe": (LinearMixer(features="relu", feature_dim=3, rotary="lrpe", decay="channel", gate=True), 2),
}


def model_of(mixer, kv_heads=None, **fields):
    shape = {"vocab_size": 40, "d_model": 32, "n_layers": 2, "head_dim": 8, "d_ff": 32, "init_std": 0.3}
    config = LinearizedConfig(**{**shape, "n_kv_heads": kv_heads, "linear": mixer, **fields})
    return build_model(config, seed=3).double().eval()


@pytest.mark.parametrize("case", FOLDED)
def test_a_folded_model_gives_the_same_logits_and_states(case):
    model = model_of(*FOLDED[case])
    folded, tokens = fold(model), torch.arange(60).view(2, 30) % 40
    with torch.no_grad():
        expected, found = model(tokens), folded(tokens)
        assert expected.logits.abs().max() > 0.3
        torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-12)
        for ours, theirs in zip(found.state.layers, expected.state.layers, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)  # states are float32
        rest = folded(tokens[:, :7], state=expected.state).logits
        torch.testing.assert_close(rest, model(tokens[:, :7], state=expected.state).logits, rtol=0, atol=1e-12)


def test_it_is_a_matrix_for_each_projection_and_shares_the_rest():
    model = model_of(MIXERS["supra"], n_layers=3, softmax_layers=(1,))
    folded = fold(model)
    mixer, own = folded.blocks[0].mixer, model.blocks[0].mixer
    assert isinstance(mixer, FoldedAttention)
    assert {name for name, _ in mixer.named_parameters()} == {f"{projection}_proj.weight" for projection in "qkvo"} | {
        "q_proj.bias",
        "k_proj.bias",
    }
    product = own.q_features.weight @ own.q_proj.weight
    torch.testing.assert_close(mixer.q_proj.weight, product, rtol=0, atol=1e-12)
    assert mixer.o_proj.weight is own.o_proj.weight
    assert folded.blocks[1].mixer is model.blocks[1].mixer
    assert folded.embedding is model.embedding
    assert not isinstance(own, FoldedAttention)


@pytest.mark.parametrize("mixer", [MIXERS["t2r"], MIXERS["hedgehog"], MIXERS["tnl"], LinearMixer(conv=2)])
def test_what_has_a_rotation_or_a_filter_between_or_no_weights_stays_as_it_is(mixer):
    model = model_of(mixer)
    assert fold(model) is model


def test_decoding_steps_are_those_of_the_folded_model():
    model = model_of(replace(MIXERS["supra"], feature_dim=4), 2).float()
    step = decoding_step(model, 1, 8, dtype=torch.float32, state_dtype=torch.float32)
    folded = fold(model).blocks[0].mixer
    assert all(layer.read.weight.shape[0] == sum(layer.mixer.widths) for layer in step.packed.layers)
    assert step.packed.layers[0].mixer.head_dim == 4  # features, not what they are made of
    assert torch.equal(step.packed.layers[0].mixer.bias[: len(folded.q_proj.bias)], folded.q_proj.bias)
    step.active[:] = 1
    tokens = torch.tensor([[5, 17, 3]])
    for token in tokens[0]:
        step.tokens[:] = token
        step.run()
    with torch.no_grad():
        torch.testing.assert_close(step.logits, model(tokens).logits[:, -1], rtol=0, atol=1e-4)
