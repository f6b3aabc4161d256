"""`decay_attention`: every form against the loop over time and against an independent quadratic form; all gradients."""

import importlib

import pytest
import torch

from linscale.ops import decay_attention, decay_attention_step

chunk = importlib.import_module("linscale.ops.decay_attention.chunk")
KINDS = ("none", "head", "token", "channel")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4, torch.bfloat16: 3e-2}


def inputs(kind, *, batch=2, length=100, heads=3, key=8, value=5, documents=None, dtype=torch.float64, strength=3.0):
    """q, k, v, log_decay, state; decays reach down to -strength a step."""
    g = torch.Generator().manual_seed(length + 7 * heads)
    q, k = (torch.randn(batch, length, heads, key, generator=g, dtype=dtype) for _ in range(2))
    v = torch.randn(batch, length, heads, value, generator=g, dtype=dtype)
    shape = {"head": (heads,), "token": (batch, length, heads), "channel": (batch, length, heads, key)}.get(kind)
    log_decay = None if shape is None else -0.01 - strength * torch.rand(shape, generator=g, dtype=dtype) ** 4
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    state = torch.randn(documents or batch, heads, key, value, generator=g, dtype=state_dtype)
    return [x if x is None else x.requires_grad_() for x in (q, k, v, log_decay, state)]


def run_with_gradients(tensors, **options):
    """o, final state, and the gradient of a fixed functional of both for every input."""
    q, k, v, log_decay, state = tensors
    o, final = decay_attention(q, k, v, log_decay, state=state, scale=0.7, **options)
    weights = [torch.linspace(-1, 2, x.numel(), dtype=x.dtype).sin().view_as(x) for x in (o, final)]
    total = (o * weights[0]).sum() + (final * weights[1]).sum()
    leaves = [x for x in tensors if x is not None]
    return [o, final, *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 63, 100, 257])
def test_chunk_equals_reference(kind, length):
    tensors = inputs(kind, length=length)
    for fast, exact in zip(
        run_with_gradients(tensors, backend="chunk"), run_with_gradients(tensors, backend="reference"), strict=True
    ):
        torch.testing.assert_close(fast, exact, rtol=1e-10, atol=TOLERANCE[torch.float64])


@pytest.mark.parametrize("kind", KINDS)
def test_long_sequences_run_in_segments(kind, monkeypatch):
    monkeypatch.setattr(chunk, "segment_tokens", lambda device: 64)
    tensors = inputs(kind, length=230)
    for fast, exact in zip(
        run_with_gradients(tensors, backend="chunk"), run_with_gradients(tensors, backend="reference"), strict=True
    ):
        torch.testing.assert_close(fast, exact, rtol=1e-10, atol=TOLERANCE[torch.float64])


@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_equal_separate_ones(kind):
    cu_seqlens = torch.tensor([0, 1, 6, 70, 134, 150], dtype=torch.int32)
    tensors = inputs(kind, batch=1, length=150, documents=5)
    packed = run_with_gradients(tensors, cu_seqlens=cu_seqlens)
    for fast, exact in zip(
        packed, run_with_gradients(tensors, cu_seqlens=cu_seqlens, backend="reference"), strict=True
    ):
        torch.testing.assert_close(fast, exact, rtol=1e-10, atol=TOLERANCE[torch.float64])
    q, k, v, log_decay, state = tensors
    for document, (start, end) in enumerate(zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)):
        own = log_decay if kind in ("none", "head") else log_decay[:, start:end]
        alone, final = decay_attention(
            q[:, start:end], k[:, start:end], v[:, start:end], own, state=state[document : document + 1], scale=0.7
        )
        torch.testing.assert_close(packed[0][:, start:end], alone, rtol=0, atol=1e-10)
        torch.testing.assert_close(packed[1][document], final[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_reference_equals_the_quadratic_form(kind):
    """o_t = Σ_{s<=t} Σ_c q_tc k_sc exp(G_tc - G_sc) v_s + the decayed first state: written without any recurrence."""
    q, k, v, log_decay, state = (None if x is None else x.detach() for x in inputs(kind, length=40))
    steps = torch.zeros_like(q)
    if log_decay is not None:
        steps = steps + {1: log_decay[..., None], 3: log_decay[..., None], 4: log_decay}[log_decay.ndim]
    total = steps.cumsum(1)
    decay = (total[:, :, None] - total[:, None]).exp() * torch.ones(40, 40).tril()[:, :, None, None]
    scores = torch.einsum("bthk,bshk,btshk->bhts", q, k, decay)
    expected = torch.einsum("bhts,bshv->bthv", scores, v) + torch.einsum("bthk,bhkv->bthv", q * total.exp(), state)
    o, _ = decay_attention(q, k, v, log_decay, state=state, backend="reference")
    torch.testing.assert_close(o, expected, rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_chunk_gradients_against_finite_differences(kind):
    tensors = inputs(kind, batch=1, length=35, heads=1, key=3, value=2, strength=1.0)
    given = [x for x in tensors if x is not None]

    def call(*leaves):
        q, k, v, *rest = leaves
        return decay_attention(q, k, v, rest[0] if len(rest) == 2 else None, state=rest[-1], backend="chunk")

    assert torch.autograd.gradcheck(call, given, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_state_carries_on_and_steps_equal_the_whole(kind):
    q, k, v, log_decay, state = (None if x is None else x.detach() for x in inputs(kind, length=70))
    whole, final = decay_attention(q, k, v, log_decay, state=state)
    decay_at = (lambda span: log_decay) if kind in ("none", "head") else (lambda span: log_decay[:, span])
    head, middle = decay_attention(q[:, :50], k[:, :50], v[:, :50], decay_at(slice(0, 50)), state=state)
    outputs = [head]
    for t in range(50, 70):
        step_decay = log_decay if kind in ("none", "head") else log_decay[:, t]
        o, middle = decay_attention_step(q[:, t], k[:, t], v[:, t], step_decay, middle)
        outputs.append(o[:, None])
    torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=0, atol=1e-10)
    torch.testing.assert_close(middle, final, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_stays_close_and_keeps_dtypes(kind, dtype):
    exact = run_with_gradients(inputs(kind, length=200))
    rounded = [None if x is None else x.detach().to(dtype) for x in inputs(kind, length=200)]
    rounded[4] = rounded[4].float()
    o, final = decay_attention(*rounded[:4], state=rounded[4], scale=0.7)
    assert o.dtype == dtype
    assert final.dtype == torch.float32
    scale = exact[0].abs().max()
    torch.testing.assert_close(o.double() / scale, exact[0].detach() / scale, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("kind", ["head", "token", "channel"])
def test_decay_of_minus_twenty_a_step_and_of_zero_stay_finite(kind):
    """exp(-G) would be e^1280 after 64 steps: the factored form gives inf · 0."""
    q, k, v, log_decay, state = inputs(kind, length=130, dtype=torch.float32)
    for decay in (torch.full_like(log_decay, -20.0), torch.zeros_like(log_decay)):
        tensors = [q, k, v, decay.requires_grad_(), state]
        fast, exact = run_with_gradients(tensors), run_with_gradients(tensors, backend="reference")
        for a, b in zip(fast, exact, strict=True):
            assert a.isfinite().all()
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.detach().abs().max()))


@pytest.mark.parametrize("kind", ["head", "token", "channel"])
def test_gates_that_shut_for_good_do_not_blur_what_follows(kind):
    """After a step of -1e6 the float32 running sum of decays has a spacing of 0.06; after -inf, none at all."""
    q, k, v, log_decay, state = (x.detach() for x in inputs(kind, length=70, strength=0.3))
    for shut in (-300.0, -1e6, -torch.inf):
        log_decay[..., 1::8] = shut  # some heads or channels always shut
        if kind != "head":
            log_decay[:, 5::16] = shut
        exact, final = decay_attention(q, k, v, log_decay, state=state, backend="reference")
        leaves = [x.float().requires_grad_() for x in (q, k, v, log_decay, state)]
        fast = run_with_gradients(leaves)
        assert all(x.isfinite().all() for x in fast)
        for rounded, expected in ((fast[0] / 0.7, exact), (fast[1], final)):
            atol = TOLERANCE[torch.float32] * float(expected.abs().max())
            torch.testing.assert_close(rounded.double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("backend", ["chunk", "reference"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch", "length"), [(0, 5), (2, 0)])
def test_no_sequences_and_no_tokens(kind, backend, batch, length):
    tensors = inputs(kind, batch=batch, length=length)
    o, final = decay_attention(*tensors[:4], state=tensors[4], backend=backend)
    assert o.shape == (batch, length, 3, 5)
    assert torch.equal(final, tensors[4])
    (gradient,) = torch.autograd.grad(o.sum() + 2 * final.sum(), tensors[4])
    assert (gradient == 2).all()


def test_the_backward_pass_keeps_the_inputs_and_little_more():
    leaves = [torch.randn(1, 8192, 1, 16, requires_grad=True) for _ in range(3)]
    o, _ = decay_attention(*leaves, torch.full((1,), -0.1))
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage() for x in o.grad_fn.saved_tensors if x is not None}
    assert sum(x.nbytes() for x in storages.values()) < 1.1 * 3 * leaves[0].nbytes


def test_autocast_does_not_reach_the_recurrence():
    q, k, v, log_decay, state = (x.detach() for x in inputs("channel", length=40, dtype=torch.float32))
    o, final = decay_attention(q, k, v, log_decay, state=state)
    first, after = decay_attention_step(q[:, 0], k[:, 0], v[:, 0], log_decay[:, 0], state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = decay_attention(q, k, v, log_decay, state=state)
        step = decay_attention_step(q[:, 0], k[:, 0], v[:, 0], log_decay[:, 0], state)
    for cast, plain in zip((*again, *step), (o, final, first, after), strict=True):
        assert torch.equal(cast, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_uninitialised_is_read(kind, monkeypatch):
    """Buffers made by empty() are filled with NaN: none may reach a result."""

    def poisoned(make):
        return lambda *args, **options: make(*args, **options).fill_(torch.nan)

    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    for length in (5, 70):
        assert all(x.isfinite().all() for x in run_with_gradients(inputs(kind, length=length)))


def test_causality_and_strided_inputs():
    q, k, v, log_decay, _ = (x.detach() for x in inputs("channel", length=80))
    before, _ = decay_attention(q, k, v, log_decay)
    for x in (q, k, v, log_decay):
        x[:, 50:] -= 1.0
    after, _ = decay_attention(q, k, v, log_decay)
    assert torch.equal(before[:, :50], after[:, :50])
    turned = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v, log_decay)]
    torch.testing.assert_close(decay_attention(*turned)[0], after, rtol=0, atol=1e-12)


def test_bad_shapes_are_named():
    q, k, v, log_decay, state = inputs("channel", length=10)
    with pytest.raises(ValueError, match=r"expected q, k \(B, T, H, K\)"):
        decay_attention(q, k[:, :5], v)
    with pytest.raises(ValueError, match=r"log_decay is \(2, 10, 3, 4\)"):
        decay_attention(q, k, v, log_decay[..., :4])
    with pytest.raises(ValueError, match="state is"):
        decay_attention(q, k, v, state=state[:1])
    with pytest.raises(ValueError, match="one packed row"):
        decay_attention(q, k, v, cu_seqlens=torch.tensor([0, 10]))
    with pytest.raises(ValueError, match="rise strictly from 0 to T = 10"):
        decay_attention(q[:1], k[:1], v[:1], cu_seqlens=torch.tensor([0, 4, 4, 10]))
    for bad in (
        torch.tensor(10),
        torch.tensor([0.0, 10.0]),
        torch.tensor([[0, 10]]),
        torch.tensor([], dtype=torch.int64),
    ):
        with pytest.raises(ValueError, match=r"cu_seqlens must be \(N\+1,\) int32 or int64"):
            decay_attention(q[:1], k[:1], v[:1], cu_seqlens=bad)
    with pytest.raises(ValueError, match="backend = 'fast'"):
        decay_attention(q, k, v, backend="fast")
