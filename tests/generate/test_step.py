"""A decoding step on slots does what the model does: every architecture and hybrid, from any prompt, row by row."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from linscale.generate.read_step import ReadStep
from linscale.generate.slots import _captured
from linscale.generate.step import DecodingStep
from linscale.generate.steps import decoding_step
from linscale.generate.window_step import WindowStep
from linscale.layers.rope import RopeScaling
from linscale.models import CONFIGS, LanguageModel, Recurrence, build_model
from linscale.models.linear_mixer import LinearMixer
from linscale.models.linearized import MIXERS, LinearizedConfig
from linscale.ops.decode import plain
from tests.decoding import steps

VOCABULARY, LENGTH, PROMPT = 61, 9, 4
CASES = [(arch, every) for arch in CONFIGS for every in (0, 3) if arch != "llama" or every == 0]
YARN = RopeScaling(kind="yarn", factor=4.0, original_length=4)


def model_of(arch: str, every: int = 0, head_dim: int = 16) -> LanguageModel:
    """Softmax layers share keys and values between heads, and turn them as texts longer than the training need."""
    shape = {"vocab_size": VOCABULARY, "d_model": 64 if head_dim == 16 else 48, "head_dim": head_dim, "d_ff": 40}
    heads = {"n_kv_heads": 2, "rope_scaling": YARN} if every or arch == "llama" else {}
    if arch == "recurrent_transformer":
        heads["recurrence"] = Recurrence(block=4)  # a prompt fills one, and steps go over the next one's end
    model = build_model(CONFIGS[arch](**shape, **heads, n_layers=3, softmax_every=every)).eval()
    with torch.no_grad():
        for name, x in model.named_parameters():
            if x.ndim > 1 and not any(word in name for word in ("encoder", "theta", "lower")):
                x.mul_(4)  # so that no layer is lost in the residual stream
            elif x.ndim == 1:
                x.add_(0.3 * torch.randn_like(x))  # norms with weights that are not 1
    return model


def step_of(model: LanguageModel, slots: int) -> DecodingStep | ReadStep:
    return decoding_step(model, slots, 32, dtype=torch.float32, state_dtype=torch.float32)


@pytest.mark.parametrize(("arch", "every"), CASES)
def test_a_prompt_read_by_the_model_goes_on_in_slots(arch, every):
    torch.manual_seed(0)
    model = model_of(arch, every)
    tokens = torch.randint(VOCABULARY, (3, LENGTH))
    step = step_of(model, 3)
    step.active.fill_(1)
    with torch.no_grad():
        whole = model(tokens)
        for slot in range(3):
            step.put(slot, model.read(tokens[slot : slot + 1, :PROMPT])[1], PROMPT)
        torch.testing.assert_close(steps(step, tokens[:, PROMPT:]), whole.logits[:, PROMPT:], rtol=1e-4, atol=1e-4)
        # And what is taken out of a slot goes on in the model.
        more = torch.randint(VOCABULARY, (1, 2))
        found = model(more, state=step.take(1, LENGTH)).logits
        expected = model(torch.cat([tokens[1:2], more], 1)).logits[:, LENGTH:]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("arch", "every"), CASES)
def test_a_row_is_the_same_whatever_else_is_in_the_batch_and_rests_where_it_is_not_active(arch, every):
    torch.manual_seed(0)
    model = model_of(arch, every)
    tokens = torch.randint(VOCABULARY, (3, LENGTH))
    together, alone = step_of(model, 3), step_of(model, 3)
    together.active.fill_(1)
    alone.active[1] = 1
    both = [steps(each, tokens) for each in (together, alone)]
    assert torch.equal(both[0][1], both[1][1])
    assert alone.positions.tolist() == [0, LENGTH, 0]
    for room in alone.states:
        for part in room:
            assert not part[[0, 2]].any()
            assert part[1].any()
    before = [part.clone() for room in alone.states for part in room]
    alone.active.zero_()
    steps(alone, tokens)
    assert all(torch.equal(x, y) for x, y in zip(before, (p for room in alone.states for p in room), strict=True))


@pytest.mark.skipif(not plain.can_halve(), reason="this CPU has no products of float32 and float16")
@pytest.mark.parametrize("arch", ["llama", "tnl", "hgrn2", "cosformer2"])
def test_matrices_in_float16_change_logits_by_their_rounding_alone(arch):
    torch.manual_seed(0)
    model = model_of(arch)
    tokens = torch.randint(VOCABULARY, (3, LENGTH))
    half, alone = (DecodingStep(model, 3, 32, dtype=torch.float16, state_dtype=torch.float32) for _ in range(2))
    half.active.fill_(1)
    alone.active[1] = 1
    found = steps(half, tokens)
    with torch.no_grad():
        expected = model(tokens).logits
    assert 0 < (found - expected).norm() < 3e-3 * expected.norm()
    assert torch.equal(steps(alone, tokens)[1], found[1])


def test_heads_that_are_no_power_of_two_are_stepped_in_plain_torch():
    model = model_of("hgrn2", head_dim=24)
    step = step_of(model, 2)
    assert step.ops is plain
    step.active.fill_(1)
    tokens = torch.randint(VOCABULARY, (2, 3))
    with torch.no_grad():
        torch.testing.assert_close(steps(step, tokens), model(tokens).logits, rtol=1e-4, atol=1e-4)


def test_a_mixer_that_steps_do_not_know_is_named():
    model = model_of("tnl")
    model.blocks[0].mixer = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match="Linear has no decoding step"):
        step_of(model, 1)


def test_models_are_stepped_by_what_they_have():
    with pytest.raises(TypeError, match="RecurrentTransformer has no decoding step of its own"):
        DecodingStep(model_of("recurrent_transformer"), 1, 8, dtype=torch.float32, state_dtype=torch.float32)
    with pytest.raises(TypeError, match="CosFormer2 has a decoding step of its own"):
        ReadStep(model_of("cosformer2"), 1, 8, dtype=torch.float32)
    assert isinstance(step_of(model_of("hgrn2"), 1), DecodingStep)


FORMS = {
    "channel": {},
    "gated": {"alpha_form": "gated"},
    "forgets": {"alpha": 0.0, "alpha_form": "fixed"},
    "closes": {"closing": "published", "normed": False, "positions": "none"},
}


@pytest.mark.parametrize("form", FORMS)
def test_windows_are_stepped_in_place_to_the_bits_of_the_forward_pass(form):
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "d_model": 64, "head_dim": 16, "d_ff": 40, "n_layers": 2}
    recurrence = Recurrence(block=4, **FORMS[form])
    model = build_model(CONFIGS["recurrent_transformer"](**shape, recurrence=recurrence)).eval()
    with torch.no_grad():
        for x in model.parameters():
            x.add_(0.2 * torch.randn_like(x))
    found = [step_of(model, 3), ReadStep(model, 3, 32, dtype=torch.float32)]
    assert type(found[0]) is WindowStep
    for step in found:
        with torch.no_grad():  # rows stand at different places of their blocks, and one rests for a while
            for slot, length in enumerate((0, 4, 7)):
                tokens = torch.arange(length)[None] % VOCABULARY
                step.put(slot, model.read(tokens)[1] if length else None, length)
    for number in range(14):
        tokens = torch.randint(VOCABULARY, (3,))
        for step in found:
            step.active.copy_(torch.tensor([1, number not in (2, 3), 1]))
            step.tokens.copy_(tokens)
            step.run()
        alive = found[0].active > 0
        assert torch.equal(found[0].logits[alive], found[1].logits[alive]), number
        assert found[0].positions.tolist() == found[1].positions.tolist()
        for one, other in zip(found[0].states, found[1].states, strict=True):
            assert torch.equal(one[0], other[0]), number


class Watched(TorchDispatchMode):
    """Names the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("softmax_layers", [(), (1,)])
@pytest.mark.parametrize("mixer", [MIXERS["t2r"], LinearMixer(features="relu", conv=4), LinearMixer(features="exp")])
def test_steps_by_the_forward_pass_of_linearized_models_wait_for_nothing(mixer, softmax_layers):
    """As CUDA graphs have it: no number comes back from the device, and no list goes there."""
    shape = {"vocab_size": VOCABULARY, "d_model": 32, "head_dim": 16, "n_kv_heads": 1, "d_ff": 40, "n_layers": 3}
    config = LinearizedConfig(**shape, linear=mixer, softmax_layers=list(softmax_layers))
    step = step_of(build_model(config).eval(), 3)
    assert type(step) is ReadStep
    with FakeTensorMode(allow_non_fake_inputs=True):  # raises where a value is asked for
        step.run()
    with Watched() as watched:
        step.run()
    assert not any("lift_fresh" in name or "_local_scalar" in name for name in watched.seen)


@pytest.mark.gpu
@pytest.mark.parametrize("softmax_layers", [(), (1,)])
@pytest.mark.parametrize(("mixer", "head_dim"), [*((name, 32) for name in MIXERS), ("delta", 24)])
def test_captured_steps_of_linearized_models_are_those_of_their_launches(mixer, head_dim, softmax_layers):
    shape = {"vocab_size": VOCABULARY, "d_model": 2 * head_dim, "head_dim": head_dim, "d_ff": 40, "n_layers": 3}
    linear = {"n_kv_heads": 1, "linear": MIXERS[mixer], "softmax_layers": list(softmax_layers)}
    model = build_model(LinearizedConfig(**shape, **linear)).eval().cuda()
    launched, captured = step_of(model, 3), step_of(model, 3)
    assert captured.captures
    graph, _ = _captured(captured.run)  # no row is active
    tokens = torch.randint(VOCABULARY, (12, 3), device="cuda")
    for number, column in enumerate(tokens):
        for step, run in ((launched, launched.run), (captured, graph.replay)):
            step.active.copy_(torch.tensor([1, number % 3, 1]).clamp(max=1))
            step.tokens.copy_(column)
            run()
        torch.testing.assert_close(captured.logits, launched.logits, rtol=1e-5, atol=1e-5)
    assert captured.positions.tolist() == launched.positions.tolist()


def test_texts_with_a_longest_length_are_stepped_by_the_forward_pass():
    shape = {"vocab_size": VOCABULARY, "d_model": 32, "head_dim": 16, "d_ff": 40, "n_layers": 2}
    arch = CONFIGS["recurrent_transformer"]
    table = build_model(arch(**shape, recurrence=Recurrence(block=4, positions="table", table=9)))
    for model in (table, build_model(arch(**shape, softmax_every=2))):
        assert type(step_of(model, 1)) is ReadStep
