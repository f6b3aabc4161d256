"""The Triton kernels of `decay_attention`: against float64, and the ways they are called."""

import pytest
import torch

from linscale.models import CONFIGS, build_model
from linscale.ops import decay_attention, decay_attention_step
from linscale.ops.backend import interpreting
from linscale.ops.decay_attention import layout
from linscale.ops.decay_attention.chunk import chunk_decay_attention
from linscale.ops.numerics import NAMES, TOLERANCE

KINDS = ("none", "head", "token", "channel")
compiled = pytest.mark.skipif(interpreting(), reason="too large for the interpreter")


@pytest.fixture
def segments(monkeypatch):
    """Cut sequences into segments of 64 steps, as long ones are."""
    monkeypatch.setattr(layout, "LEAST_SEGMENT", 64)
    monkeypatch.setattr(layout, "FILL", 1 << 20)


def inputs(kind, shape, device, dtype=torch.float32, documents=None, strongest=0.3):
    """q, k, v, log_decay and state that want gradients. shape: (B, T, H, K, V)."""
    torch.manual_seed(0)
    B, T, H, K, V = shape
    sizes = {"none": None, "head": (H,), "token": (B, T, H), "channel": (B, T, H, K)}[kind]
    g = None if sizes is None else -strongest * torch.rand(sizes, device=device).to(dtype)
    q, k, v = (torch.randn(B, T, H, width, device=device).to(dtype) for width in (K, K, V))
    state = torch.randn(documents or B, H, K, V, device=device)
    return [None if x is None else x.requires_grad_() for x in (q, k, v, g, state)]


def results(tensors, form, cu=None, scale=1.0):
    """o, the final state and all gradients, for gradients of o and of the final state drawn from one seed."""
    q, k, v, g, state = tensors
    o, final = decay_attention(q, k, v, g, state=state, cu_seqlens=cu, scale=scale, backend=form)
    torch.manual_seed(1)
    do, dfinal = torch.randn(o.shape), torch.randn(final.shape)
    leaves = [x for x in tensors if x is not None]
    return [o, final, *torch.autograd.grad([o, final], leaves, [do.to(o), dfinal.to(final)])]


def compare(tensors, cu=None, scale=1.0):
    """Fail unless the kernels agree with the loop in float64."""
    exact = [None if x is None else x.detach().double().requires_grad_() for x in tensors]
    absent = {name for name, x in (("dlog_decay", tensors[3]), ("dstate", tensors[4])) if x is None}
    names = [name for name in NAMES if name not in absent]
    found, expected = results(tensors, "triton", cu, scale), results(exact, "reference", cu, scale)
    for name, a, b in zip(names, found, expected, strict=True):
        error = ((a.double() - b).norm() / b.norm()).item()
        assert error <= TOLERANCE[tensors[0].dtype][name], f"{name}: {error:.1e}"


@pytest.mark.parametrize(
    ("kind", "strongest"), [("none", 0.0), *((kind, most) for kind in KINDS[1:] for most in (0.3, 20.0))]
)
def test_outputs_states_and_gradients(kind, strongest, device, segments):
    compare(inputs(kind, (1, 150, 2, 16, 24), device, strongest=strongest), scale=0.5)


@pytest.mark.parametrize("kind", ["head", "channel"])
def test_documents_shorter_and_longer_than_a_segment(kind, device, segments):
    cu = torch.tensor([0, 1, 4, 133, 150], device=device)
    compare(inputs(kind, (1, 150, 2, 16, 16), device, documents=4), cu)


def test_heads_wider_than_a_tile(device):
    compare(inputs("channel", (1, 33, 1, 40, 72), device))


@pytest.mark.parametrize("kind", ["token", "channel"])
def test_bf16(kind, device):
    compare(inputs(kind, (1, 70, 1, 16, 16), device, torch.bfloat16))


def test_scores_too_small_for_a_scale_of_their_own(device):
    """Subnormal numbers, as closed gates make them, once became infinite scales and gradients that are no numbers."""
    q, k, v, g, state = inputs("channel", (1, 70, 1, 16, 16), device, torch.bfloat16)
    tiny = torch.where(torch.arange(70, device=device) % 3 > 0, 1e-20, 1.0)[:, None, None].to(q)
    tensors = [x.detach().requires_grad_() for x in (q * tiny, k * tiny, v, g, state * 1e-42)]
    compare(tensors)


def test_strided_and_expanded_inputs(device):
    q, k, v, g, state = (x.detach() for x in inputs("channel", (2, 40, 3, 16, 16), device))
    apart = torch.stack([q, k, v], dim=-1)
    tensors = [
        apart[..., 0],
        k[:, :, :1].expand(-1, -1, 3, -1),
        v.transpose(1, 2).contiguous().transpose(1, 2),
        g[:, :1].expand(-1, 40, -1, -1),
        state.mT.contiguous().mT,
    ]
    compare([x.requires_grad_() for x in tensors])


def test_without_a_state_and_without_gradients(device):
    q, k, v, g, _ = (x.detach() for x in inputs("channel", (1, 20, 2, 16, 16), device))
    o, final = decay_attention(q, k, v, g, backend="triton")
    expected, last = decay_attention(q, k, v, g, backend="chunk")
    assert torch.allclose(o, expected, atol=1e-4)
    assert torch.allclose(final, last, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_one_step(kind, device):
    q, k, v, g, state = (None if x is None else x.detach() for x in inputs(kind, (3, 1, 2, 24, 40), device))
    g = g if g is None or g.ndim == 1 else g[:, 0]
    before = state.clone()
    found = decay_attention_step(q[:, 0], k[:, 0], v[:, 0], g, state, scale=0.5, backend="triton")
    expected = decay_attention_step(q[:, 0], k[:, 0], v[:, 0], g, state, scale=0.5, backend="reference")
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    assert torch.equal(state, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_of_the_final_state_where_no_state_came_in(kind, device):
    """In bf16, where states and inputs differ in dtype: what torch.compile asks for in every training step."""
    tensors = inputs(kind, (1, 40, 2, 16, 16), device, torch.bfloat16)
    compare([*(None if x is None else x.detach().requires_grad_() for x in tensors[:4]), None])


@pytest.mark.parametrize("kind", ["head", "channel"])
def test_compiled_without_a_break_is_the_same(kind, device):
    torch.compiler.reset()
    tensors = inputs(kind, (1, 40, 2, 16, 16), device)

    def call(q, k, v, g, state):
        o, final = decay_attention(q, k, v, g, state=state, backend="triton")
        return o.square().sum() + final.square().sum()

    whole = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=False)
    found = torch.autograd.grad(whole(*tensors), tensors)
    expected = torch.autograd.grad(call(*tensors), tensors)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_operators_are_sound_for_the_compiler(device):
    tensors = inputs("channel", (1, 20, 1, 16, 16), device)
    torch.library.opcheck(torch.ops.linscale.decay_attention.default, (*tensors, None, 1.0, True))


def test_gradients_cannot_be_differentiated_again(device):
    q, k, v, g, state = inputs("head", (1, 20, 1, 16, 16), device)
    o, _ = decay_attention(q, k, v, g.detach(), state=state, backend="triton")
    gradients = torch.autograd.grad(o, (q, k, v), torch.ones_like(o).requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        sum(x.sum() for x in gradients).backward()


def test_calls_alike_share_a_plan(device):
    q, k, v, g = (x.detach() for x in inputs("channel", (2, 20, 2, 16, 16), device)[:4])
    plan = layout.Call(q, k, v, g, None, 1.0).plan
    assert layout.Call(k, k, q, g, None, 1).plan is plan
    assert layout.Call(q, k, v, g, None, 0.5).plan is not plan
    spread = g.repeat_interleave(2, -1)[..., ::2]
    assert layout.Call(q, k, v, spread, None, 1.0).plan is plan  # what the kernels cannot take is copied


def test_a_scale_of_nought(device):
    tensors = inputs("token", (1, 20, 1, 16, 16), device)
    assert all(x.isfinite().all() for x in results(tensors, "triton", scale=0.0))


@compiled
def test_a_hundred_thousand_documents(device):
    lengths = torch.randint(1, 12, (100_000,), device=device)
    cu = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    tensors = inputs("channel", (1, int(cu[-1]), 1, 16, 16), device, documents=len(lengths))
    expected = results(tensors, "chunk", cu)
    for a, b in zip(results(tensors, "triton", cu), expected, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


@compiled
@pytest.mark.parametrize("kind", ["head", "channel"])
def test_beyond_two_to_the_31_elements(kind, device):
    B, T, H, K = 2, (1 << 20) + 4096, 8, 128
    q, k, v = (torch.randn(B, T, H, K, device=device, dtype=torch.bfloat16) for _ in range(3))
    g = torch.full((H,), -0.05, device=device)
    g = g if kind == "head" else g[None, None, :, None].expand(B, T, H, K)
    o, final = decay_attention(q, k, v, g)
    late = slice(T - 2048, T)  # what is older has faded by exp(-100)
    gates = g if kind == "head" else g[1:, late].double()
    wide = [x[1:, late].double() for x in (q, k, v)]
    expected, last = chunk_decay_attention(*wide, gates.double(), torch.zeros(1, H, K, K, device=device).double(), None)
    assert (o[1:, -1024:].double() - expected[:, -1024:]).norm() <= 6e-3 * expected[:, -1024:].norm()
    assert (final[1:] - last).norm() <= 6e-3 * last.norm()


@compiled
def test_more_programs_than_a_grid_axis_holds(device):
    compare(inputs("channel", (5000, 3, 16, 16, 16), device))


# In the interpreter those whose kernels differ: a LLaMA has none of them, SUPRA the kernels of TNL.
WHOLE = [each for each in CONFIGS if not interpreting() or each not in ("llama", "linearized")]


@pytest.mark.parametrize("architecture", WHOLE)
def test_models_compile_whole(architecture, device):
    torch.compiler.reset()
    config = CONFIGS[architecture](vocab_size=50, d_model=32, n_layers=2 if interpreting() else 4, head_dim=16, d_ff=48)
    model = build_model(config, seed=0).to(device)
    tokens = torch.randint(50, (1, 20) if interpreting() else (2, 300), device=device)

    def loss(tokens, targets):
        return model(tokens, targets=targets).loss.mean()

    whole = torch.compile(loss, fullgraph=True, backend="aot_eager" if interpreting() else "inductor")
    weights = list(model.parameters())
    found = torch.autograd.grad(whole(tokens[:, :-1], tokens[:, 1:]), weights)
    expected = torch.autograd.grad(loss(tokens[:, :-1], tokens[:, 1:]), weights)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm() + 1e-6
