"""`delta_rule`: chunks against the loop over time, and that loop against least squares and the sum of writes."""

import importlib
import itertools

import pytest
import torch
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from linscale.ops import decay_attention, delta_rule, delta_rule_step
from linscale.ops.delta_rule.inverse import unit_lower_inverse

passes = importlib.import_module("linscale.ops.delta_rule.passes")
KINDS = ("none", "head", "token")
BOUNDARIES = [0, 1, 6, 70, 134, 150]


def inputs(kind, *, batch=2, length=100, heads=2, key=8, value=5, documents=None, dtype=torch.float64, strength=3.0):
    """q, k, v, beta, log_decay, state; keys resemble each other, some beta are 0 and 1."""
    g = torch.Generator().manual_seed(length + 7 * heads)
    q, k = (torch.randn(batch, length, heads, key, generator=g, dtype=torch.float64) for _ in range(2))
    v = torch.randn(batch, length, heads, value, generator=g, dtype=torch.float64)
    beta = torch.rand(batch, length, heads, generator=g, dtype=torch.float64)
    beta[:, ::5], beta[:, 3::7] = 0.0, 1.0
    shape = {"head": (heads,), "token": (batch, length, heads)}.get(kind)
    log_decay = None if shape is None else -strength * torch.rand(shape, generator=g, dtype=torch.float64) ** 4
    state = torch.randn(documents or batch, heads, key, value, generator=g, dtype=torch.float64)
    tensors = [x if x is None else x.to(dtype) for x in (q, normalize(k + 0.7, dim=-1), v, beta, log_decay, state)]
    return [x if x is None else x.requires_grad_() for x in tensors]


def run_with_gradients(tensors, **options):
    """o, final state, and the gradient of a fixed functional of both for every input."""
    q, k, v, beta, log_decay, state = tensors
    o, final = delta_rule(q, k, v, beta, log_decay, state=state, scale=0.7, **options)
    weights = [torch.linspace(-1, 2, x.numel(), dtype=x.dtype).sin().view_as(x) for x in (o, final)]
    total = (o * weights[0]).sum() + (final * weights[1]).sum()
    return [o, final, *torch.autograd.grad(total, [x for x in tensors if x is not None])]


class Counter(TorchDispatchMode):
    """Counts what is called of linscale's operators."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "linscale":
            self.calls[function._schema.name] = self.calls.get(function._schema.name, 0) + 1
        return function(*args, **(kwargs or {}))


def agree(found, exact, tolerance=1e-11):
    for a, b in zip(found, exact, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(
            a.double(), b.double(), rtol=tolerance, atol=tolerance * float(b.detach().abs().max())
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 3, 5, 64, 65, 200])
def test_chunks_equal_the_definition(kind, length):
    tensors = inputs(kind, length=length)
    agree(run_with_gradients(tensors, backend="chunk"), run_with_gradients(tensors, backend="reference"))


def test_long_sequences_run_in_segments_and_chunks_of_any_size(monkeypatch):
    tensors = inputs("token", length=150)
    exact = run_with_gradients(tensors, backend="reference")
    for size in (4, 16):
        monkeypatch.setattr(passes, "CHUNK", size)
        monkeypatch.setattr(passes, "SEGMENT", 64)
        agree(run_with_gradients(tensors), exact)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_equal_separate_ones(kind):
    tensors = inputs(kind, batch=1, length=150, documents=5)
    cu_seqlens = torch.tensor(BOUNDARIES, dtype=torch.int32)
    packed = run_with_gradients(tensors, cu_seqlens=cu_seqlens)
    agree(packed, run_with_gradients(tensors, cu_seqlens=cu_seqlens, backend="reference"))
    *rows, log_decay, state = tensors
    for document, (start, end) in enumerate(itertools.pairwise(BOUNDARIES)):
        own = log_decay if kind in ("none", "head") else log_decay[:, start:end]
        first = state[document : document + 1]
        alone = delta_rule(*(x[:, start:end] for x in rows), own, state=first, scale=0.7)
        agree([packed[0][:, start:end], packed[1][document : document + 1]], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_state_carries_on_and_steps_equal_the_whole(kind):
    *rows, log_decay, state = (x if x is None else x.detach() for x in inputs(kind, length=90))
    whole, final = delta_rule(*rows, log_decay, state=state, scale=0.7)

    def decay(span):
        return log_decay if kind in ("none", "head") else log_decay[:, span]

    outputs, state = [], state
    first = slice(0, 70)
    o, state = delta_rule(*(x[:, first] for x in rows), decay(first), state=state, scale=0.7)
    outputs.append(o)
    for t in range(70, 90):
        before = state.clone()
        o, after = delta_rule_step(*(x[:, t] for x in rows), decay(t), state, scale=0.7)
        assert torch.equal(state, before)
        state = after
        outputs.append(o[:, None])
    agree([torch.cat(outputs, 1), state], [whole, final])


def test_orthogonal_keys_are_remembered_exactly_and_a_second_write_replaces_the_first():
    keys = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    k = torch.cat([keys, keys[:4]])[None, :, None]
    v = torch.randn(1, 12, 1, 5, dtype=torch.float64)
    _, state = delta_rule(k, k, v, torch.ones(1, 12, 1, dtype=torch.float64))
    torch.testing.assert_close(keys @ state[0, 0], torch.cat([v[0, 8:, 0], v[0, 4:8, 0]]), rtol=0, atol=1e-12)


def test_the_definition_is_gradient_descent_on_the_error_of_recall():
    q, k, v, beta, log_decay, state = (x.detach() for x in inputs("token", length=9))
    _, final = delta_rule(q, k, v, beta, log_decay, state=state, backend="reference")
    for t in range(9):
        held = (log_decay[:, t].exp()[..., None, None] * state).requires_grad_()
        loss = 0.5 * (torch.einsum("bhkv,bhk->bhv", held, k[:, t]) - v[:, t]).square().sum()
        state = held.detach() - beta[:, t, :, None, None] * torch.autograd.grad(loss, held)[0]
    torch.testing.assert_close(final, state, rtol=0, atol=1e-12)


def test_under_a_decay_that_forgets_all_only_the_last_step_is_read():
    q, k, v, beta, _, state = inputs("none", length=130, dtype=torch.float32)
    for shut in (-300.0, -1e6, -torch.inf):
        tensors = [q, k, v, beta, torch.full((2, 130, 2), shut).requires_grad_(), state]
        found = run_with_gradients(tensors)
        expected = 0.7 * (q * k).sum(-1, keepdim=True) * beta[..., None] * v
        torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-6)
        assert all(x.isfinite().all() for x in found)


def test_steps_that_write_nothing_or_shut_for_good_leave_no_trace_in_float32():
    """After a step of -1e6 the float32 running sum of decays has a spacing of 0.06."""
    tensors = [x.detach() for x in inputs("token", length=150, strength=0.3)]
    tensors[4][:, 1::16] = -1e6
    tensors[3][:, 40:60] = 0
    exact = run_with_gradients([x.requires_grad_() for x in tensors], backend="reference")
    agree(run_with_gradients([x.detach().float().requires_grad_() for x in tensors]), exact, 2e-5)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_keys_all_alike_stay_exact_in_float32(beta):
    """Powers of the matrix that is inverted reach 1e17 here, its inverse 2."""
    q, k, v, betas, _, state = (x if x is None else x.detach() for x in inputs("none", length=200))
    tensors = [q, k[:, :1].expand_as(k), v, torch.full_like(betas, beta), torch.full_like(betas, -0.01), state]
    exact = run_with_gradients([x.requires_grad_() for x in tensors], backend="reference")
    agree(run_with_gradients([x.detach().float().requires_grad_() for x in tensors]), exact, 1e-4)
    a = beta * torch.ones(64, 64).tril(-1)
    assert (unit_lower_inverse(a) - torch.linalg.inv(a.double() + torch.eye(64))).abs().max() < 1e-5


@pytest.mark.parametrize("size", [4, 8, 64])
def test_inverse_equals_that_of_lapack(size):
    a = torch.randn(3, 2, size, size, dtype=torch.float64).tril(-1) / size**0.5
    expected = torch.linalg.solve_triangular(a, torch.eye(size).double().expand_as(a), upper=False, unitriangular=True)
    torch.testing.assert_close(unit_lower_inverse(a), expected, rtol=1e-10, atol=1e-10)


def test_bfloat16_stays_close_and_keeps_dtypes():
    exact = run_with_gradients(inputs("token", length=200))
    tensors = [x.detach() for x in inputs("token", length=200)]
    narrow = [x.to(torch.bfloat16) if i < 3 else x.float() for i, x in enumerate(tensors)]
    with torch.autocast("cpu", torch.bfloat16):
        found = run_with_gradients([x.requires_grad_() for x in narrow])
    assert [x.dtype for x in found] == [torch.bfloat16, torch.float32] + [torch.bfloat16] * 3 + [torch.float32] * 3
    for a, b in zip(found, exact, strict=True):
        assert (a.double() - b).norm() < 0.01 * b.norm()


def test_where_nothing_is_overwritten_it_is_decay_attention():
    """Orthogonal keys, each once, with decay: (I - β k kᵀ) touches nothing that is held."""
    k = torch.eye(16, dtype=torch.float64)[None, :, None].expand(2, -1, 3, -1)
    q, v, beta, log_decay = (x.detach() for x in (*inputs("token", length=16, heads=3, key=16)[0:3:2],
                                                  *inputs("token", length=16, heads=3)[3:5]))  # fmt: skip
    found = delta_rule(q, k, v, beta, log_decay)
    agree(found, decay_attention(q, k * beta[..., None], v, log_decay))


@pytest.mark.parametrize("documents", [None, [0, 9, 70]])
def test_compilers_see_one_node_of_the_right_shapes(documents):
    cu_seqlens = None if documents is None else torch.tensor(documents)
    *rows, state = inputs("token", batch=1, length=70, documents=documents and 2)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.linscale.delta_rule, (*rows, state, cu_seqlens, 0.7, "auto"), test_utils=checks)
    o, final, *kept = torch.ops.linscale.delta_rule(*rows, state, cu_seqlens, 0.7, "auto")
    rest = *(x.detach() for x in (o, final, *kept, *rows)), cu_seqlens, 0.7, "auto"
    torch.library.opcheck(torch.ops.linscale.delta_rule_backward, rest, test_utils=(checks[0], checks[2]))


def test_checkpointing_keeps_what_it_gives_and_not_what_it_is_made_of():
    tensors, made = inputs("token", length=70), []

    def call(q, k, v, beta, log_decay, state):
        made.append(1)
        return delta_rule(q.sin(), k, v, beta, log_decay, state=state)[0].sin()

    def contexts():
        return create_selective_checkpoint_contexts([torch.ops.linscale.delta_rule.default])

    expected = torch.autograd.grad(call(*tensors).sum(), tensors)
    with Counter() as counter:
        o = checkpoint(call, *tensors, use_reentrant=False, context_fn=contexts)
        agree(torch.autograd.grad(o.sum(), tensors), expected)
    assert len(made) == 3
    assert counter.calls == {"linscale::delta_rule": 1, "linscale::delta_rule_backward": 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"beta": torch.ones(2, 4)}, r"beta is \(2, 4\), expected \(B, T, H\) = \(2, 4, 3\)"),
        ({"log_decay": torch.zeros(2, 4, 3, 8)}, "log_decay is .* expected None, or"),
        ({"state": torch.zeros(2, 3, 8, 8)}, r"state is .* expected \(2, 3, 8, 5\)"),
        ({"v": torch.zeros(2, 5, 3, 5)}, "expected q, k"),
        ({"backend": "triton", "v": torch.zeros(2, 4, 3, 5).double()}, "backend = 'triton' cannot run here"),
        ({"backend": "quick"}, "backend = 'quick': expected one of"),
    ],
)
def test_what_does_not_fit_is_named(change, words):
    given = {"q": torch.zeros(2, 4, 3, 8), "k": torch.zeros(2, 4, 3, 8), "v": torch.zeros(2, 4, 3, 5)}
    with pytest.raises(ValueError, match=words):
        delta_rule(**{**given, "beta": torch.ones(2, 4, 3), **change})
