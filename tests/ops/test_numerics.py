"""The numerics checks themselves: right forms pass, and each way of being wrong is seen."""

import itertools
import math

import pytest
import torch

from linscale.ops import numerics
from linscale.ops.numerics import Case, changing, check, contaminated, decay_attention_by, make_problem
from linscale.ops.numerics.errors import LOOP, norms, reference_results, relative_errors, results
from tests.quick import quick

CPU = torch.device("cpu")
chunk = decay_attention_by("chunk")
fp32 = Case("channel", 40, "ordinary", torch.float32, 8, 4)
SITUATIONS = list(itertools.product(numerics.KINDS, numerics.cases.SITUATIONS))


def one_way(kind, situation):
    """Every kind in one situation, every situation by one kind."""
    return kind == "channel" or situation == "ordinary"


@pytest.mark.parametrize("case", quick(SITUATIONS, *(case for case in SITUATIONS if one_way(*case))))
def test_the_chunk_form_passes(case):
    kind, situation = case
    for length, dtype in ((1, torch.float32), (70, torch.bfloat16), (70, torch.float16), (130, torch.float32)):
        found = check(Case(kind, length, situation, dtype, 12, 8), chunk, CPU)
        assert not found.failures, (str(found.case), found.errors)
        assert set(found.errors) == set(numerics.NAMES) - ({"dlog_decay"} if kind == "none" else set())


def test_the_cases_are_those_of_the_table():
    cases = numerics.all_cases()
    assert len(set(cases)) == len({str(case) for case in cases}) == len(cases)
    for kind, length, dtype in itertools.product(numerics.KINDS, numerics.cases.LENGTHS, numerics.TOLERANCE):
        there = {case.situation for case in cases if (case.kind, case.length, case.dtype) == (kind, length, dtype)}
        assert there == set(numerics.cases.SITUATIONS) - ({"strong", "steep", "zero"} if kind == "none" else set())
    assert {case.kind for case in numerics.quick_cases()} == set(numerics.KINDS)
    assert {case.dtype for case in numerics.quick_cases()} == set(numerics.TOLERANCE)


def test_the_inputs_are_what_they_are_called():
    def made(kind, situation, dtype=torch.float32):
        return make_problem(Case(kind, 200, situation, dtype, 16, 8), CPU)

    strong = made("token", "strong").log_decay
    assert strong.min() == -20
    assert strong.max() > -1
    assert (made("channel", "zero").log_decay == 0).all()
    assert len(made("none", "equal keys").k.flatten(0, 1).unique(dim=0)) == 1
    large = made("none", "large", torch.float16)
    for x in (large.q, large.k, large.v, large.do):
        torch.testing.assert_close(x.float().norm(dim=-1), torch.full(x.shape[:-1], 1e3), rtol=1e-3, atol=0)
    packed = made("head", "packed")
    assert packed.cu_seqlens[:3].tolist() == [0, 1, 16]
    assert packed.cu_seqlens[-1] == 200
    assert len(packed.state) == len(packed.cu_seqlens) - 1
    again = made("head", "packed")
    assert all(torch.equal(a, b) for a, b in zip(packed, again, strict=True) if isinstance(a, torch.Tensor))


@pytest.mark.parametrize("kind", numerics.KINDS)
def test_the_reference_of_long_sequences_is_the_loop(kind, monkeypatch):
    problem = make_problem(Case(kind, 300, "strong" if kind == "token" else "ordinary", torch.float32, 8, 4), CPU)
    assert problem.q.shape[1] <= LOOP
    loop, sizes = reference_results(problem)
    monkeypatch.setattr(numerics.errors, "LOOP", 0)
    fast, fast_sizes = reference_results(problem)
    assert max(relative_errors(fast, loop, sizes).values()) < 1e-10
    assert fast_sizes == pytest.approx(sizes, rel=1e-10)
    whole = results(decay_attention_by("reference"), problem.each(torch.Tensor.double))
    assert max(relative_errors(loop, whole, sizes).values()) < 1e-13


class Tampered(torch.autograd.Function):
    """The identity forward; backward, a gradient that is off by one part in a thousand."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dx):
        return 1.001 * dx


@pytest.mark.parametrize("name", ["dq", "dk", "dv", "dlog_decay", "dstate"])
def test_one_wrong_gradient_is_seen_by_its_name(name):
    def wrong(*inputs):
        changed = list(inputs)
        place = ("dq", "dk", "dv", "dlog_decay", "dstate").index(name)
        changed[place] = Tampered.apply(changed[place])
        return chunk(*changed)

    assert set(check(fp32, wrong, CPU).failures) == {name}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_never_passes(value):
    def one_bad(*inputs):
        o, final = chunk(*inputs)
        spoilt = torch.zeros_like(o)
        spoilt[0, 3, 0, 0] = value
        return o + spoilt, final

    assert check(fp32, one_bad, CPU).failures == {"o": math.inf}


def test_faint_references_and_other_shapes():
    nothing = {"o": torch.zeros(100, dtype=torch.float64)}
    assert relative_errors({"o": torch.zeros(100)}, nothing, norms(nothing)) == {"o": 0.0}
    assert relative_errors({"o": torch.full((100,), 1e-30)}, nothing, norms(nothing))["o"] < 1e-6
    assert relative_errors({"o": torch.full((100,), 1e-6)}, nothing, norms(nothing))["o"] > 1.0
    assert relative_errors({"o": torch.zeros(99)}, nothing, norms(nothing)) == {"o": math.inf}


def test_a_sum_over_steps_is_held_to_the_size_of_its_terms():
    """Per head, dlog_decay may vanish by chance; its norm is at least that of its terms, at most their absolute sum."""
    problem = make_problem(Case("head", 300, "ordinary", torch.float32, 8, 4), CPU)
    found, sizes = reference_results(problem)
    assert found["dlog_decay"].shape == problem.log_decay.shape
    per_step = problem._replace(log_decay=problem.log_decay.expand(problem.q.shape[:3]))
    steps = reference_results(per_step)[0]["dlog_decay"]
    assert steps.norm() < sizes["dlog_decay"] < steps.abs().sum()


def test_bits_that_change_are_seen():
    runs = itertools.count()

    def drifting(*inputs):
        o, final = chunk(*inputs)
        return o, final * (1 + 1e-6 * next(runs))

    problem = make_problem(fp32, CPU)
    assert changing(chunk, problem) == []
    assert "state" in changing(drifting, problem)
    assert "o" not in changing(drifting, problem)


@pytest.mark.slow
def test_reading_what_was_never_written_is_seen():
    problem = make_problem(fp32, CPU)
    clean = torch.are_deterministic_algorithms_enabled()
    assert contaminated(chunk, problem) == []

    def unfilled(*inputs):
        o, final = chunk(*inputs)
        return o + 0 * torch.empty_like(o), final

    def beyond_the_end(q, k, v, *rest):
        o, final = chunk(q, k, v, *rest)
        shape, stride = v.shape, v.stride()
        if v.storage_offset():  # one token too far: only there where the inputs lie amid NaN
            o = o + 0 * v.as_strided(shape, stride, v.storage_offset() + stride[1])
        return o, final

    assert "o" in contaminated(unfilled, problem)
    assert "o" in contaminated(beyond_the_end, problem)
    assert torch.are_deterministic_algorithms_enabled() == clean
    assert not torch.empty(1000).isnan().all()
