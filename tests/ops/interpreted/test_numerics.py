"""The kernels of `decay_attention` against float64: all cases on a GPU, a few tiny ones in the interpreter."""

import pytest
import torch

from linscale.ops.backend import interpreting
from linscale.ops.numerics import (
    KINDS,
    Case,
    all_cases,
    changing,
    check,
    contaminated,
    decay_attention_by,
    make_problem,
)

TINY = [
    Case("none", 65, "equal keys", torch.bfloat16, 16, 16),
    Case("head", 65, "strong", torch.bfloat16, 16, 24),
    Case("token", 15, "packed", torch.float32, 24, 16),
    Case("channel", 65, "strong", torch.float32, 16, 16),
    Case("channel", 33, "large", torch.float16, 24, 16),
    Case("head", 65, "steep", torch.bfloat16, 16, 16),
    Case("token", 33, "steep", torch.float32, 16, 16),
]
CASES = TINY if interpreting() else all_cases()
SOUND = [
    Case(kind, 40 if interpreting() else 3000, situation, dtype, *((20, 16) if interpreting() else (72, 64)))
    for kind in KINDS
    for situation in ("ordinary", "packed")
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
    if not interpreting() or (dtype == torch.float32 and (situation == "packed") == (kind in ("head", "channel")))
]
kernels = decay_attention_by("triton")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_errors_are_within_the_bounds(case, device):
    found = check(case, kernels, device)
    assert not found.failures, found.errors


@pytest.mark.parametrize("case", SOUND, ids=str)
def test_two_runs_give_the_same_bits_and_nothing_unwritten_is_read(case, device):
    problem = make_problem(case, device)
    assert changing(kernels, problem) == []
    assert contaminated(kernels, problem) == []
