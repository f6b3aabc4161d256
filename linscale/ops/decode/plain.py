"""The parts of a decoding step in plain PyTorch: what they compute, and how a CPU decodes.

No row depends on what the others hold, to the last bit where widths are multiples of 32: PyTorch computes what is left
over of its vectors by other instructions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from linscale.ops.decode.linearized import convolve, linear_mix
from linscale.ops.decode.shapes import Mix, Projection
from linscale.ops.rotary import angles

__all__ = [
    "Turns", "attend", "can_halve", "convolve", "encode", "halved", "linear_mix", "mix", "project",
]  # fmt: skip
Turns: TypeAlias = tuple[Tensor, Tensor]
"""cos and sin of angles, a row of a batch each."""


def project(
    x: Tensor,
    part: Projection,
    out: Tensor,
    eps: float,
    *,
    residual: Tensor | None = None,
    squares: Tensor | None = None,
) -> None:
    """out (S, N) <- a(r x Wᵀ) + residual. r is 1, or with `normed` the reciprocal root mean square of x, or given
    `squares` (S, P) that of K numbers whose squares they sum up. `residual` may be `out`."""
    if squares is not None:
        x = x * squares.sum(1, keepdim=True).div_(x.shape[1]).add_(eps).rsqrt_().to(x.dtype)
    elif part.normed:
        x = rms_norm(x, x.shape[1:], eps=eps)
    if part.paired:
        gate, up = _product(x, part).chunk(2, dim=1)
        torch.mul(silu(gate, inplace=True) if part.activation else gate, up, out=out)
    elif part.half is not None or out.dtype != x.dtype:
        out.copy_(_product(x, part) if residual is None else _product(x, part).add_(residual))
    elif residual is not None:
        torch.addmm(residual, x, part.weight.t(), out=out)
    else:
        torch.mm(x, part.weight.t(), out=out)
    if part.silu_until:
        silu(out[:, : part.silu_until], inplace=True)


def _product(x: Tensor, part: Projection) -> Tensor:
    if part.half is not None:
        y: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, part.half)
        return y
    return torch.mm(x, part.weight.t())


def can_halve() -> bool:
    """Whether this CPU has the product of `Projection.half`."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def halved(part: Projection) -> Projection:
    """The same with its matrix in float16, half the memory that a step waits for."""
    half = torch.ops.quantized.linear_prepack_fp16(part.weight.float().contiguous(), None)
    return replace(part, weight=part.weight.to("meta"), half=half)


def mix(
    projected: Tensor, part: Mix, state: Tensor, positions: Tensor, active: Tensor, out: Tensor, squares: Tensor,
    *, turns: Turns | None = None,
) -> None:  # fmt: skip
    """state (S, H, K, V) <- decay state + k vᵀ and out (S, H V) <- o times its gate, for the rows that are active.

    squares (S, P) <- sums of squares of o in the first column; the others hold zeros. The norm comes with the next
    projection. `turns` are the angles of `positions`, (S, H, V), where they are known already.
    """
    heads, width = part.n_heads, part.head_dim
    parts = [heads * width] * 3 + ([part.gate.shape[1]] if part.gate is not None else [])
    q, k, v, *narrow = projected.float().split(parts, dim=1)
    keep: Tensor | None = None  # (S, H, K, 1) or what can be multiplied by it
    if part.kind == "gated":
        keep, k = _gates(k, part.decay)
        keep = keep.unflatten(1, (heads, width))
    elif part.kind == "head":
        assert part.decay is not None
        keep = part.decay.exp().view(1, heads, 1)
    q, k, v = (z.view(-1, heads, width) for z in (q, k, v))
    if part.theta is not None:
        cos, sin = turns or angles(positions, part.theta, torch.float32)
        q, k = torch.cat([q * cos, q * sin], 2), torch.cat([k * cos, k * sin], 2)
        keep = torch.cat([keep, keep], 2) if keep is not None and keep.shape[2] > 1 else keep
    o = _read_through(state, keep, k, v, q, active)
    squares[:, 0] = torch.linalg.vecdot(o, o)
    if part.gate is not None:
        o = torch.mm(narrow[0], part.gate.float().t()).sigmoid_().mul_(o)
    out.copy_(o)


def _gates(f: Tensor, bound: Tensor | None) -> tuple[Tensor, Tensor]:
    """HGRN2's decay β + (1 - β) sigmoid(f), and 1 - decay, (S, D)."""
    keep, rest = f.sigmoid(), f.neg().sigmoid_()
    if bound is None:
        return keep, rest
    free = 1 - bound
    return keep.mul_(free).add_(bound), rest.mul_(free)


def _read_through(state: Tensor, keep: Tensor | None, k: Tensor, v: Tensor, q: Tensor, active: Tensor) -> Tensor:
    """o (S, H V) = Sᵀ q, where state S (S, H, K, V) <- keep S + k vᵀ first, in rows that are active."""
    k, v, q = k[..., None], v[:, :, None], q[:, :, None]  # (S, H, K, 1), (S, H, 1, V), (S, H, 1, K)
    whole = state.dtype == torch.float32 and bool(active.all())
    new = state if whole else state.float() if state.dtype != torch.float32 else state.clone()
    if keep is not None:
        new.mul_(keep[..., None])
    new.addcmul_(k, v)
    if not whole:
        torch.where(active.bool()[:, None, None, None], new.to(state.dtype), state, out=state)
    return torch.bmm(q.flatten(0, 1), new.flatten(0, 1)).view(len(state), -1)


def encode(x: Tensor, state: Tensor, active: Tensor, log_rate: Tensor, weight: Tensor) -> None:
    """TPE: h <- λ h + x and x <- Σ b h in place, for active rows: h (S, D, e), x (S, D), log λ (e,), b (D, e)."""
    alive = (active > 0)[:, None, None]
    fresh = state * log_rate.to(state.dtype).exp() + x[:, :, None].to(state.dtype)
    state.copy_(torch.where(alive, fresh, state))
    x.copy_((state * weight.to(state.dtype)).sum(-1))


def attend(
    projected: Tensor, keys: Tensor, values: Tensor, positions: Tensor, active: Tensor, frequencies: Tensor,
    out: Tensor, *, turns: Turns | None = None,
) -> None:  # fmt: skip
    """Append k and v to the caches (S, C, G, K) at each row's position and attend: out (S, H K). q has H heads, k and
    v G. `turns` are the angles of `positions`, (S, K/2), where they are known already."""
    groups, width = keys.shape[2:]
    heads, rows = out.shape[1] // width, len(projected)
    cos, sin = (x.to(projected.dtype)[:, None] for x in turns or angles(positions, frequencies, projected.dtype))
    x = projected[:, : (heads + groups) * width].view(rows, -1, 2, width // 2)
    first, second = x.unbind(2)  # channel m turns with m + K/2: see `rotary.rotate_half`
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], 2)
    v = projected[:, (heads + groups) * width :].view(rows, groups, width)
    for row, (place, alive) in enumerate(zip(positions.tolist(), active.tolist(), strict=True)):
        if alive:  # each row over its own length, so that none depends on how long the others are
            keys[row, place], values[row, place] = turned[row, heads:], v[row]
            o = scaled_dot_product_attention(
                turned[row, :heads].view(1, heads, 1, width),
                keys[row : row + 1, : place + 1].transpose(1, 2), values[row : row + 1, : place + 1].transpose(1, 2),
                enable_gqa=groups < heads,
            )  # fmt: skip
            out[row] = o.view(-1)
