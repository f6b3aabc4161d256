"""Sequence parallelism: a sequence of R · T tokens in R pieces, one a rank; of linear layers only states travel.

A rank runs its T steps from an empty state and gathers what every piece adds to the state, Sʲ (B, H, K, V), and how
much it fades what came before, Gʲ = Σ_t g_t. Then the state that piece r starts from is

    S = Σ_{j<r} exp(Σ_{j<i<r} Gⁱ) Sʲ,        and  o_t += scale · Sᵀ (exp(Σ_{s<=t} g_s) q_t)

"Linear Attention Sequence Parallelism" (arXiv 2404.02882), in the gathered form of LASP-2 (arXiv 2502.07563): one
exchange of R states a layer and pass, whatever T is. Softmax attention gathers keys and values instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.distributed._functional_collectives import all_gather_tensor_autograd
from torch.nn.functional import pad

from linscale.ops.backend import without_autocast
from linscale.ops.decay_attention import decay_attention


@dataclass(frozen=True)
class Piece:
    """Which piece of its sequences a rank holds: number `rank` of `size`, gathered within the process group `group`."""

    rank: int
    size: int
    group: str


def gather(x: Tensor, piece: Piece) -> Tensor:
    """x (...) of every piece, (R, ...), with gradients: all ranks of the group call it, and all differentiate it."""
    if torch.compiler.is_compiling():
        traced: Tensor = all_gather_tensor_autograd(x.contiguous()[None], 0, piece.group)  # type: ignore[arg-type]
        return traced
    gathered: Tensor = _Gather.apply(x, piece)
    return gathered


class _Gather(torch.autograd.Function):
    """What the compiler's collective does, which outside of it hands out tensors that are yet to come: with gloo, on
    busy machines, these have left a heap in pieces."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, piece: Piece) -> Tensor:
        ctx.piece = piece
        gathered = x.new_empty(piece.size, *x.shape)
        torch.distributed.all_gather_into_tensor(gathered, x.contiguous()[None], _group(piece))
        return gathered

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        own = grad.new_empty(1, *grad.shape[1:])
        torch.distributed.reduce_scatter_tensor(own, grad.contiguous(), group=_group(ctx.piece))
        return own[0], None


def _group(piece: Piece) -> Any:
    c10d: Any = torch.distributed.distributed_c10d
    return c10d._resolve_process_group(piece.group)


def state_before(states: Tensor, log_fades: Tensor | None, piece: Piece) -> Tensor:
    """The state that this rank's piece starts from.

    states     (R, B, ...) what every piece adds, from an empty state
    log_fades  (R, ...) how much each fades what came before, logarithms that broadcast against `states`; None: not
    """
    earlier = torch.arange(piece.size, device=states.device) < piece.rank
    earlier = earlier.view(-1, *[1] * (states.ndim - 1))
    if log_fades is None:
        return torch.where(earlier, states, 0.0).sum(0)
    log_fades = torch.where(earlier, log_fades, 0.0)
    # Of the pieces between j and this one: sums from behind, for a fade to nothing is -inf, which cannot be subtracted.
    between = pad(log_fades.flip(0).cumsum(0).flip(0)[1:], (0, 0) * (log_fades.ndim - 1) + (0, 1))
    # Later pieces weigh nothing, but stay part of the sum: every rank differentiates the same exchange.
    return (torch.where(earlier, between.exp(), 0.0) * states).sum(0)


def decay_attention_in_pieces(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, piece: Piece, *, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """`decay_attention` over a sequence of which every rank holds T steps, in order of rank.

    Shapes as there. Returns this rank's o (B, T, H, V), and the state (B, H, K, V) behind its last step.
    """
    o, added = decay_attention(q, k, v, log_decay, scale=scale)
    with without_autocast(q.device):
        faded, total = _fades(log_decay, q.shape[1])
        shared = total is None or total.ndim == 1  # by all pieces alike, a number a head
        if total is None:
            fades = None
        elif shared:
            fades = total.view(1, 1, -1, 1, 1).expand(piece.size, *[-1] * 4)
        else:
            fades = gather(total, piece).unflatten(2, (q.shape[2], -1))[..., None]  # (R, B, H, K or 1, 1)
        before = state_before(gather(added, piece), fades, piece)
        query = q if faded is None else q * faded.exp()
        o = o + scale * torch.einsum("bthk,bhkv->bthv", query.to(v.dtype), before.to(v.dtype))
        last = before if fades is None else fades[piece.rank].exp() * before
    return o, added + last


def _fades(log_decay: Tensor | None, steps: int) -> tuple[Tensor | None, Tensor | None]:
    """Σ_{s<=t} g_s, against which q (B, T, H, K) broadcasts, and that of all steps: (H,), or (B, H · (1 or K))."""
    if log_decay is None:
        return None, None
    if log_decay.ndim == 1:
        count = torch.arange(1, steps + 1, device=log_decay.device, dtype=log_decay.dtype)
        return (count[:, None] * log_decay)[None, :, :, None], steps * log_decay
    wide = log_decay if log_decay.ndim == 4 else log_decay[..., None]
    sums = wide.to(torch.promote_types(wide.dtype, torch.float32)).cumsum(1)  # (B, T, H, K or 1)
    return sums, sums[:, -1].flatten(1)
