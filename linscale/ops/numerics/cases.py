"""The problems that a form of `decay_attention` has to solve, from everyday to hostile."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from linscale.ops.backend import Backend
from linscale.ops.decay_attention import decay_attention

Kind = Literal["none", "head", "token", "channel"]
"""Shape of log_decay: None, (H,), (B, T, H), (B, T, H, K)."""

Situation = Literal["ordinary", "strong", "steep", "zero", "equal keys", "large", "packed"]
"""ordinary    standard normal q, k, v; scale 1/sqrt(K); TNL's slopes, or gates of logsigmoid(2 + normal)
strong      log decays uniform down to -20 a step, every fifth exactly -20; per head from -20 to -1
steep       log decays of exactly -10: what a step has from itself is 20000 times what it has from all others
zero        log decays of exactly 0
equal keys  one key for all tokens: what is written never averages out
large       rows of q, k, v and do of norm 1000; scale 1e-6, without which o would pass float16's 65504
packed      half the row in documents of 1 to 500 tokens, the rest one document; a state for each"""

Function = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor | None, float], tuple[Tensor, Tensor]]
"""(q, k, v, log_decay, state, cu_seqlens, scale) -> (o, final state), shapes as in `decay_attention`."""

KINDS: tuple[Kind, ...] = ("none", "head", "token", "channel")
SITUATIONS: tuple[Situation, ...] = ("ordinary", "strong", "steep", "zero", "equal keys", "large", "packed")
LENGTHS = (1, 15, 63, 64, 65, 500, 4096, 100_000)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
DOCUMENTS = (1, 15, 64, 65, 3, 200, 1, 1, 63, 500)  # lengths, over and over
ONE_SEQUENCE = 4096  # tokens above which the batch is one sequence, else two
HEADS = 2


@dataclass(frozen=True)
class Case:
    """One problem: what decays, how long, what inputs, in which precision.

    q, k and v are of `dtype`; the state is float32, as is log_decay unless `decay_dtype` says otherwise.
    """

    kind: Kind
    length: int
    situation: Situation
    dtype: torch.dtype
    K: int = 64
    V: int = 64
    decay_dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        name = f"{self.kind} T={self.length} {self.situation} {short(self.dtype)} {self.K}x{self.V}"
        return name if self.decay_dtype == torch.float32 else f"{name} {short(self.decay_dtype)} decay"


class Problem(NamedTuple):
    """A case's tensors. do (B, T, H, V) and dfinal like `state`: what flows back into o and the final state."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None
    state: Tensor
    cu_seqlens: Tensor | None
    scale: float
    do: Tensor
    dfinal: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> Problem:
        """`change` applied to every tensor but cu_seqlens."""
        q, k, v, state, do, dfinal = map(change, (self.q, self.k, self.v, self.state, self.do, self.dfinal))
        log_decay = None if self.log_decay is None else change(self.log_decay)
        return Problem(q, k, v, log_decay, state, self.cu_seqlens, self.scale, do, dfinal)


def short(dtype: torch.dtype) -> str:
    """The dtype as training names it: bf16, fp16, fp32."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]


def decay_attention_by(backend: Backend) -> Function:
    """`decay_attention` in a form chosen by name."""

    def run(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor | None,
        state: Tensor,
        cu_seqlens: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        return decay_attention(q, k, v, log_decay, state=state, cu_seqlens=cu_seqlens, scale=scale, backend=backend)

    return run


def make_problem(case: Case, device: torch.device) -> Problem:
    """The tensors of a case: made on the CPU in float64, the same on every machine, then rounded."""
    random = torch.Generator().manual_seed(case.length)
    packed, large = case.situation == "packed", case.situation == "large"
    batch = 1 if packed or case.length > ONE_SEQUENCE else 2
    cu_seqlens = _boundaries(case.length) if packed else None
    documents = batch if cu_seqlens is None else len(cu_seqlens) - 1

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    q, k, v, do = (normal(batch, case.length, HEADS, width) for width in (case.K, case.K, case.V, case.V))
    state, dfinal = (normal(documents, HEADS, case.K, case.V) for _ in range(2))
    if case.situation == "equal keys":
        k = k[:1, :1].expand_as(k).contiguous()
    if large:
        q, k, v, do = (1e3 * x / x.norm(dim=-1, keepdim=True) for x in (q, k, v, do))
        state = state * (1e6 / math.sqrt(case.K * case.V))  # entries as large as those of k vᵀ
    log_decay = None if case.kind == "none" else _log_decay(case, batch, random).to(device, case.decay_dtype)
    q, k, v, do = (x.to(device, case.dtype) for x in (q, k, v, do))
    state, dfinal = (x.to(device, torch.float32) for x in (state, dfinal))
    cu_seqlens = None if cu_seqlens is None else cu_seqlens.to(device)
    return Problem(q, k, v, log_decay, state, cu_seqlens, 1e-6 if large else case.K**-0.5, do, dfinal)


def _log_decay(case: Case, batch: int, random: torch.Generator) -> Tensor:
    steps = (batch, case.length, HEADS)
    shape = {"head": (HEADS,), "token": steps}.get(case.kind, (*steps, case.K))
    if case.situation in ("steep", "zero"):
        return torch.full(shape, -10.0 if case.situation == "steep" else 0.0, dtype=torch.float64)
    if case.kind == "head":
        slopes = -torch.logspace(-4, -8, HEADS, base=2.0, dtype=torch.float64)
        return torch.linspace(-20, -1, HEADS, dtype=torch.float64) if case.situation == "strong" else slopes
    if case.situation == "strong":
        log_decay = -20 * torch.rand(shape, generator=random, dtype=torch.float64)
        log_decay.view(-1)[::5] = -20.0
        return log_decay
    return logsigmoid(2 + torch.randn(shape, generator=random, dtype=torch.float64))


def _boundaries(length: int) -> Tensor:
    """cu_seqlens (N+1,)."""
    ends = itertools.takewhile(lambda end: 2 * end < length, itertools.accumulate(itertools.cycle(DOCUMENTS)))
    return torch.tensor([0, *ends, length], dtype=torch.int32)


def quick_cases() -> list[Case]:
    """For `linscale doctor`: well under a minute on two cores. What models train in comes first."""
    cases = [Case(kind, 500, situation, torch.bfloat16) for kind, situation in _pairs(SITUATIONS)]
    cases += [Case(kind, length, "ordinary", torch.bfloat16) for kind in KINDS for length in (1, 63, 65, 4096)]
    cases += [Case(kind, 500, situation, torch.float32) for kind, situation in _pairs(SITUATIONS)]
    cases += [Case(kind, 500, situation, torch.float16) for kind, situation in _pairs(("ordinary", "strong", "large"))]
    return cases


def all_cases() -> list[Case]:
    """Every length, dtype, kind and situation; then other widths, and decays in the precision of q, k and v."""
    cases = [
        Case(kind, length, situation, dtype)
        for length in LENGTHS
        for dtype in DTYPES
        for kind, situation in _pairs(SITUATIONS)
    ]
    for dtype in DTYPES:
        for K in (64, 128, 256):  # of the models, and one where halves of a program on Hopper do the same
            pairs = _pairs(("ordinary", "strong", "packed"))
            cases += [Case(kind, 500, situation, dtype, K, 128) for kind, situation in pairs]
        for K, V in ((16, 16), (100, 72), (256, 256)):
            cases += [Case(kind, 500, "ordinary", dtype, K, V) for kind in KINDS]
    for dtype in (torch.bfloat16, torch.float16):
        pairs = [pair for pair in _pairs(("ordinary", "strong")) if pair[0] in ("token", "channel")]
        cases += [Case(kind, 500, situation, dtype, decay_dtype=dtype) for kind, situation in pairs]
    return cases


def _pairs(situations: tuple[Situation, ...]) -> list[tuple[Kind, Situation]]:
    """Each with each kind of decay; without decay there is none to be strong or zero."""
    pairs = itertools.product(KINDS, situations)
    decaying = ("strong", "steep", "zero")
    return [(kind, situation) for kind, situation in pairs if kind != "none" or situation not in decaying]
