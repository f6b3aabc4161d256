"""Relative errors of a form of `decay_attention` against float64, and how large they may be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from linscale.ops.numerics.cases import Case, Function, Problem, decay_attention_by, make_problem

NAMES = ("o", "state", "dq", "dk", "dv", "dlog_decay", "dstate")
LOOP = 4096  # tokens up to which the reference is the loop over time; above, the chunk form, held to the loop by tests
PIECE = 256  # tokens of the loop at a time: the gradient of one step's slice is as large as what it was cut from
SHARED = 64  # steps that share the rounding of a state, at most: see below
FAINT = 1e-20  # root mean square that anything counts as at least: what is smaller underflows on the way in float32

# Bounds of |x - reference| / |reference|, Frobenius norms over the whole tensor, by the dtype of q, k and v.
#
# Rounding to nearest costs 1.7e-3 in bf16 and 2.1e-4 in fp16 (root mean square). o, dq, dk and dv are rounded, and so
# may be two or three operands on the way: about twice what these make together is allowed. The state stays in float32,
# but what is added to it are products of rounded operands. In fp32 it is exponents that cost: running sums of log
# decays reach -1000 in a chunk of strong decay, where the spacing of float32 is 6e-5.
#
# dlog_decay is a sum over all paths that cross a step. Where that step decays by -20, it is orders below the terms of
# its neighbours, from which running sums tell it apart: three times the room, ten times in fp32, where nothing else
# hides that. It is held to the norm of the tensor, where mild steps count most: e^-20 of a term is below its rounding.
# Per head it is a sum of random signs over all steps, and may come out near zero by chance. So there the norm is
# that of its terms: steps of one chunk (SHARED) share the rounding of a state, which adds up; those of two do not. It
# is the root of the sum, over stretches of SHARED steps, of the squares of the steps' absolute gradients summed.
TOLERANCE: dict[torch.dtype, dict[str, float]] = {
    dtype: {**dict.fromkeys(NAMES, bound), "dlog_decay": decay_bound}
    for dtype, bound, decay_bound in (
        (torch.bfloat16, 8e-3, 2.5e-2),
        (torch.float16, 1e-3, 3e-3),
        (torch.float32, 1e-5, 1e-4),
    )
}


@dataclass(frozen=True)
class Check:
    """Relative errors by name (no dlog_decay where nothing decays), infinite where anything is not finite."""

    case: Case
    errors: dict[str, float]

    @property
    def failures(self) -> dict[str, float]:
        """Those above the tolerance."""
        bounds = TOLERANCE[self.case.dtype]
        return {name: error for name, error in self.errors.items() if not error <= bounds[name]}


def check(case: Case, function: Function, device: torch.device) -> Check:
    """The errors of `function` on one case."""
    problem = make_problem(case, device)
    return Check(case, relative_errors(results(function, problem), *reference_results(problem)))


def results(function: Function, problem: Problem) -> dict[str, Tensor]:
    """o, final state and every gradient, by NAMES."""
    q, k, v, state = (x.detach().requires_grad_() for x in (problem.q, problem.k, problem.v, problem.state))
    log_decay = None if problem.log_decay is None else problem.log_decay.detach().requires_grad_()
    o, final = function(q, k, v, log_decay, state, problem.cu_seqlens, problem.scale)
    leaves = {"dq": q, "dk": k, "dv": v, "dlog_decay": log_decay, "dstate": state}
    wanted = {name: x for name, x in leaves.items() if x is not None}
    flowing = [problem.do.to(o.dtype), problem.dfinal.to(final.dtype)]
    gradients = torch.autograd.grad([o, final], list(wanted.values()), flowing)
    return {"o": o.detach(), "state": final.detach(), **dict(zip(wanted, gradients, strict=True))}


def reference_results(problem: Problem) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The same in float64, from the rounded inputs; and the norms that errors are relative to."""
    form = _loop if problem.q.shape[1] <= LOOP else decay_attention_by("chunk")
    exact = problem.each(Tensor.double)
    if exact.log_decay is None or exact.log_decay.ndim > 1:
        found = results(form, exact)
        return found, norms(found)
    found = results(form, exact._replace(log_decay=exact.log_decay.expand(exact.q.shape[:3])))
    steps = found["dlog_decay"]  # (B, T, H)
    stretches = pad(steps.abs(), (0, 0, 0, -steps.shape[1] % SHARED)).unflatten(1, (-1, SHARED)).sum(2)
    sizes = norms({**found, "dlog_decay": stretches})
    return {**found, "dlog_decay": steps.sum((0, 1))}, sizes


def _loop(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor, cu_seqlens: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    run = decay_attention_by("reference")
    if cu_seqlens is not None:
        return run(q, k, v, log_decay, state, cu_seqlens, scale)
    outputs = []
    for start in range(0, q.shape[1], PIECE):
        span = slice(start, start + PIECE)
        decay = log_decay if log_decay is None or log_decay.ndim == 1 else log_decay[:, span]
        o, state = run(q[:, span], k[:, span], v[:, span], decay, state, None, scale)
        outputs.append(o)
    return torch.cat(outputs, dim=1), state


def norms(found: dict[str, Tensor]) -> dict[str, float]:
    """Frobenius norms by name, none below that of a tensor of FAINT."""
    return {name: max(float(x.double().norm()), FAINT * math.sqrt(x.numel())) for name, x in found.items()}


def relative_errors(
    found: dict[str, Tensor], reference: dict[str, Tensor], sizes: dict[str, float]
) -> dict[str, float]:
    """|found - reference| / size by name; infinite where `found` is not finite or not of that shape."""
    errors = {}
    for name, true in reference.items():
        x = found[name].double()
        fits = x.shape == true.shape and bool(x.isfinite().all())
        errors[name] = float((x - true.double()).norm()) / sizes[name] if fits else math.inf
    return errors
