"""The kernels of `delta_rule` against the loop over time in float64: outputs, final state and every gradient."""

import pytest
import torch
from torch.nn.functional import normalize

from linscale.ops import delta_rule
from linscale.ops.backend import interpreting

ROUND = 1 if interpreting() else 20  # how much longer sequences are on a GPU


@pytest.fixture(autouse=True)
def poisoned():
    """torch.empty is filled with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_compilers_see_what_is_kept(device):
    q, k, v = (torch.rand(1, 70, 2, 8, device=device) for _ in range(3))
    beta, state = torch.rand(1, 70, 2, device=device), torch.zeros(1, 2, 8, 8, device=device)
    given = q, k, v, beta, -beta, state, None, 0.7, "triton"
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.linscale.delta_rule, given, test_utils=checks)
    o, final, states, made = torch.ops.linscale.delta_rule(*given)
    assert made.numel() > 0
    rest = o, final, states, made, *given[:5], *given[6:]
    torch.library.opcheck(torch.ops.linscale.delta_rule_backward, rest, test_utils=checks)


BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # largest error over the largest value
CASES = [
    (True, 150, (20, 19), (), torch.float32),
    (False, 5, (16, 33), (), torch.float32),
    (True, 0, (64, 64), (1, 70, 64), torch.float32),
    (True, 0, (72, 16), (5, 129), torch.bfloat16),
]


@pytest.mark.parametrize(("decay", "length", "width", "documents", "dtype"), CASES)
def test_the_kernels_equal_the_definition(decay, length, width, documents, dtype, device):
    g = torch.Generator().manual_seed(0)
    lengths = [ROUND * part for part in documents]
    batch, length, heads = (1, sum(lengths), 2) if documents else (2, length * ROUND, 2)
    q, k = (torch.randn(batch, length, heads, width[0], generator=g) for _ in range(2))
    v = torch.randn(batch, length, heads, width[1], generator=g)
    beta, log_decay = (torch.rand(batch, length, heads, generator=g) for _ in range(2))
    k = normalize(k + 0.5, dim=-1)
    k[:, -40:], beta[:, -40:] = k[:, :1], 1.0  # keys all alike
    state = torch.randn(len(documents) or batch, heads, *width, generator=g)
    inputs = [*(x.to(dtype) for x in (q, k, v)), beta, *([-0.3 * log_decay**4] if decay else []), state]
    inputs = [x.to(device) for x in inputs]
    cu_seqlens = torch.tensor([0, *lengths], device=device).cumsum(0) if documents else None
    results = []
    for backend in ("triton", "reference"):
        leaves = [(x if backend == "triton" else x.double()).requires_grad_() for x in inputs]
        given = leaves[4] if decay else None
        o, final = delta_rule(*leaves[:4], given, state=leaves[-1], cu_seqlens=cu_seqlens, scale=0.7, backend=backend)
        weights = (torch.linspace(-1, 2, x.numel(), device=device).sin().view_as(x) for x in (o, final))
        total = sum((x * y).sum() for x, y in zip((o, final), weights, strict=True))
        results.append([o, final, *torch.autograd.grad(total, leaves)])
    for found, exact in zip(*results, strict=True):
        assert found.isfinite().all()
        assert (found.double() - exact).abs().max() < BOUNDS[dtype] * exact.abs().max()
