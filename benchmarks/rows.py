"""One line of the table, and the inputs that it is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, silu

Kind = Literal["none", "head", "token", "channel"]
KINDS: tuple[Kind, ...] = ("none", "head", "token", "channel")
LEAST_RATIO = 2.0  # what a row without a goal of its own has to reach against the peer


@dataclass(frozen=True)
class Row:
    """An operator at one shape, in bf16. Goals and the peer's times are those of an H100, forward and backward."""

    kind: Kind
    B: int
    T: int
    H: int = 16
    K: int = 128
    V: int = 128
    h100_peer_ms: float | None = None
    h100_goal_ms: float | None = None

    @property
    def name(self) -> str:
        return f"{self.kind} {self.B}x{self.T} H{self.H} K{self.K} V{self.V}"

    @property
    def goal_ratio(self) -> float:
        """How many times faster than the peer it is to be."""
        if self.h100_peer_ms is None or self.h100_goal_ms is None:
            return LEAST_RATIO
        return self.h100_peer_ms / self.h100_goal_ms

    def floor_bytes(self, *, backward: bool) -> int:
        """Every input read once and every output written once, two bytes an entry.

        Forward q, k, v, o; backward q, k, v, do, dq, dk, dv. The decay, where it has a time axis: g, then g and dg.
        """
        gate = {"none": 0, "head": 0, "token": 1, "channel": self.K}[self.kind]
        entries = 2 * self.K + 2 * self.V + gate
        if backward:
            entries += 4 * self.K + 3 * self.V + 2 * gate
        return 2 * self.B * self.T * self.H * entries


@dataclass(frozen=True)
class Inputs:
    """q, k (B, T, H, K), v and do (B, T, H, V), log_decay as the kind says. All but a decay per head are leaves."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None
    do: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        return [x for x in (self.q, self.k, self.v, self.log_decay) if x is not None and x.requires_grad]

    def sequence(self, which: int, dtype: torch.dtype) -> Inputs:
        """One sequence of the batch by itself, as new leaves of `dtype`."""

        def cut(x: Tensor) -> Tensor:
            part = x if x.ndim == 1 else x[which : which + 1]
            return part.detach().to(dtype).requires_grad_(x.requires_grad)

        decay = None if self.log_decay is None else cut(self.log_decay)
        return Inputs(cut(self.q), cut(self.k), cut(self.v), decay, cut(self.do).detach())


def make_inputs(row: Row, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Inputs:
    """Random inputs as the models make them at initialisation, the same ones at every call.

    q and k are swish of normals, k is 1 - f under per-channel decay (HGRN2's first layer, f = sigmoid of normals); the
    decay of a head is TNL's, -2^(-8h/H); the one per token keeps 0.9 or so a step. q carries the scale 1/sqrt(K).
    """
    B, T, H, K, V = row.B, row.T, row.H, row.K, row.V
    random = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, device=device, dtype=dtype)

    q, k, v = silu(normal(B, T, H, K)).mul_(K**-0.5), silu(normal(B, T, H, K)), normal(B, T, H, V)
    decay = None
    if row.kind == "head":
        decay = -(2.0 ** (-8 * torch.arange(1, H + 1, device=device) / H))  # float32; fixed, it has no gradient
    elif row.kind == "token":
        decay = logsigmoid(3 + normal(B, T, H)).requires_grad_()
    elif row.kind == "channel":
        decay = logsigmoid(normal(B, T, H, K))
        k = -torch.expm1(decay)
        decay.requires_grad_()
    return Inputs(q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), decay, normal(B, T, H, V))
