"""Whether a form of `decay_attention` gives the same bits every time, and reads only what it may."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator

import torch
import torch.utils.deterministic
from torch import Tensor

from linscale.ops.numerics.cases import Function, Problem
from linscale.ops.numerics.errors import TOLERANCE, norms, relative_errors, results

MARGIN = 64  # tokens of NaN before and behind the inputs
BESIDE = 16  # entries of NaN behind every row


def changing(function: Function, problem: Problem) -> list[str]:
    """Names of the results whose bits are not the same in a second run."""
    first, second = results(function, problem), results(function, problem)
    return [name for name, x in first.items() if not torch.equal(_bits(x), _bits(second[name]))]


def _bits(x: Tensor) -> Tensor:
    """As integers: NaN differs from itself."""
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def contaminated(function: Function, problem: Problem) -> list[str]:
    """Names of the results that change when memory holds NaN wherever it holds no input. Empty when all is well.

    That is what `function` allocates and does not fill, and what lies around its inputs: before their first token,
    behind their last, and behind every row of K or V entries. Change is measured against TOLERANCE, not in bits: a
    form may sum strided inputs in another order.
    """
    clean = results(function, problem)
    with uninitialised_memory_is_nan():
        found = results(function, problem.each(_amid_nan))
    bounds = TOLERANCE[problem.q.dtype]
    return [name for name, error in relative_errors(found, clean, norms(clean)).items() if not error <= bounds[name]]


def _amid_nan(x: Tensor) -> Tensor:
    """The same values and shape, cut from a larger tensor of NaN."""
    shape, inside = list(x.shape), [slice(None)] * x.ndim
    shape[-1] += BESIDE
    inside[-1] = slice(0, x.shape[-1])
    if x.ndim > 1:
        shape[1] += 2 * MARGIN
        inside[1] = slice(MARGIN, MARGIN + x.shape[1])
    return x.new_full(shape, math.nan)[tuple(inside)].copy_(x)


@contextlib.contextmanager
def uninitialised_memory_is_nan() -> Iterator[None]:
    """Inside, torch.empty and its kin are filled with NaN (integers: their largest value), in the whole process.

    By torch's own switch for this, which works on every device and reaches what compiled code allocates.
    """
    switch = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = switch.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():  # of operations without a deterministic form: not what is asked here
            warnings.simplefilter("ignore")
            torch.use_deterministic_algorithms(True, warn_only=True)
            switch.fill_uninitialized_memory = True  # type: ignore[attr-defined]
            yield
    finally:
        switch.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
