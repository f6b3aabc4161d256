"""The kernel that walks over chunks against the loop over time in float64: outputs, final state and every gradient."""

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


@pytest.mark.parametrize(
    ("decay", "width", "documents"),
    [(True, (20, 19), ()), (False, (16, 33), ()), (True, (64, 64), (1, 70, 64)), (False, (72, 16), (5, 129))],
)
def test_the_walk_equals_the_definition(decay, width, documents, device):
    g = torch.Generator().manual_seed(0)
    lengths = [ROUND * length for length in documents]
    batch, length, heads = (1, sum(lengths), 2) if documents else (2, 150 * ROUND, 2)
    q, k = (torch.randn(batch, length, heads, width[0], generator=g) for _ in range(2))
    v = torch.randn(batch, length, heads, width[1], generator=g)
    beta, log_decay = (torch.rand(batch, length, heads, generator=g) for _ in range(2))
    state = torch.randn(len(documents) or batch, heads, *width, generator=g)
    inputs = [q, normalize(k + 0.5, dim=-1), v, beta, *([-0.3 * log_decay**4] if decay else []), state]
    inputs = [x.to(device) for x in inputs]
    cu_seqlens = torch.tensor([0, *lengths], device=device).cumsum(0) if documents else None
    results = []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        given = leaves[4] if decay else None
        o, final = delta_rule(*leaves[:4], given, state=leaves[-1], cu_seqlens=cu_seqlens, scale=0.7, backend=backend)
        total = (o * o.detach().cos()).sum() + (final * final.detach().sin()).sum()
        results.append([o, final, *torch.autograd.grad(total, leaves)])
    for found, exact in zip(*results, strict=True):
        assert found.isfinite().all()
        assert (found.double() - exact).abs().max() < 1e-5 * exact.abs().max()
