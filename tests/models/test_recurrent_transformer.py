"""The recurrent transformer against a plain reference of its published state form, its counts, and what is ours."""

import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from linscale.config import UserError, parse
from linscale.models import ModelConfig, Recurrence, RecurrentTransformerConfig, build_model
from linscale.models.count import count_parameters, flops_per_token
from linscale.models.recurrent_walk import Walk

PUBLISHED = {"normed": False, "positions": "none", "closing": "published", "mlp": "gelu", "norm": "layer"}


def model_of(block=4, n_layers=1, **fields):
    """Two heads of 8, weights large enough that every part matters, float64."""
    recurrence = Recurrence(block=block, **fields)
    shape = {"vocab_size": 30, "d_model": 16, "n_layers": n_layers, "head_dim": 8, "init_std": 0.4, "norm_eps": 1e-5}
    return build_model(RecurrentTransformerConfig(**shape, recurrence=recurrence), seed=2).double()


def text_of(length, batch=1, seed=0):
    return torch.randint(30, (batch, length), generator=torch.Generator().manual_seed(seed))


def gpt_block(block, x):
    """A block of nanoGPT on x (T, D), with softmax written out."""
    attention, eps = block.mixer, 1e-5
    h = layer_norm(x, (16,), block.mixer_norm.weight, None, eps)
    q, k, v = (h @ part.weight.T for part in (attention.q_proj, attention.k_proj, attention.v_proj))
    heads = []
    for at in (slice(0, 8), slice(8, 16)):
        scores = (q[:, at] @ k[:, at].T / 8**0.5).masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(1) @ v[:, at])
    z = x + torch.cat(heads, 1) @ attention.o_proj.weight.T
    h = layer_norm(z, (16,), block.mlp_norm.weight, None, eps)
    return z + gelu(h @ block.mlp.up_proj.weight.T) @ block.mlp.down_proj.weight.T


def state_form(x, size, alpha, transformer):
    """The published recurrence over x (T, D), window by window, in its own words."""
    blocks = list(x.split(size))
    p, c = blocks[0], transformer(blocks[0])
    outputs = []
    for block in blocks[1:]:
        both = transformer(torch.cat([alpha * p + c, alpha * p[: len(block)] + block]))
        outputs.append(both[:size])
        p, c = both[:size], both[size:]
    return torch.cat([*outputs, transformer(c)])


@pytest.mark.parametrize("length", [1, 3, 4, 5, 7, 8, 9, 12, 23, 24])  # of one block, of two (the edge), and of many
@pytest.mark.parametrize(("alpha", "form"), [(0.0, "fixed"), (0.5, "learned"), (0.3, "fixed")])
def test_the_published_form(alpha, form, length):
    model, text = model_of(alpha=alpha, alpha_form=form, n_layers=2, **PUBLISHED), text_of(length)
    x = model.embedding(text[0])
    for block in model.blocks:
        x = state_form(x, 4, alpha, lambda u, block=block: gpt_block(block, u))
    expected = layer_norm(x, (16,), model.norm.weight, None, 1e-5) @ model.embedding.weight.T
    torch.testing.assert_close(model(text).logits[0], expected, rtol=0, atol=1e-10)


def test_closed_as_published_a_step_gives_what_the_text_so_far_gives():
    model, text = model_of(alpha=0.5, alpha_form="learned", **PUBLISHED), text_of(14)
    state = None
    for t in range(14):
        output = model(text[:, t : t + 1], state=state)
        state = output.state
        expected = model(text[:, : t + 1]).logits[:, -1]
        torch.testing.assert_close(output.logits[:, 0], expected, rtol=0, atol=1e-11)
    for split in range(1, 14):  # and so does what is read at once behind a state
        output = model(text[:, split:], state=model(text[:, :split]).state)
        torch.testing.assert_close(output.logits[:, -1], expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("closing", ["published", "uniform"])
@pytest.mark.parametrize(("alpha", "form"), [(0.0, "fixed"), (0.5, "learned"), (0.3, "gated")])
def test_no_token_reaches_one_before_it(alpha, form, closing):
    model = model_of(alpha=alpha, alpha_form=form, n_layers=2, **{**PUBLISHED, "closing": closing})
    text = text_of(19).repeat(19, 1)
    changed = text + torch.eye(19, dtype=torch.long)  # row t differs in token t
    moved = (model(text).logits - model(changed % 30).logits).abs().amax(-1)
    assert moved.tril(-1).max() == 0
    assert moved.diagonal().min() > 1e-6


def test_causality_and_reach():
    """A change reaches the last block through the left state, where windows alone, with alpha = 0, reach as far."""
    model, text = model_of(alpha=0.5, alpha_form="fixed", **PUBLISHED), text_of(20)
    changed = text.clone()
    changed[0, 1] = (changed[0, 1] + 1) % 30
    moved = (model(text).logits - model(changed).logits).abs().amax(-1)[0]
    assert moved[0] == 0
    assert moved[1] > 1e-3
    assert moved[16:].max() > 1e-6


def identity(model):
    """Its blocks with T replaced by the identity: what they do to x (B, T, D)."""
    context = model._context(torch.zeros(1, 24, dtype=torch.long), None, None)
    return lambda x: model.blocks[0](x, None, context)[0][0]


def test_impulses_through_the_residual_path(monkeypatch):
    """Blocks of 4, six of them: an impulse comes out 1, 0.5, 0.75, ... towards 2/3, half of it in the closed block."""
    monkeypatch.setattr(Walk, "finish", lambda walk, u, o: (u, torch.zeros_like(u)))
    impulse = torch.zeros(2, 1, 24, 16, dtype=torch.float64)
    impulse[0, 0, 5, 3] = 1  # in block 1
    impulse[1, 0, 2, 3] = 1  # in block 0, which is read twice
    forget = identity(model_of(alpha=0.0, alpha_form="fixed", **PUBLISHED))
    assert torch.equal(forget(impulse[0]), impulse[0, 0])
    keep = identity(model_of(alpha=0.5, alpha_form="fixed", **PUBLISHED))
    steady = [0.0, 1.0, 0.5, 0.75, 0.625]
    inner, first = keep(impulse[0])[1::4, 3].tolist(), keep(impulse[1])[2::4, 3].tolist()
    assert inner[:5] == steady
    assert first[:5] == [1.5, 1.25, 1.375, 1.3125, 1.34375]
    uniform = identity(model_of(alpha=0.5, alpha_form="fixed", **{**PUBLISHED, "closing": "uniform"}))
    assert uniform(impulse[0])[1::4, 3].tolist() == [*steady, 0.6875]
    # In the last block c = 0.5 p + x stands alone, as T(c).
    assert inner[5] == 0.5 * inner[3]
    assert first[5] == 0.5 * first[3]


def test_what_is_taken_over_cannot_explode():
    """Hundred windows of the published form at alpha = 1, and of the bounded forms as far up as they go."""
    text = text_of(800)

    def largest(**fields):
        model = model_of(block=8, **fields)
        with torch.no_grad():
            for block in model.blocks:
                if fields["alpha_form"] in ("channel", "gated"):
                    block.left.alpha.fill_(50.0)  # 0.5 sigmoid(50) = 0.5
            return float(model(text).state.layers[0][:, 6:].abs().max())

    assert largest(alpha=1.0, alpha_form="fixed", **PUBLISHED) > 1e12
    for form in ("channel", "gated"):
        assert largest(alpha=0.4, alpha_form=form, normed=False, mlp="gelu") < 1e4
        assert largest(alpha=0.4, alpha_form=form, mlp="gelu") < 1e4


def test_alpha_begins_where_it_is_told_and_is_told_back():
    u = torch.randn(1, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for form, shape in (("channel", (16,)), ("learned", (1,))):
        left = model_of(alpha=0.3, alpha_form=form).blocks[0].left
        torch.testing.assert_close(left.values(u).detach(), torch.full(shape, 0.3, dtype=torch.float64))
    left = model_of(alpha=0.3, alpha_form="gated").blocks[0].left
    left.gate.weight.data.zero_()
    torch.testing.assert_close(left.values(u).detach(), torch.full((1, 3, 16), 0.3, dtype=torch.float64))
    left.gate.weight.data.fill_(1.0)
    values = left.values(u).detach()
    assert values.std() > 1e-3
    assert ((values > 0) & (values < 0.5)).all()
    assert torch.equal(values[..., 0], values[..., 7])  # one a head


def test_rotary_windows_know_places_by_distance_and_have_no_end():
    """A thousand blocks further on nothing is different; a table of positions ends, with one clear line."""
    model = model_of(block=8, n_layers=2)
    state = model(text_of(20)).state
    further = state._replace(position=state.position + 8000)
    more = text_of(30, seed=1)
    assert torch.equal(model(more, state=further).logits, model(more, state=state).logits)
    assert not torch.equal(model(more, state=state._replace(position=state.position + 1)).logits[:, :1],
                           model(more, state=state).logits[:, :1])  # fmt: skip
    table = model_of(block=8, positions="table", table=20)
    state = table(text_of(20)).state
    for read in (lambda: table(text_of(21)), lambda: table(text_of(1), state=state)):
        with pytest.raises(UserError, match=r"a text of 21 tokens: the table of positions has 20 rows") as error:
            read()
        assert "\n" not in str(error.value)


GPT = {**PUBLISHED, "positions": "table", "alpha": 0.0, "alpha_form": "fixed"}
COUNTS = [  # the note's counts, less the 10 x d head of the classifier, which is not a language model's
    (53_664 - 320, 256, 32, 1, 8, {**GPT, "table": 1024, "block": 32}),
    (90_720 - 320, 256, 32, 4, 8, {**GPT, "table": 1024, "block": 0}),
    (508_704, 16, 96, 1, 16, {**GPT, "table": 4128, "block": 32, "alpha": 0.5}),
    (508_705, 16, 96, 1, 16, {**GPT, "table": 4128, "block": 32, "alpha": 0.5, "alpha_form": "learned"}),
    (1_893_888, 65, 384, 1, 64, {**GPT, "table": 256, "block": 1}),
    (1_795_584, 65, 384, 1, 64, {**GPT, "positions": "none", "block": 1}),
    (10_745_088, 65, 384, 6, 64, {**GPT, "table": 256, "block": 0}),
]


@pytest.mark.parametrize(("count", "vocabulary", "width", "layers", "head", "fields"), COUNTS)
def test_parameters_of_the_published_models(count, vocabulary, width, layers, head, fields):
    config = RecurrentTransformerConfig(
        vocab_size=vocabulary, d_model=width, n_layers=layers, head_dim=head, recurrence=Recurrence(**fields)
    )
    assert count_parameters(config).total == count
    with torch.device("meta"):
        assert sum(x.numel() for x in build_model(config).parameters()) == count


def note_flops(length, width, layers=1, block=0, accumulate=False):
    """A sample's by the closed forms of the note, which leave the constants of the linear layers out."""
    if not block:
        return layers * (length**2 * width + length * width**2)
    if block == 1:
        return layers * length * (4 * width + 2 * width**2)
    return layers * length / block * (4 * width * block**2 + 2 * block * width**2 + 2 * accumulate)


def test_flops_of_the_published_models():
    """The note's figures by its own forms, and what is really multiplied: every linear layer, and every token twice."""
    for found, printed in [
        (note_flops(256, 384), 6.29e7), (note_flops(256, 384, 6), 3.77e8), (note_flops(256, 384, block=1), 7.59e7),
        (note_flops(1024, 32, 4), 1.38e8), (note_flops(1024, 32, block=32), 6.29e6),
        (note_flops(4128, 96, block=32, accumulate=True), 1.27e8),
    ]:  # fmt: skip
        assert found == pytest.approx(printed, rel=0.006)

    def sample(length, width, layers, block, vocabulary):
        recurrence = Recurrence(**{**GPT, "positions": "none", "block": block})
        config = RecurrentTransformerConfig(
            vocab_size=vocabulary, d_model=width, n_layers=layers, head_dim=8, recurrence=recurrence
        )
        head = 2 * vocabulary * width
        return (flops_per_token(config, "prefill", length) - head) * length

    # 24 D² a token and layer, and a causal half of 4 T D, where the specification counts whole windows
    assert sample(256, 384, 6, 0, 65) == pytest.approx(6 * 256 * (24 * 384**2 + 4 * 384 * 128.5))
    assert sample(256, 384, 1, 1, 65) == pytest.approx(256 * 48 * 384**2, rel=0.01)
    assert sample(256, 384, 6, 0, 65) / sample(256, 384, 1, 1, 65) == pytest.approx(3.3, abs=0.2)


def test_products_are_counted_as_they_are_made():
    """Those of 21 tokens in blocks of 8, counted by torch; attention, which kernels count unlike, by hand."""
    from torch.utils.flop_counter import FlopCounterMode

    text = text_of(21)
    for fields in ({"alpha": 0.0, "alpha_form": "fixed"}, {}, {"alpha_form": "gated", "normed": False}):
        model = model_of(block=8, **fields)
        with FlopCounterMode(display=False) as counter:
            model(text)
        found = counter.get_flop_counts()["Global"]
        products = sum(count for name, count in found.items() if "attention" not in str(name))
        right = [t % 8 + 1 + (8 if t >= 8 else 0) for t in range(21)]
        left = [t % 8 + 1 for t in range(21)]
        expected = 21 * flops_per_token(model.config, "prefill", 21) - 4 * 16 * sum(right + left)
        skipped = 2 * 16 * 2 * 8 if fields.get("alpha_form") == "gated" else 0  # the first block has nothing to gate
        assert products == pytest.approx(expected - skipped)


@pytest.mark.parametrize(
    ("recurrence", "words"),
    [
        ({"alpha": 0.7}, "alpha = 0.7: alpha_form = 'channel' keeps it between 0 and 0.5"),
        ({"alpha": 0.0}, "alpha = 0.0: alpha_form = 'channel' keeps it between 0 and 0.5"),
        ({"alpha": 1.5, "alpha_form": "fixed"}, "alpha = 1.5: expected one from 0 to 1"),
        ({"positions": "table"}, "positions = 'table' with table = None"),
        ({"table": 9}, "positions = 'rotary' with table = 9"),
        ({"block": -1}, "block = -1"),
        ({"window": 3}, "unknown key 'recurrence.window'"),
    ],
)
def test_bad_input_is_one_clear_line(recurrence, words):
    values = {"arch": "recurrent_transformer", "d_model": 128, "n_layers": 1, "recurrence": recurrence}
    with pytest.raises(UserError) as error:
        parse(ModelConfig, values, source="train.toml")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
