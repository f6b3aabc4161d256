"""How exact a form of `decay_attention` is: the cases it is tried on, float64 to compare with, one table of bounds.

    check(case, function, device)      errors of o, the final state and all gradients, held to TOLERANCE
    changing(function, problem)        results whose bits differ between two runs
    contaminated(function, problem)    results that take in memory that was never written, or is not theirs to read

The same cases are what `linscale doctor --numerics` runs on a user's machine and what the GPU tests run in full.
"""

from linscale.ops.numerics.cases import (
    KINDS,
    Case,
    Function,
    Kind,
    Problem,
    all_cases,
    decay_attention_by,
    make_problem,
    quick_cases,
    short,
)
from linscale.ops.numerics.errors import NAMES, TOLERANCE, Check, check, reference_results, relative_errors, results
from linscale.ops.numerics.soundness import changing, contaminated, uninitialised_memory_is_nan

__all__ = [
    "KINDS",
    "NAMES",
    "TOLERANCE",
    "Case",
    "Check",
    "Function",
    "Kind",
    "Problem",
    "all_cases",
    "changing",
    "check",
    "contaminated",
    "decay_attention_by",
    "make_problem",
    "quick_cases",
    "reference_results",
    "relative_errors",
    "results",
    "short",
    "uninitialised_memory_is_nan",
]
