"""The model contract, for every architecture and its hybrid: one set of properties that all must have."""

import importlib
import math

import pytest
import torch

from linscale.layers import RopeScaling
from linscale.layers.short_conv import ShortConv
from linscale.models import CONFIGS, MIXERS, LinearMixer, Recurrence, build_model
from linscale.models.count import count_parameters, state_elements
from linscale.ops import decay_attention, delta_rule

RECURRENCES = {  # of recurrent transformers; blocks that texts here end inside of
    "recurrent_transformer": Recurrence(block=8),
    "forgetting": Recurrence(block=7, alpha=0.0, alpha_form="fixed"),
    "accumulating": Recurrence(
        block=6, alpha=0.5, alpha_form="learned", normed=False, positions="table", table=200, mlp="gelu", norm="layer"
    ),
}
LINEAR = {  # mixers of linearized models; "linearized" is SUPRA
    "averaging": MIXERS["gated"],
    "gating": LinearMixer(features="exp", rotary="lrpe", decay="channel", normalizer="rms", gate=True),
    "forgets": MIXERS["hgrn2"],
    "overwriting": MIXERS["delta"],
    "convolving": LinearMixer(features="relu", rotary="before", decay="head", normalizer="denominator", conv=3),
}
ARCHS = [*CONFIGS, "forgetting", "accumulating"]
CASES = [(arch, every) for arch in ARCHS for every in (0, 2)] + [
    ("averaging", 2),
    ("gating", 0),
    ("forgets", 0),
    ("overwriting", 2),
    ("convolving", 0),
]
# Left to make test: what is made of the parts of others. Hybrids share their softmax layers, here those of HGRN2 and of
# SUPRA; recurrences differ in alpha, positions, MLP and norm, of which two have one each.
SLOW = [(arch, 2) for arch in ARCHS if arch not in ("hgrn2", "linearized")]
SLOW += [("hgrn2", 0), ("linearized", 0), ("forgetting", 0), ("averaging", 2), ("forgets", 0)]
MODELS = [
    pytest.param(arch, every, id=f"{arch}-{every}", marks=pytest.mark.slow if (arch, every) in SLOW else ())
    for arch, every in CASES
]
VOCABULARY = 50


def make(arch, softmax_every=0, dtype=torch.float64):
    """A model with weights large enough that every part of it matters to the logits.

    Softmax layers share keys and values between heads and scale RoPE, but for those of a plain LLaMA.
    """
    shared = {"n_kv_heads": 2, "rope_scaling": RopeScaling(kind="yarn", factor=4.0, original_length=16)}
    windows = {"recurrence": RECURRENCES[arch]} if arch in RECURRENCES else {}
    if arch in LINEAR:
        windows, arch = {"linear": LINEAR[arch]}, "linearized"
    config = CONFIGS["recurrent_transformer" if "recurrence" in windows else arch](
        vocab_size=VOCABULARY, d_model=32, n_layers=4, head_dim=8, d_ff=48, softmax_every=softmax_every, init_std=0.3,
        **(shared if softmax_every else {}), **windows,
    )  # fmt: skip
    model = build_model(config, seed=1)
    for number, conv in enumerate(module for module in model.modules() if isinstance(module, ShortConv)):
        with torch.no_grad():  # which begin as the identity
            conv.weight += 0.3 * torch.randn(conv.weight.shape, generator=torch.Generator().manual_seed(number))
    return model.to(dtype)


def tokens(batch, length, seed=0):
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("arch", "every"), MODELS)
def test_causality(arch, every):
    model, text = make(arch, every), tokens(2, 70)
    changed = text.clone()
    changed[:, 40] = (changed[:, 40] + 1) % VOCABULARY
    before, after = model(text).logits, model(changed).logits
    torch.testing.assert_close(before[:, :40], after[:, :40], rtol=0, atol=1e-12)
    assert (before[:, 40:] - after[:, 40:]).abs().amax(dim=(0, 2)).min() > 1e-9  # and the future does depend on it


def split_at(model, text, whole, splits):
    for split in splits:
        head = model(text[:, :split])
        tail = model(text[:, split:], state=head.state)
        torch.testing.assert_close(torch.cat([head.logits, tail.logits], 1), whole, rtol=0, atol=1e-10)
        assert tail.state.position.tolist() == [text.shape[1]]


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "every"), MODELS)
def test_prefill_and_the_rest_equal_one_forward_at_every_split(arch, every):
    model, text = make(arch, every), tokens(1, 24)  # three blocks of the longest recurrence
    split_at(model, text, model(text).logits, range(1, 24))


@pytest.mark.parametrize(("arch", "every"), MODELS)
def test_prefill_and_steps_equal_one_forward(arch, every):
    model, text = make(arch, every), tokens(1, 40)
    whole = model(text).logits
    split_at(model, text, whole, (1, 8, 21, 39))  # in and at the ends of blocks, and of texts
    state, outputs = None, []
    for t in range(40):
        output = model(text[:, t : t + 1], state=state)
        state = output.state
        outputs.append(output.logits)
    torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("arch", "every"), MODELS)
def test_a_state_is_never_changed(arch, every):
    model = make(arch, every)
    state = model(tokens(1, 20)).state
    first = model(tokens(1, 5, seed=1), state=state).logits
    model(tokens(1, 9, seed=2), state=state)
    assert torch.equal(model(tokens(1, 5, seed=1), state=state).logits, first)


@pytest.mark.parametrize(("arch", "every"), MODELS)
def test_nothing_to_read_changes_nothing(arch, every):
    model, text = make(arch, every), tokens(2, 20)
    whole = model(text)
    empty = model(text[:, :0])
    assert empty.logits.shape == (2, 0, VOCABULARY)
    torch.testing.assert_close(model(text, state=empty.state).logits, whole.logits, rtol=0, atol=1e-12)
    still = model(text[:, :0], state=whole.state).state
    again = [model(text[:, :3], state=state).logits for state in (whole.state, still)]
    torch.testing.assert_close(again[0], again[1], rtol=0, atol=1e-12)
    assert model(text[:0]).logits.shape == (0, 20, VOCABULARY)


@pytest.mark.parametrize(("arch", "every"), MODELS)
def test_a_state_goes_on_in_another_precision(arch, every):
    model, text = make(arch, every, torch.float32), tokens(2, 20)
    exact = model(text).logits[:, 12:]
    for first, second in ((True, False), (False, True)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=first):
            state = model(text[:, :12]).state
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=second):
            logits = model(text[:, 12:], state=state).logits
        # Through three windows of four layers, bf16 alone makes more of a difference than any state.
        assert (logits - exact).norm() < (0.2 if arch in RECURRENCES else 0.1) * exact.norm()


@pytest.mark.parametrize(("arch", "every"), MODELS)
def test_packed_documents_equal_separate_ones_also_from_states(arch, every):
    model, text, more = make(arch, every), tokens(1, 75), tokens(1, 60, seed=1)
    cuts, more_cuts = [0, 20, 21, 75], [0, 7, 40, 60]
    packed = model(text, cu_seqlens=torch.tensor(cuts))
    again = model(more, state=packed.state, cu_seqlens=torch.tensor(more_cuts))
    # The ragged states also continue as an ordinary batch, one row a document.
    step = model(tokens(3, 1, seed=2), state=again.state)
    for n in range(3):
        first, second = slice(cuts[n], cuts[n + 1]), slice(more_cuts[n], more_cuts[n + 1])
        alone = model(torch.cat([text[:, first], more[:, second], tokens(3, 1, seed=2)[n : n + 1]], dim=1)).logits[0]
        length = cuts[n + 1] - cuts[n]
        torch.testing.assert_close(packed.logits[0, first], alone[:length], rtol=0, atol=1e-10)
        torch.testing.assert_close(again.logits[0, second], alone[length:-1], rtol=0, atol=1e-10)
        torch.testing.assert_close(step.logits[n, 0], alone[-1], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("arch", "every"), MODELS)
def test_batch_and_padding_do_not_change_the_answer(arch, every):
    model, text = make(arch, every), tokens(3, 33)
    batched = model(text).logits
    for row in range(3):
        torch.testing.assert_close(model(text[row : row + 1]).logits[0], batched[row], rtol=0, atol=1e-11)
    padding = tokens(1, 11, seed=5)
    right = model(torch.cat([text[:1], padding], 1)).logits[:, :33]
    left = model(torch.cat([padding, text[:1]], 1), cu_seqlens=torch.tensor([0, 11, 44])).logits[:, 11:]
    for padded in (left, right):
        torch.testing.assert_close(padded[0], batched[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize(("arch", "every"), MODELS)
def test_chunk_length_and_operator_form_do_not_matter(arch, every, monkeypatch):
    model, text = make(arch, every), tokens(2, 70)
    expected = model(text).logits
    for name in ("linscale.ops.decay_attention.chunk", "linscale.ops.delta_rule.passes", "linscale.layers.tpe"):
        monkeypatch.setattr(importlib.import_module(name), "CHUNK", 8)
    torch.testing.assert_close(model(text).logits, expected, rtol=0, atol=1e-10)
    monkeypatch.setattr(
        importlib.import_module("linscale.layers.linear_attention"),
        "decay_attention",
        lambda *args, **options: decay_attention(*args, **options, backend="reference"),
    )
    monkeypatch.setattr(
        importlib.import_module("linscale.layers.delta_rule"),
        "delta_rule",
        lambda *args, **options: delta_rule(*args, **options, backend="reference"),
    )
    torch.testing.assert_close(model(text).logits, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("arch", "every"), MODELS)
def test_loss_is_the_cross_entropy_of_the_logits_and_reaches_every_parameter(arch, every):
    model, text = make(arch, every), tokens(2, 33)
    output = model(text[:, :-1], text[:, 1:])
    assert output.logits is None
    log_p = model(text[:, :-1]).logits.log_softmax(-1)
    torch.testing.assert_close(output.loss, -log_p.gather(-1, text[:, 1:, None])[..., 0])
    output.loss.mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # The first layer's lower bound is 0 by definition, yet its logits share the softmax with the others.
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("arch", "every"), MODELS)
def test_on_the_meta_device_nothing_is_drawn(arch, every, monkeypatch):
    """A normal draw there imports the compiler, in every process that loads a checkpoint."""
    config = make(arch, every).config
    monkeypatch.setattr(torch.nn.init, "normal_", lambda *given: pytest.fail("drawn"))
    with torch.device("meta"):
        assert build_model(config).embedding.weight.is_meta


@pytest.mark.parametrize(("arch", "every"), MODELS)
def test_init_touches_every_tensor_and_depends_on_the_seed_alone(arch, every):
    again = make(arch, every)
    model = build_model(again.config, seed=1).double()
    for tensor in [*again.parameters(), *again.buffers()]:
        tensor.data.fill_(torch.nan)
    again.init_weights(1)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        torch.testing.assert_close(
            again.get_buffer(name) if name in dict(again.named_buffers()) else again.get_parameter(name),
            tensor,
            atol=1e-6,
            rtol=1e-6,
        )
    assert not torch.equal(again.init_weights(2).embedding.weight, model.embedding.weight)


@pytest.mark.parametrize(("arch", "every"), MODELS)
def test_counts_are_exact(arch, every):
    model = make(arch, every)
    count = count_parameters(model.config)
    assert count.total == sum(parameter.numel() for parameter in model.parameters())
    state = model(tokens(1, 30)).state
    held = [state.embedding] if state.embedding is not None else []
    held += [x for layer in state.layers for x in (layer if isinstance(layer, tuple) else (layer,))]
    assert sum(x.numel() for x in held) == state_elements(model.config, length=30)


@pytest.mark.parametrize("arch", CONFIGS)
def test_a_new_model_predicts_nothing_in_particular(arch):
    config = CONFIGS[arch](vocab_size=257, d_model=64, n_layers=3, head_dim=32)
    text = torch.randint(257, (2, 64), generator=torch.Generator().manual_seed(0))
    loss = build_model(config)(text[:, :-1], text[:, 1:]).loss.mean()
    assert abs(float(loss.detach()) - math.log(257)) < 0.1


@pytest.mark.slow
def test_compile_sees_one_graph():
    """TPE, LRPE, the chunk form, softmax attention and the loss, without a break."""
    model, text = make("cosformer2", 2), tokens(2, 70)
    whole = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(whole(text, text).loss, model(text, text).loss, rtol=0, atol=1e-12)
