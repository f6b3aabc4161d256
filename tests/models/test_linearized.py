"""Linearized models against attention with all weights at hand, published constants, and layers that they resemble."""

import importlib
import math

import pytest
import torch
from torch.nn.functional import conv1d, group_norm, linear, normalize, pad, relu, rms_norm
from torch.utils.flop_counter import FlopCounterMode

from linscale.config import UserError, parse
from linscale.layers import Context
from linscale.layers.head_norm import averaged_attention
from linscale.models import CONFIGS, MIXERS, LinearizedConfig, LinearMixer, LlamaConfig, ModelConfig, build_model
from linscale.models.cosformer2 import CosFormer2Config, CosFormer2Mixer
from linscale.models.count import flops_per_token
from linscale.models.hgrn2 import HGRN2Config, HGRN2Mixer
from linscale.models.linearized import new_parameters
from linscale.models.linearized_mixer import LinearAttention, fixed_decay
from linscale.ops import decay_attention
from linscale.ops.backend import Choice
from linscale.ops.delta_rule.passes import forward_pass
from tests.lazy import Lazy

llama = Lazy("transformers.models.llama.modeling_llama")
qwen = Lazy("transformers.models.qwen3_next.modeling_qwen3_next")

SHAPE = {"vocab_size": 50, "d_model": 32, "n_layers": 3, "head_dim": 8, "d_ff": 24, "init_std": 0.3}
HEADS, LENGTH = 4, 45


def layer_of(mixer, n_kv_heads=None):
    """The second layer of a model, in float64."""
    config = LinearizedConfig(**SHAPE, linear=mixer, n_kv_heads=n_kv_heads)
    return build_model(config, seed=3).double().blocks[1].mixer


def inputs(seed=0):
    return torch.randn(2, LENGTH, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def attend(layer, x, start=0, state=None):
    first = torch.full((2,), start)
    with torch.no_grad():
        return layer.attend(x, state, Context(first, first[:, None] + torch.arange(x.shape[1]), None, None))


def projected(layer, x):
    """q (B, T, H, V), k and v (B, T, G, V)."""
    return [y(x).unflatten(-1, (-1, 8)) for y in (layer.q_proj, layer.k_proj, layer.v_proj)]


def turned(x):
    """RoPE of (B, T, H, K) as transformers has it for LLaMA, with base 10,000."""
    frequencies = 10_000.0 ** (-torch.arange(0, x.shape[-1], 2, dtype=torch.float64) / x.shape[-1])
    angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequencies
    cos, sin = (turn(torch.cat([angle, angle], -1))[None] for turn in (torch.cos, torch.sin))
    return llama.apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=2)[0]


def copied(x):
    """(B, T, G, K) -> (B, T, H, K), each head of keys consecutively for those that it serves."""
    return x[:, :, [head * x.shape[2] // HEADS for head in range(HEADS)]]


def dense(features, x):
    """relu(W x + b) over all heads."""
    return relu(linear(x.flatten(2), features.weight, features.bias)).unflatten(-1, (x.shape[2], -1))


def weights(q, k, log_decay):
    """(B, H, T, T): similarities times what is left of each step, by log decays (H,) or (B, T, H)."""
    steps = torch.arange(q.shape[1])
    if log_decay is None:
        left = torch.zeros(1, 1, len(steps), len(steps), dtype=q.dtype)
    elif log_decay.ndim == 1:
        left = log_decay[:, None, None] * (steps[:, None] - steps)
    else:
        total = log_decay.cumsum(1).transpose(1, 2)
        left = total[..., :, None] - total[..., None, :]
    return torch.einsum("bthk,bshk->bhts", q, k) * left.exp().tril()


@pytest.mark.parametrize("n_kv_heads", [None, 2])
def test_supra_is_its_parallel_form_its_recurrence_and_its_chunks(n_kv_heads, monkeypatch):
    layer, x = layer_of(MIXERS["supra"], n_kv_heads), inputs()
    assert (layer.k_features is None) == (n_kv_heads is None)  # one kernel for q and k unless heads share keys
    with torch.no_grad():
        q, k, v = projected(layer, x)
        q, k = dense(layer.q_features, q), dense(layer.k_features or layer.q_features, k)
        slopes = torch.tensor([2.0 ** (-2 * (head + 1)) for head in range(HEADS)], dtype=torch.float64)
        similar = weights(turned(q), turned(copied(k)) / math.sqrt(8), -slopes)
        o = torch.einsum("bhts,bshv->bthv", similar, copied(v))
        expected = group_norm(o.reshape(-1, 32), HEADS, eps=1e-5).view_as(x)
    found, final = attend(layer, x)
    assert (found - expected).abs().max() < 1e-12
    state, steps = None, []
    for t in range(LENGTH):
        o, state = attend(layer, x[:, t : t + 1], t, state)
        steps.append(o)
    assert (torch.cat(steps, 1) - expected).abs().max() < 1e-12
    assert (state - final).abs().max() < 1e-12
    for chunk in (7, 64):
        monkeypatch.setattr(importlib.import_module("linscale.ops.decay_attention.chunk"), "CHUNK", chunk)
        assert (attend(layer, x)[0] - expected).abs().max() < 1e-12


@pytest.mark.parametrize("decay", ["none", "lightning", "head"])
@pytest.mark.parametrize("features", ["relu", "softmax", "exp"])
def test_a_denominator_gives_averages_of_values(features, decay):
    layer = layer_of(LinearMixer(features=features, rotary="before", decay=decay, normalizer="denominator"), 2)
    x, log_decay = inputs(), layer.log_decay
    with torch.no_grad():
        q, k, v = projected(layer, x)
        q, k = turned(q), turned(k)
        if features == "relu":
            q, k = dense(layer.q_features, q), copied(dense(layer.k_features, k))
        else:
            wide = [torch.einsum("bthd,hdf->bthf", q, layer.q_features.weight)]
            wide += [torch.einsum("bthd,hdf->bthf", copied(k), layer.k_features.weight)]
            both = [(y, -y) for y in wide]
            q, k = (torch.cat([z.softmax(-1) if features == "softmax" else z.exp() for z in y], -1) for y in both)
        if decay == "head":
            layer.decay_gate.weight.mul_(30)
            log_decay = torch.sigmoid(linear(x, layer.decay_gate.weight, layer.decay_gate.bias)).log()
        similar = weights(q, k, log_decay)
        expected = torch.einsum("bhts,bshv->bthv", similar / similar.sum(-1, keepdim=True), copied(v)).flatten(2)
    found, state = attend(layer, x)
    if features == "relu":  # where all features of a query or of all keys are 0 there is nothing to average
        expected = expected.nan_to_num(0.0)
    assert (found - expected).abs().max() < 1e-9
    assert state.shape == (2, HEADS, q.shape[-1], 9)
    assert found.abs().max() > 0.1


def test_sums_of_similarities_are_safe_in_float32_and_bf16():
    """Over thousands of tokens, with exponents of hundreds, and where nothing is similar to anything."""
    layer = layer_of(LinearMixer(features="exp", rotary="none", decay="none", normalizer="denominator"))
    x = torch.randn(1, 3000, 32, generator=torch.Generator().manual_seed(1))
    exact, _ = layer.attend(x.double(), None, Context(torch.zeros(1), torch.arange(3000)[None], None, None))
    narrow = layer.float()
    for size in (1.0, 300.0):
        y = (size * x).requires_grad_()
        found, state = narrow.attend(y, None, Context(torch.zeros(1), torch.arange(3000)[None], None, None))
        found.square().mean().backward()
        assert all(z.isfinite().all() for z in (found, state, y.grad))
        if size == 1:
            torch.testing.assert_close(found, exact.float(), rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = narrow.attend(x, None, Context(torch.zeros(1), torch.arange(3000)[None], None, None))
    assert (half - exact).norm() < 0.02 * exact.norm()
    q = torch.zeros(1, 5, 2, 8, requires_grad=True)
    o, _ = averaged_attention(q, q, torch.ones(1, 5, 2, 4), None, None, Context(torch.zeros(1), q, None, None))
    o.sum().backward()
    assert not o.any()
    assert q.grad.isfinite().all()


def test_keys_that_are_what_is_forgotten_are_those_of_hgrn2():
    ours = layer_of(LinearMixer(features="silu", rotary="none", decay="channel", keys="forget", normalizer="none"))
    theirs, x = HGRN2Mixer(HGRN2Config(**SHAPE), 0).double(), inputs()
    with torch.no_grad():
        for mine, name in ((ours.q_proj, "q_proj"), (ours.k_proj, "f_proj"), (ours.v_proj, "v_proj")):
            getattr(theirs, name).weight.copy_(mine.weight)
        theirs.o_proj.weight.copy_(torch.eye(32))
        ours.decay_gate.bias.zero_()
        bounds = Context(torch.zeros(2), torch.arange(LENGTH)[None], None, torch.zeros(32, dtype=torch.float64))
        expected, state = theirs(x, None, bounds)
        found, own = attend(ours, x)
    torch.testing.assert_close(theirs.norm(found), expected, rtol=0, atol=2e-5)  # norm_eps, of outputs of another size
    torch.testing.assert_close(own * 8**0.5, state, rtol=0, atol=1e-12)


def test_angles_on_features_are_those_of_cosformer2():
    ours = layer_of(LinearMixer(features="silu", rotary="lrpe", decay="none", normalizer="rms"))
    theirs, x = CosFormer2Mixer(CosFormer2Config(**SHAPE), 0).double(), inputs()
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(theirs, name).weight.copy_(getattr(ours, name).weight)
        ours.norm.weight.copy_(1 + torch.arange(32) / 32)
        _, state = theirs(x, None, Context(torch.zeros(2), torch.arange(LENGTH)[None], None, None))
        found, own = attend(ours, x)
        q = torch.nn.functional.silu(projected(ours, x)[0])
        q, _ = theirs.lrpe(q, q, torch.arange(LENGTH)[None])
        last = torch.einsum("bhk,bhkv->bhv", q[:, -1], state)
    torch.testing.assert_close(own * 4, state, rtol=0, atol=1e-12)  # keys are divided by sqrt(2 · 8)
    expected = rms_norm(last / 4, (8,), eps=1e-6).flatten(1) * ours.norm.weight
    torch.testing.assert_close(found[:, -1], expected, rtol=0, atol=1e-12)


def test_the_delta_rule_is_that_of_transformers():
    layer, x = layer_of(MIXERS["delta"], 2), inputs()
    with torch.no_grad():
        for conv in (layer.q_conv, layer.k_conv, layer.v_conv):
            conv.weight += 0.5 * torch.randn(conv.weight.shape, generator=torch.Generator().manual_seed(2))
        layer.write_gate.weight.mul_(30)
        layer.decay_gate.weight.mul_(30)
        layer.write_gate.bias.zero_()
        q, k, v = (
            conv1d(pad(y.flatten(2).mT, (3, 0)), conv.weight[:, None], groups=len(conv.weight)).mT.unflatten(
                -1, (-1, 8)
            )
            for y, conv in zip(projected(layer, x), (layer.q_conv, layer.k_conv, layer.v_conv), strict=True)
        )
        q, k = (normalize(turned(y), dim=-1).float() for y in (q, copied(k)))
        decay, write = (linear(x, y.weight, y.bias).sigmoid() for y in (layer.decay_gate, layer.write_gate))
        assert 0.2 < (write < 0.4).double().mean() < 0.6
        o, final = qwen.torch_recurrent_gated_delta_rule(
            q, k, copied(v).float(), decay.log().float(), write.float(), None, True
        )  # in float32
        expected = (o * 8**0.5).flatten(2) * torch.nn.functional.silu(layer.output_gate(x))  # theirs has q / sqrt(8)
    found, state = attend(layer, x)
    torch.testing.assert_close(state[:, :, :8], final.double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_flops_of_the_delta_rule_are_those_of_its_products(monkeypatch):
    def seen_by_counters(*tensors):
        *inputs, state, cu_seqlens, scale, _ = tensors
        return forward_pass(inputs, state, cu_seqlens, scale, Choice("chunk", ""))[:2]

    config = LinearizedConfig(**SHAPE, linear=MIXERS["delta"], tie_embeddings=False)
    monkeypatch.setattr(importlib.import_module("linscale.ops.delta_rule"), "chunk_delta_rule", seen_by_counters)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        build_model(config)(torch.zeros(1, 128, dtype=torch.int64))
    filters = 3 * 3 * 4 * 32  # of three layers, each q, k and v: multiply-accumulates that the counter does not see
    expected = 128 * (flops_per_token(config, "prefill", 128) - 2 * filters)
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-6)


def test_a_positive_factor_of_a_head_leaves_no_trace_behind_a_group_norm():
    layer, x = layer_of(MIXERS["supra"], 2), inputs()
    before, factors = attend(layer, x)[0], torch.tensor([3.0, 0.5, 2.0, 7.0], dtype=torch.float64)
    with torch.no_grad():
        for tensor in (layer.q_features.weight, layer.q_features.bias):
            tensor.unflatten(0, (HEADS, -1)).mul_(factors.view(-1, *[1] * tensor.ndim))
        layer.v_proj.weight.mul_(40)
    after = attend(layer, x)[0]
    # Up to eps = 1e-5, which is seen where a head's outputs are small.
    big = (40 * 0.5 * before).unflatten(-1, (HEADS, -1)).var(-1, keepdim=True).expand(-1, -1, -1, 8).flatten(2) > 0.1
    assert (after - before)[big].abs().max() < 0.02
    assert (after - before).norm() < 0.05 * before.norm()
    assert big.float().mean() > 0.5


def test_fixed_decays_are_the_published_ones():
    lightning, retnet = fixed_decay("lightning", 32), fixed_decay("retnet", 32)
    assert [-lightning[0], -lightning[-1]] == pytest.approx([0.841, 0.00390625], abs=4e-4)
    assert [math.exp(x) for x in (lightning[0], lightning[-1])] == pytest.approx([0.431, 0.99610], abs=4e-4)
    assert math.log(0.5) / lightning[-1] == pytest.approx(177, abs=1)
    for count in (8, 16, 32):
        assert math.exp(2048 * fixed_decay("lightning", count)[-1]) == pytest.approx(3.35e-4, rel=2e-3)
    assert [math.exp(x) for x in retnet[:3]] == pytest.approx([1 - 2**-5, 1 - 2**-6, 1 - 2**-7], rel=1e-12)
    half_lives = [math.log(0.5) / x for x in (retnet[0], retnet[7], retnet[15])]
    assert half_lives == pytest.approx([22, 2.8e3, 7e5], rel=0.05)
    # Nine heads: those of eight, and the first of sixteen.
    assert fixed_decay("lightning", 9) == [*fixed_decay("lightning", 8), fixed_decay("lightning", 16)[0]]


def test_what_is_left_of_a_token_2048_back_is_3_parts_in_10_000():
    config = LinearizedConfig(**{**SHAPE, "d_model": 8 * 32}, linear=MIXERS["supra"])
    decay = build_model(config).blocks[0].mixer.log_decay
    k, ones = torch.zeros(1, 2049, 32, 1), torch.ones(1, 2049, 32, 1)
    k[:, 0] = 1
    old = decay_attention(ones, k, ones, decay)[0][0, -1, -1, 0]
    fresh = decay_attention(ones, k.flip(1), ones, decay)[0][0, -1, -1, 0]
    assert float(old / fresh) == pytest.approx(3.4e-4, abs=0.05e-4)


@pytest.mark.parametrize("name", MIXERS)
def test_all_that_a_llama_has_keeps_its_name_and_shape(name):
    config = LinearizedConfig(**SHAPE, linear=MIXERS[name], n_kv_heads=2, softmax_layers=(1,))
    with torch.device("meta"):
        ours = {key: x.shape for key, x in build_model(config).named_parameters()}
        theirs = {key: x.shape for key, x in build_model(LlamaConfig(**SHAPE, n_kv_heads=2)).named_parameters()}
    assert new_parameters(config) == set(ours) - set(theirs)
    assert {key: shape for key, shape in ours.items() if key in theirs} == theirs
    assert not any(key.startswith("blocks.1.") for key in new_parameters(config))


def test_a_layer_begins_the_same_alone_as_in_its_model():
    """So that a converter needs one layer at a time; and near no decay, open gates and the queries themselves."""
    mixer = LinearMixer(features="softmax", rotary="before", decay="head", normalizer="denominator", gate=True)
    config = LinearizedConfig(**SHAPE, linear=mixer, n_kv_heads=2)
    whole, alone = build_model(config, seed=5).blocks[2].mixer, LinearAttention(config, 2)
    alone.reset_new_parameters(5)
    new = {key.rpartition("mixer.")[2] for key in new_parameters(config)}
    for key, tensor in alone.named_parameters():
        if key in new:
            assert torch.equal(tensor, whole.get_parameter(key)), key
    x = torch.randn(1, 100, 32)
    assert torch.equal(whole.q_features.weight, (torch.eye(8) * 8**-0.25).expand(HEADS, 8, 8))
    decays = whole.decay_gate(x).exp()
    assert decays.min() > 0.98
    assert (decays.mean((0, 1)).diff() > 0).all()
    assert decays.mean((0, 1))[[0, -1]].tolist() == pytest.approx([0.99, 0.999], abs=5e-4)
    assert (torch.nn.functional.silu(whole.output_gate(x)) - 1).abs().max() < 0.5
    dense = build_model(LinearizedConfig(**SHAPE, n_kv_heads=2), seed=5).blocks[0].mixer.k_features
    for tensor in (dense.weight, dense.bias):
        assert 0.1 < float(tensor.detach().abs().max()) <= 16**-0.5


def test_attend_is_what_the_projection_of_outputs_reads():
    model = build_model(LinearizedConfig(**SHAPE, linear=MIXERS["gated"], softmax_layers=(0,)), seed=1)
    x, first = torch.randn(2, 7, 32), torch.zeros(2, dtype=torch.int64)
    where = Context(first, torch.arange(7)[None], None, None)
    for block in model.blocks[:2]:
        o, _ = block.mixer.attend(x, None, where)
        assert torch.equal(block.mixer.o_proj(o), block.mixer(x, None, where)[0])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"features": "silu", "feature_dim": 8}, "feature_dim = 8: features = 'silu' have no W"),
        ({"feature_dim": 7}, "feature_dim = 7: RoPE turns pairs"),
        ({"decay": "channel"}, "rotary = 'after' turns pairs of features, which decay = 'channel' fades apart"),
        ({"keys": "forget"}, "decay = 'lightning': keys = 'forget' are made from a gate"),
        ({"keys": "forget", "decay": "channel", "rotary": "none"}, "features = 'relu': keys = 'forget' have none"),
        ({"normalizer": "denominator"}, "normalizer = 'denominator' divides by similarities"),
        ({"update": "delta"}, "decay = 'lightning': update = 'delta' fades by head; expected 'head' or 'none'"),
        (
            {"update": "delta", "decay": "none", "rotary": "before", "normalizer": "denominator"},
            "normalizer = 'denominator': update = 'delta' has no sum of similarities",
        ),
        ({"conv": 1}, "conv = 1: expected 2 to 8 tokens, or 0 for none"),
        ({"conv": 9}, "conv = 9: expected 2 to 8 tokens"),
        ({"normalizer": "layer"}, "linear.normalizer = 'layer': input should be 'group'"),
        ({"feature": "relu"}, "unknown key 'linear.feature'"),
    ],
)
def test_choices_that_do_not_go_together_are_one_clear_line(values, words):
    with pytest.raises(UserError) as error:
        parse(ModelConfig, {"arch": "linearized", **SHAPE, "linear": values}, source="recipe.toml")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_layers_that_stay_softmax_are_named_by_number():
    config = CONFIGS["linearized"](**SHAPE, softmax_layers=(0,), softmax_every=3)
    assert [config.is_softmax(layer) for layer in range(3)] == [True, False, True]
    for layers, words in (((3,), "expected numbers from 0 to 2"), ((1, 1), "expected each layer once")):
        with pytest.raises(UserError, match=words):
            parse(ModelConfig, {"arch": "linearized", **SHAPE, "softmax_layers": layers})
