"""The Hopper kernels of `decay_attention`, run on the CPU by gluon_emulator.py: through the operator, against float64.

On a Hopper GPU itself they are what tests/ops/interpreted tests there.
"""

import importlib

import pytest
import torch

from linscale.ops import backend
from linscale.ops.launch import Launch
from linscale.ops.numerics import (
    TOLERANCE,
    Case,
    cases,
    changing,
    check,
    contaminated,
    decay_attention_by,
    make_problem,
    quick_cases,
    reference_results,
    relative_errors,
    results,
)

pytest.importorskip("triton", reason="Triton is made for Linux alone")
pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper", reason="this Triton has no Gluon")

from tests.quick import quick

from .gluon_emulator import run

hopper = importlib.import_module("linscale.ops.decay_attention.hopper")
walks = importlib.import_module("linscale.ops.decay_attention.kernels.hopper_walk")
KINDS = ("none", "head", "token", "channel")
CPU = torch.device("cpu")
kernels = decay_attention_by("triton")


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels that run, in the emulator; the device has four multiprocessors."""
    names = []

    def launch(self, pieces, tensors):
        names.append(self.kernel.fn.__name__)
        run(self.kernel, pieces * self.programs, tensors, self.numbers, self.constants, self.warps, self.stages)

    monkeypatch.setattr(Launch, "__call__", launch)
    monkeypatch.setattr(hopper, "obstacle", lambda device: None)
    monkeypatch.setattr(hopper, "multiprocessors", lambda device: 4)
    monkeypatch.setattr(backend, "triton_obstacle", lambda device_type, index: None)
    return names


def segmented(monkeypatch, count):
    monkeypatch.setattr(hopper, "cut", lambda heads, chunks, processors: min(count, chunks))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "situation"), sorted({(case.kind, case.situation) for case in quick_cases()}))
def test_errors_are_within_the_bounds(kind, situation, launched, monkeypatch):
    """Four chunks with documents in them; else three, the last one short."""
    segmented(monkeypatch, 2)
    found = check(Case(kind, 200 if situation == "packed" else 150, situation, torch.bfloat16), kernels, CPU)
    assert not found.failures, found.errors
    assert any(name.startswith("hopper") for name in launched)


def not_learned(q, k, v, log_decay, *others):
    """The kernels where log_decay gets no gradient, but for one of zeros that `results` asks for."""
    o, final = kernels(q, k, v, log_decay.detach(), *others)
    return o + 0.0 * log_decay.to(o.dtype).sum(), final


@pytest.mark.slow
@pytest.mark.parametrize("situation", cases.SITUATIONS)
@pytest.mark.parametrize("kind", ["head", "token"])
def test_decays_that_are_not_learned(kind, situation, launched, monkeypatch):
    """What each segment adds to the gradients of states is then summed, per head, on the way that gives dq."""
    segmented(monkeypatch, 3)
    found = check(Case(kind, 200, situation, torch.bfloat16), not_learned, CPU)
    assert set(found.failures) <= {"dlog_decay"}, found.errors
    walk, join = "hopper_walk_kernel", "join_kernel"
    back = [walk, join] if kind == "head" else [walk, join, walk]
    assert launched == [walk, join, walk, *back, "hopper_grads_kernel"]


@pytest.mark.slow
@pytest.mark.parametrize("situation", ["strong", "packed"])
def test_what_has_faded_is_not_missed(situation, launched, monkeypatch):
    """What segments pass on is found from the steps of which something is left, to the same bits as from all."""
    segmented(monkeypatch, 2)
    problem = make_problem(Case("head", 700, situation, torch.bfloat16), CPU)
    problem = problem._replace(log_decay=torch.tensor([-3.0, -0.9]))
    few = [results(function, problem) for function in (kernels, not_learned)]
    monkeypatch.setattr(walks, "LOST", 1e4)
    every = [results(function, problem) for function in (kernels, not_learned)]
    assert all(torch.equal(x, b[name]) for a, b in zip(few, every, strict=True) for name, x in a.items())


@pytest.mark.parametrize("length", quick([1, 63, 64, 65], 65))
@pytest.mark.parametrize("kind", KINDS)
def test_lengths(kind, length, launched):
    found = check(Case(kind, length, "ordinary", torch.bfloat16), kernels, CPU)
    assert not found.failures, found.errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "K", "V"),
    [
        ("none", 128, 64),
        ("none", 64, 128),
        ("none", 256, 128),
        ("head", 64, 128),
        ("token", 128, 64),
        ("none", 128, 256),
        ("channel", 128, 128),
    ],
)
def test_widths(kind, K, V, launched, monkeypatch):
    segmented(monkeypatch, 2)
    found = check(Case(kind, 100, "ordinary", torch.bfloat16, K, V), kernels, CPU)
    assert not found.failures, found.errors
    assert any(name.startswith("hopper") for name in launched)


@pytest.mark.slow
def test_decays_in_bf16(launched, monkeypatch):
    segmented(monkeypatch, 2)
    found = check(Case("channel", 200, "ordinary", torch.bfloat16, decay_dtype=torch.bfloat16), kernels, CPU)
    assert not found.failures, found.errors


@pytest.mark.slow
def test_a_strong_head_beside_a_mild_one(launched, monkeypatch):
    """It is done again by the second launch, and what the first one left of it does not show."""
    segmented(monkeypatch, 2)
    problem = make_problem(Case("channel", 200, "ordinary", torch.bfloat16), CPU)
    problem = problem._replace(log_decay=problem.log_decay * torch.tensor([1.0, 12.0])[:, None])
    errors = relative_errors(results(kernels, problem), *reference_results(problem))
    assert all(error <= TOLERANCE[torch.bfloat16][name] for name, error in errors.items()), errors


@pytest.mark.slow
@pytest.mark.parametrize("situation", ["ordinary", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_runs_give_the_same_bits_and_nothing_unwritten_is_read(kind, situation, launched, monkeypatch):
    segmented(monkeypatch, 3)
    problem = make_problem(Case(kind, 200, situation, torch.bfloat16), CPU)
    for function in (kernels, not_learned) if kind == "head" else (kernels,):
        assert changing(function, problem) == []
        assert contaminated(function, problem) == []


def test_what_they_do_not_take_goes_elsewhere(launched):
    q = torch.randn(1, 8, 2, 48, dtype=torch.bfloat16)
    assert not hopper.serves(call_of(q, q, q, None))
    wide = torch.randn(1, 8, 2, 65, dtype=torch.bfloat16)[..., :64]  # rows 130 bytes apart
    assert not hopper.serves(call_of(wide, wide, wide, None))
    assert not hopper.serves(call_of(q.float(), q.float(), q.float(), None))


def test_a_gpu_of_amd_that_says_9_0_is_none_of_hoppers(monkeypatch):
    monkeypatch.setattr(hopper, "interpreting", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(hopper, "TESTED", (tuple(int(part) for part in hopper.triton.__version__.split(".")[:2]),))
    obstacle, device = hopper.obstacle.__wrapped__, torch.device("cuda", 0)
    assert obstacle(device) is None
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "NVIDIA" in obstacle(device)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_slices_that_cannot_be_copied_16_bytes_at_a_time(kind, launched, monkeypatch):
    """They begin anywhere, and their tokens are further apart than those of the copies that are made of them."""
    segmented(monkeypatch, 2)
    problem = make_problem(Case(kind, 150, "ordinary", torch.bfloat16), CPU)
    decay = cut_out(problem.log_decay) if kind == "channel" else problem.log_decay
    q, k, v, do = (cut_out(x) for x in (problem.q, problem.k, problem.v, problem.do))
    assert hopper.serves(call_of(q, k, v, decay))
    whole, sliced = results(kernels, problem), results(kernels, problem._replace(q=q, k=k, v=v, log_decay=decay, do=do))
    assert all(torch.equal(x, sliced[name]) for name, x in whole.items())


def cut_out(x):
    """x as a slice of a wider tensor, two entries behind an address that 16 divides; what is around it is NaN."""
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan)
    slice = wide[..., 2 : 2 + x.shape[-1]]
    return slice.copy_(x)


@pytest.mark.slow
def test_a_batch_of_one_from_rows_an_odd_number_apart(launched, monkeypatch):
    """Its gradient counts as contiguous, but with its strides Triton cannot copy 16 bytes at a time: it fails."""
    T, H, V = 100, 2, 64
    strides = []
    make = hopper._grads
    monkeypatch.setattr(hopper, "_grads", lambda plan, do, *others: strides.append(do) or make(plan, do, *others))
    q, k, v = (torch.randn(1, T, H, V).bfloat16().requires_grad_() for _ in range(3))
    do = torch.randn(2, T * H * V + 1).bfloat16()[:, : T * H * V].unflatten(1, (T, H, V))[:1]
    assert do.is_contiguous()
    assert do.stride(0) % 16
    o, _ = kernels(q, k, v, None, None, None, 1.0)
    o.backward(do)
    assert strides == [(T * H * V, H * V, V, 1)]


def test_decays_of_heads_at_any_stride(launched):
    problem = make_problem(Case("head", 100, "strong", torch.bfloat16), CPU)
    apart = problem.log_decay.new_full((4,), torch.nan)[::2].copy_(problem.log_decay)
    equal = problem.log_decay[:1].expand(2)
    for decay in (apart, equal):
        whole = results(kernels, problem._replace(log_decay=decay.clone(memory_format=torch.contiguous_format)))
        found = results(kernels, problem._replace(log_decay=decay))
        assert all(torch.equal(x, found[name]) for name, x in whole.items())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["head", "channel"])  # one copy of them is made for all
def test_boundaries_at_any_stride(kind, launched, monkeypatch):
    segmented(monkeypatch, 2)
    problem = make_problem(Case(kind, 150, "packed", torch.bfloat16), CPU)
    apart = torch.stack([problem.cu_seqlens, problem.cu_seqlens * 0 - 1], dim=1)[:, 0]
    whole, found = results(kernels, problem), results(kernels, problem._replace(cu_seqlens=apart))
    assert all(torch.equal(x, found[name]) for name, x in whole.items())


def call_of(q, k, v, g):
    return importlib.import_module("linscale.ops.decay_attention.layout").Call(q, k, v, g, None, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_for_any_sizes(kind, launched):
    """Sizes are symbols then, heads too."""
    torch.compiler.reset()

    def call(q, k, v, decay):
        o, final = kernels(q, k, v, decay, None, None, 0.125)
        return o.float().square().sum() + final.square().sum()

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch, length, heads in ((2, 70, 2), (3, 40, 3)):
        q, k, v = (torch.randn(batch, length, heads, 64).bfloat16().requires_grad_() for _ in range(3))
        steps = (batch, length, heads)
        shape = {"none": None, "head": (heads,), "token": steps, "channel": (*steps, 64)}[kind]
        decay = None if shape is None else -torch.rand(shape)
        found = [torch.autograd.grad(function(q, k, v, decay), (q, k, v)) for function in (call, compiled)]
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_without_a_break_is_the_same(kind, packed, launched, monkeypatch):
    """What the forward pass is said to keep is what it keeps: see `kept` in passes.py."""
    segmented(monkeypatch, 2)
    torch.compiler.reset()
    problem = make_problem(Case(kind, 150, "packed" if packed else "ordinary", torch.bfloat16), CPU)
    leaves = [x for x in (problem.q, problem.k, problem.v, problem.log_decay, problem.state) if x is not None]

    def call(*tensors):
        q, k, v, *decay, state = tensors
        o, final = kernels(q, k, v, decay[0] if decay else None, state, problem.cu_seqlens, problem.scale)
        return o.float().square().sum() + final.square().sum()

    found = []
    for function in (call, torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=False)):
        tensors = [x.detach().requires_grad_() for x in leaves]
        found.append(torch.autograd.grad(function(*tensors), tensors))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
