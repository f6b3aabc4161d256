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
    changing,
    check,
    contaminated,
    decay_attention_by,
    make_problem,
    reference_results,
    relative_errors,
    results,
)

pytest.importorskip("triton", reason="Triton is made for Linux alone")
pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper", reason="this Triton has no Gluon")

from .gluon_emulator import run

hopper = importlib.import_module("linscale.ops.decay_attention.hopper")
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


@pytest.mark.parametrize("situation", ["ordinary", "strong", "zero", "equal keys", "large", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_within_the_bounds(kind, situation, launched, monkeypatch):
    segmented(monkeypatch, 2)
    found = check(Case(kind, 200, situation, torch.bfloat16), kernels, CPU)
    assert not found.failures, found.errors
    assert any(name.startswith("hopper") for name in launched)


@pytest.mark.parametrize("length", [1, 63, 64, 65])
@pytest.mark.parametrize("kind", KINDS)
def test_lengths(kind, length, launched):
    found = check(Case(kind, length, "ordinary", torch.bfloat16), kernels, CPU)
    assert not found.failures, found.errors


@pytest.mark.parametrize(
    ("kind", "K", "V"),
    [("none", 256, 128), ("head", 64, 128), ("token", 128, 64), ("none", 128, 256), ("channel", 128, 128)],
)
def test_widths(kind, K, V, launched):
    found = check(Case(kind, 100, "ordinary", torch.bfloat16, K, V), kernels, CPU)
    assert not found.failures, found.errors
    assert any(name.startswith("hopper") for name in launched)


def test_decays_in_bf16(launched, monkeypatch):
    segmented(monkeypatch, 2)
    found = check(Case("channel", 200, "ordinary", torch.bfloat16, decay_dtype=torch.bfloat16), kernels, CPU)
    assert not found.failures, found.errors


def test_a_strong_head_beside_a_mild_one(launched, monkeypatch):
    """It is done again by the second launch, and what the first one left of it does not show."""
    segmented(monkeypatch, 2)
    problem = make_problem(Case("channel", 200, "ordinary", torch.bfloat16), CPU)
    problem = problem._replace(log_decay=problem.log_decay * torch.tensor([1.0, 12.0])[:, None])
    errors = relative_errors(results(kernels, problem), *reference_results(problem))
    assert all(error <= TOLERANCE[torch.bfloat16][name] for name, error in errors.items()), errors


@pytest.mark.parametrize("situation", ["ordinary", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_runs_give_the_same_bits_and_nothing_unwritten_is_read(kind, situation, launched, monkeypatch):
    segmented(monkeypatch, 3)
    problem = make_problem(Case(kind, 200, situation, torch.bfloat16), CPU)
    assert changing(kernels, problem) == []
    assert contaminated(kernels, problem) == []


def test_what_they_do_not_take_goes_elsewhere(launched):
    q = torch.randn(1, 8, 2, 48, dtype=torch.bfloat16)
    assert not hopper.serves(call_of(q, q, q, None))
    wide = torch.randn(1, 8, 2, 65, dtype=torch.bfloat16)[..., :64]  # rows 130 bytes apart
    assert not hopper.serves(call_of(wide, wide, wide, None))
    assert not hopper.serves(call_of(q.float(), q.float(), q.float(), None))


def call_of(q, k, v, g):
    return importlib.import_module("linscale.ops.decay_attention.layout").Call(q, k, v, g, None, 1.0)


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
