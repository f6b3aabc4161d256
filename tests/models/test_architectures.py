"""What only one architecture has: TNL's slopes, HGRN2's gates, cosFormer2's shift invariance, LLaMA's oracle."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import silu

from linscale.models import CONFIGS, build_model
from linscale.models.hgrn2 import forget_gate, lower_bounds
from linscale.models.tnl import decay_rates, decay_slopes


def test_llama_gives_the_logits_of_transformers():
    config = CONFIGS["llama"](vocab_size=97, d_model=64, n_layers=3, head_dim=16, d_ff=112, init_std=0.1)
    model = build_model(config, seed=3)
    from transformers import LlamaConfig as HuggingFaceConfig  # half a second, in a worker that runs this test alone
    from transformers import LlamaForCausalLM

    oracle = LlamaForCausalLM(
        HuggingFaceConfig(
            vocab_size=97, hidden_size=64, intermediate_size=112, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=4, rms_norm_eps=config.norm_eps, tie_word_embeddings=True, max_position_embeddings=512,
        )
    ).eval()  # fmt: skip
    renames = (
        ("embedding.", "model.embed_tokens."), ("blocks.", "model.layers."), (".mixer_norm.", ".input_layernorm."),
        (".mlp_norm.", ".post_attention_layernorm."), (".mixer.", ".self_attn."),
    )  # fmt: skip
    weights = {}
    for name, tensor in model.state_dict().items():
        theirs = "model.norm.weight" if name == "norm.weight" else name
        for ours, other in renames:
            theirs = theirs.replace(ours, other)
        weights[theirs] = tensor
    missing, unexpected = oracle.load_state_dict(weights, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    oracle.tie_weights()
    text = torch.randint(97, (2, 300), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(text).logits, oracle(text).logits, rtol=0, atol=1e-5)


def test_tnl_slopes():
    expected = {
        4: [0.25, 0.0625, 0.015625, 0.00390625],
        6: [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125],
        12: [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625, 0.7071, 0.3536, 0.1768, 0.0884],
        20: [2 ** (-k / 2) for k in range(1, 17)] + [0.8409, 0.5946, 0.4204, 0.2973],
        32: [2 ** (-k / 4) for k in range(1, 33)],
    }
    for heads, slopes in expected.items():
        assert decay_slopes(heads) == pytest.approx(slopes, abs=5e-5)
        assert decay_rates(heads, 0, 12) == pytest.approx([s * (1 + 1e-5) for s in decay_slopes(heads)])
        last = torch.tensor(decay_rates(heads, 11, 12), dtype=torch.float64)
        assert (-last).exp().min() >= 1 - 1e-5


def mixer_of(arch, layer):
    """A model, its mixer in `layer` (counted from 0, of three), two heads of 8, and an input (1, 40, 16)."""
    config = CONFIGS[arch](vocab_size=30, d_model=16, n_layers=3, head_dim=8, d_ff=16, init_std=0.5)
    model = build_model(config).double()
    x = torch.randn(1, 40, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    context, shared = model._context(torch.zeros(1, 40, dtype=torch.long), None, None), model.shared()
    return model, model.blocks[layer].mixer, x, replace(context, shared=None if shared is None else shared[layer])


def normed(o):
    """SRMSNorm over all heads together: (B, T, H, V) -> (B, T, D)."""
    return o.flatten(2) / (o.flatten(2).square().mean(-1, keepdim=True) + 1e-6).sqrt()


DISTANCE = torch.arange(40)[:, None] - torch.arange(40)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_tnl_mixer_is_the_published_double_sum(layer):
    """[norm(Σ_{s<=t} λ^(t-s) (q_t · k_s) v_s) * gate] W_o; in the first layer q · k has the cosines of LRPE in it."""
    _, mixer, x, context = mixer_of("tnl", layer)
    q, k, v = (y.view(1, 40, 2, 8) for y in (silu(mixer.q_proj(x)), silu(mixer.k_proj(x)), mixer.v_proj(x)))
    slopes = torch.tensor([2**-4, 2**-8], dtype=torch.float64)
    decay = (-slopes * (1 - layer / 2 + 1e-5)).exp() ** DISTANCE[..., None].clamp(min=0)  # (T, S, H)
    cosines = (DISTANCE[..., None, None] * mixer.lrpe.theta).cos() if layer == 0 else torch.ones(40, 40, 2, 8)
    weights = (DISTANCE >= 0)[..., None, None] * decay[..., None] * cosines
    o = torch.einsum("bthc,bshc,tshc,bshv->bthv", q, k, weights, v)
    expected = mixer.o_proj(normed(o) * mixer.gate(x))
    torch.testing.assert_close(mixer(x, None, context)[0], expected, rtol=0, atol=1e-6)  # the rates are float32


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_hgrn2_mixer_is_the_published_recurrence(layer):
    """H_t = diag(f_t) H_{t-1} + (1 - f_t) i_tᵀ, y_t = H_tᵀ q_t, f = β + (1 - β) sigmoid(x W_f), in so many words."""
    model, mixer, x, context = mixer_of("hgrn2", layer)
    beta = model.lower_bound_logits.softmax(0)[1 : layer + 1].sum(0)
    f = (beta + (1 - beta) * mixer.f_proj(x).sigmoid()).view(40, 2, 8, 1)
    q, v = silu(mixer.q_proj(x)).view(40, 2, 8, 1), mixer.v_proj(x).view(40, 2, 1, 8)
    memory, o = torch.zeros(2, 8, 8, dtype=torch.float64), []
    for t in range(40):
        memory = f[t] * memory + (1 - f[t]) * v[t]
        o.append((memory * q[t]).sum(1))
    expected = mixer.o_proj(normed(torch.stack(o)[None]))
    torch.testing.assert_close(mixer(x, None, context)[0], expected, rtol=0, atol=1e-10)


def test_hgrn2_lower_bounds_rise_from_zero_and_stay_below_one():
    for logits in (torch.ones(6, 4), torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) * 8):
        beta = lower_bounds(logits)
        assert (beta[0] == 0).all()
        assert (beta.diff(dim=0) >= 0).all()
        assert (beta[-1] < 1).all()
    extreme = torch.tensor([[-200.0, 200.0], [0.0, 0.0], [200.0, -200.0]], requires_grad=True)
    for layer, bound in enumerate(lower_bounds(extreme)):
        log_f, k = forget_gate(torch.tensor([-50.0, 50.0]), bound, first=layer == 0)
        (gradient,) = torch.autograd.grad((log_f + k + bound).sum(), extreme, retain_graph=True)
        assert torch.cat([log_f.detach(), gradient.flatten()]).isfinite().all()
    torch.testing.assert_close(lower_bounds(torch.ones(4, 1))[:, 0], torch.tensor([0.0, 0.25, 0.5, 0.75]))


def test_hgrn2_gate_is_finite_and_within_bounds_for_any_bf16_input():
    inputs = torch.tensor([-1e30, -300.0, -88.0, -20.0, -1.0, 0.0, 1.0, 20.0, 300.0, 1e30], dtype=torch.bfloat16)
    for beta in (0.0, 1e-12, 1e-3, *(row / 32 for row in range(1, 32)), 1 - 2**-20):
        bound = torch.full((10,), beta)
        log_f, k = forget_gate(inputs, bound, first=beta == 0)
        assert log_f.isfinite().all()
        assert (log_f <= 0).all()
        assert (log_f.exp() >= beta - 1e-6).all()
        exact = beta + (1 - beta) * inputs.double().sigmoid()
        torch.testing.assert_close(log_f.double().exp(), exact, rtol=0, atol=1e-6)
        torch.testing.assert_close(k.double(), 1 - exact, rtol=0, atol=1e-6)


def test_cosformer2_knows_positions_only_by_distance():
    """Shift every position by the same amount: nothing changes."""
    config = CONFIGS["cosformer2"](vocab_size=30, d_model=16, n_layers=2, head_dim=8, d_ff=16, init_std=0.5)
    model = build_model(config).double()
    text = torch.randint(30, (1, 20), generator=torch.Generator().manual_seed(0))
    plain = model(text)
    zero = model(text[:, :1]).state
    shifted = zero._replace(
        position=torch.tensor([5000]),
        embedding=torch.zeros_like(zero.embedding),
        layers=tuple(torch.zeros_like(layer) for layer in zero.layers),
    )
    torch.testing.assert_close(model(text, state=shifted).logits, plain.logits, rtol=0, atol=1e-9)


def test_cosformer2_mixer_is_the_published_double_sum():
    """[norm(Σ_{s<=t} Σ_c q_tc k_sc cos((t-s)θ_c) v_s) * gate] W_o, written out without states or rotations."""
    _, mixer, x, context = mixer_of("cosformer2", 1)
    q, k, v = (y.view(1, 40, 2, 8) for y in (silu(mixer.q_proj(x)), silu(mixer.k_proj(x)), mixer.v_proj(x)))
    cosines = (DISTANCE[..., None, None] * mixer.lrpe.theta).cos() * (DISTANCE >= 0)[..., None, None]
    o = torch.einsum("bthc,bshc,tshc,bshv->bthv", q, k, cosines, v)
    expected = mixer.o_proj(normed(o) * mixer.gate(x))
    torch.testing.assert_close(mixer(x, None, context)[0], expected, rtol=0, atol=1e-10)
