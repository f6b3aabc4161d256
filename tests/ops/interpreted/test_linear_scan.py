"""The kernels of `linear_scan` against its definition in float64: output, final state and every gradient."""

import importlib
from typing import NamedTuple

import pytest
import torch

from linscale.ops import linear_scan
from linscale.ops.backend import interpreting

BOUNDS = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # largest error over the largest value
ROUND = 1 if interpreting() else 37  # how much longer sequences are on a GPU


class Case(NamedTuple):
    """Shapes of x and decay, what else is given, and how the kernels are to cut time."""

    x: tuple[int, ...]
    decay: tuple[int, ...]
    documents: tuple[int, ...] = ()
    state: bool = True
    segments: bool = False
    dtype: torch.dtype = torch.float32


CASES = [
    Case((2, 11, 4, 3), (2, 11, 4, 3)),
    Case((2, 9, 5), (2, 9, 5), segments=True, dtype=torch.bfloat16),
    Case((2, 9, 2, 3), (1, 1, 2, 1), dtype=torch.float16),
    Case((1, 17, 4), (1, 1, 4), segments=True),
    Case((2, 9, 2, 20), (2, 9, 2, 1), dtype=torch.bfloat16),
    Case((1, 9, 18), (1, 9, 1), segments=True),
    Case((2, 9, 3), (1, 9, 3), state=False),
    Case((1, 9, 4, 20), (1, 1, 1, 1), state=False),
    Case((3, 1, 5), (3, 1, 5)),
    Case((2, 37, 1), (2, 37, 1), segments=True),
    Case((2, 8), (2, 8)),
    Case((1, 3, 2, 2, 2, 2, 2), (1, 3, 1, 2, 1, 2, 1)),
    Case((1, 17, 5), (1, 17, 5), (1, 1, 6, 9)),
    Case((1, 17, 3), (1, 17, 3), (1, 1, 6, 9), segments=True, dtype=torch.bfloat16),
    Case((1, 9, 3), (1, 1, 3), (8, 1), segments=True),
    Case((1, 9, 18), (1, 9, 1), (1, 7, 1), state=False),
]


@pytest.fixture(autouse=True)
def poisoned():
    """torch.empty is filled with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def tiles(monkeypatch):
    """tiles(segments): in the interpreter small tiles, so that small shapes have several; and segments or none."""
    kernel = importlib.import_module("linscale.ops.linear_scan.kernel")

    def choose(segments):
        small = {"LANE_BYTES": 64, "ROW_BYTES": 16, "STEPS": 2, "LEAST_SEGMENT": 4}
        for name, value in {**(small if interpreting() else {}), "FILL": 1 << 12 if segments else 1}.items():
            monkeypatch.setattr(kernel, name, value)

    choose(False)
    return choose


def make(case, device):
    """x, decay and state as leaves, gradients of h and of the final state, cu_seqlens."""
    torch.manual_seed(0)
    lengths = [ROUND * length if length > 1 else 1 for length in case.documents]
    T = sum(lengths) if lengths else case.x[1] * (ROUND if case.x[1] > 1 else 1)
    shapes = [(shape[0], T if shape[1] > 1 else 1, *shape[2:]) for shape in (case.x, case.decay)]
    documents = (len(lengths) or case.x[0], *case.x[2:])
    x, dh = (torch.randn(shapes[0], device=device).to(case.dtype) for _ in range(2))
    decay = torch.rand(shapes[1], device=device).to(case.dtype)
    decay.view(-1)[decay.numel() // 2 :][1:2] = 0.0
    state, dfinal = (torch.randn(documents, device=device) for _ in range(2))
    leaves = [y.requires_grad_() for y in ((x, decay, state) if case.state else (x, decay))]
    cu_seqlens = torch.tensor([0, *lengths], device=device).cumsum(0).int() if lengths else None
    return leaves, (dh, dfinal), cu_seqlens


def run(leaves, grads, cu_seqlens, backend):
    """h, the final state and the gradients of all leaves."""
    state = leaves[2] if len(leaves) == 3 else None
    h, final = linear_scan(leaves[0], leaves[1], state=state, cu_seqlens=cu_seqlens, backend=backend)
    return [h, final, *torch.autograd.grad((h, final), leaves, grads)]


def agree(found, leaves, grads, cu_seqlens):
    """Holds `found` against the definition, in float64."""
    bound = BOUNDS[leaves[0].dtype]
    wide = [y.detach().double().requires_grad_() for y in leaves]
    exact = run(wide, [y.double() for y in grads], cu_seqlens, "reference")
    names = ("h", "final", "dx", "ddecay", "dstate")
    for name, y, z in zip(names, found, exact, strict=False):
        assert y.shape == z.shape, name
        assert y.isfinite().all(), name
        error = ((y.double() - z).abs().max() / z.abs().max()).item()
        assert error <= bound, f"{name}: {error:.1e}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kernels_equal_the_definition_twice_with_the_same_bits(case, device, tiles):
    tiles(case.segments)
    problem = make(case, device)
    found = run(*problem, "triton")
    assert found[0].dtype == case.dtype
    assert found[1].dtype == torch.float32
    agree(found, *problem)
    if case.segments or not interpreting():
        again = run(*problem, "triton")
        assert all(torch.equal(y, z) for y, z in zip(found, again, strict=True))


def test_any_strides(device, tiles):
    """Axes in another order, steps apart, expanded; and the gradient of a plain sum, whose strides are 0."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 4, device=device)[:, :, ::2].transpose(1, 2)  # (2, 5, 3, 4)
    decay = torch.rand(3, 4, device=device).T.contiguous().T.expand(2, 5, 3, 4)
    state = torch.randn(4, device=device).expand(2, 3, 4)
    expanded = torch.randn(2, 5, 3, 1, device=device).expand(2, 5, 3, 4)
    dh, dfinal = torch.ones((), device=device).expand(2, 5, 3, 4), torch.randn(2, 4, 3, device=device).transpose(1, 2)
    for y in (x, expanded):
        leaves = [z.detach().requires_grad_() for z in (y, decay, state)]
        agree(run(leaves, (dh, dfinal), None, "triton"), leaves, (dh, dfinal), None)


def test_a_decay_of_another_dtype_and_the_final_state_alone(device, tiles):
    (x, _, state), (_, dfinal), _ = make(Case((2, 9, 4), (2, 9, 4), dtype=torch.bfloat16), device)
    decay = torch.rand(x.shape, device=device, requires_grad=True)
    leaves = (x, decay, state)
    final = linear_scan(x, decay, state=state, backend="triton")[1]
    wide = [y.detach().double().requires_grad_() for y in leaves]
    exact = linear_scan(wide[0], wide[1], state=wide[2], backend="reference")[1]
    for y, z in zip(
        torch.autograd.grad(final, leaves, dfinal), torch.autograd.grad(exact, wide, dfinal.double()), strict=True
    ):
        torch.testing.assert_close(y.double(), z, rtol=1.6e-2, atol=1e-2)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")
def test_nothing_crosses_a_boundary_and_zero_stays_zero_under_growth(device, tiles):
    x = torch.ones(1, 12, 3, device=device)
    x[:, 2] = float("nan")
    x[:, 7] = float("inf")
    cu_seqlens = torch.tensor([0, 4, 9, 12], device=device)
    for segments in (False, True):
        tiles(segments)
        h, final = linear_scan(x, torch.ones(1, 1, 3, device=device), cu_seqlens=cu_seqlens, backend="triton")
        torch.testing.assert_close(h[0, 4:7, 0].cpu(), torch.tensor([1.0, 2.0, 3.0]))
        torch.testing.assert_close(h[0, 9:, 0].cpu(), torch.tensor([1.0, 2.0, 3.0]))
        assert final[2].eq(3).all()
        x_late = torch.zeros(1, 40, 1, device=device)
        x_late[:, -1] = 1.0
        h, _ = linear_scan(x_late, torch.full((1, 1, 1), 100.0, device=device), backend="triton")
        assert torch.equal(h, x_late)


def test_the_operators_hold_to_torchs_rules(device, tiles):
    importlib.import_module("linscale.ops.linear_scan.kernel")
    for case in (Case((2, 3, 2), (1, 3, 2)), Case((1, 4, 2), (1, 1, 2), (1, 3), state=False)):
        leaves, _, cu_seqlens = make(case, device)
        state = leaves[2] if case.state else None
        torch.library.opcheck(torch.ops.linscale.linear_scan, (leaves[0], leaves[1], state, cu_seqlens))
        h, final = linear_scan(leaves[0], leaves[1], state=state, cu_seqlens=cu_seqlens, backend="triton")
        inputs = [None if y is None else y.detach() for y in (h, final, h, leaves[1], state)]
        torch.library.opcheck(torch.ops.linscale.linear_scan_backward, (*inputs, cu_seqlens))


@pytest.mark.parametrize("documents", [(), (1, 5)])
def test_compiled_without_a_break_equals_eager(documents, device, tiles):
    leaves, grads, cu_seqlens = make(Case((1, 6, 2), (1, 6, 2), documents), device)

    def both(x, decay, state):
        return linear_scan(x.sin(), decay, state=state, cu_seqlens=cu_seqlens, backend="triton")

    results = []
    for function in (both, torch.compile(both, fullgraph=True, backend="aot_eager" if interpreting() else "inductor")):
        outputs = function(*leaves)
        results.append([*outputs, *torch.autograd.grad(outputs, leaves, grads)])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_bad_boundaries_are_named(device):
    x = torch.ones(1, 5, 2, device=device)
    with pytest.raises(ValueError, match="must rise strictly"):
        linear_scan(x, x, cu_seqlens=torch.tensor([0, 3, 3, 5], device=device), backend="triton")


def test_many_documents_equal_a_decay_cut_at_their_starts(device, tiles):
    documents = 20 if interpreting() else 100_000
    torch.manual_seed(0)
    lengths = 1 + torch.randint(0, 20, (documents,), device=device) * (torch.rand(documents, device=device) < 0.2)
    cu_seqlens = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    x = torch.randn(1, int(cu_seqlens[-1]), 3, device=device)
    decay = torch.rand(x.shape, device=device)
    for segments in (False, True):
        tiles(segments)
        h, final = linear_scan(x, decay, cu_seqlens=cu_seqlens, backend="triton")
        cut, _ = linear_scan(x, decay.index_fill(1, cu_seqlens[:-1], 0.0), backend="triton")
        torch.testing.assert_close(h, cut, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(final, h[0, cu_seqlens[1:] - 1], rtol=0, atol=0)


@pytest.mark.skipif(interpreting(), reason="more than an interpreter can do")
@pytest.mark.parametrize("shape", [(1, (1 << 20) + 3, 2064), (70_000, 3, 2), (1, 1_000_003, 1), (1, 2, 4_500_000)])
def test_large_tensors_and_grids(shape, device):
    """Beyond 2^31 elements, 65,535 rows, a million steps; what stands far back has decayed to nothing."""
    x = torch.randn(shape, device=device, dtype=torch.bfloat16)
    decay = torch.full((1, 1, shape[2]), 0.5, device=device, dtype=torch.bfloat16, requires_grad=True)
    h, final = linear_scan(x.requires_grad_(), decay, backend="triton")
    tail, last = linear_scan(x[:, -300:].float(), decay.float(), backend="chunk")
    torch.testing.assert_close(h[:, -100:].float(), tail[:, -100:], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(final, last, rtol=1e-4, atol=1e-4)
    dx, _ = torch.autograd.grad(h, (x, decay), torch.ones((), device=device, dtype=x.dtype).expand(shape))
    back, _ = linear_scan(torch.ones_like(tail).flip(1), decay.float(), backend="chunk")
    torch.testing.assert_close(dx[:, -100:].float(), back.flip(1)[:, -100:], rtol=1e-2, atol=1e-2)
