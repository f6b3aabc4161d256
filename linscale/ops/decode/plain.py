"""The parts of a decoding step in plain PyTorch.

No row depends on what the others hold, to the last bit where widths are multiples of 32: PyTorch computes what is left
over of its vectors by other instructions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from linscale.ops.decode.shapes import Mix, Projection
from linscale.ops.rotary import angles, rotate_half


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
    `squares` (S, P) that of K numbers whose squares they sum up."""
    y = linear(x, part.weight)
    if squares is not None or part.normed:
        total = x.float().square().sum(-1) if squares is None else squares.sum(-1)
        y = y * torch.rsqrt(total / x.shape[1] + eps)[:, None].to(y.dtype)
    if part.paired:
        gate, up = y.chunk(2, dim=1)
        y = (silu(gate) if part.activation else gate) * up
    elif part.silu_until:
        silu(y[:, : part.silu_until], inplace=True)
    if residual is None:
        out.copy_(y)
    else:
        torch.add(residual, y, out=out)


def mix(
    projected: Tensor, part: Mix, state: Tensor, positions: Tensor, active: Tensor, out: Tensor, squares: Tensor
) -> None:
    """state (S, H, K, V) <- decay state + k vᵀ and out (S, H V) <- o times its gate, for the rows that are active.

    squares (S, P) <- sums of squares of o, all in the first column: its norm comes with the next projection.
    """
    heads, width = part.n_heads, part.head_dim
    parts = [heads * width] * 3 + ([part.gate.shape[1]] if part.gate is not None else [])
    q, k, v, *narrow = projected.float().split(parts, dim=1)
    keep = projected.new_ones(1, 1, 1, 1, dtype=torch.float32)
    if part.kind == "gated":
        low = torch.zeros(()) if part.decay is None else part.decay
        keep, k = low + (1 - low) * k.sigmoid(), (1 - low) * (-k).sigmoid()
        keep = keep.unflatten(-1, (heads, width))[..., None]
    elif part.kind == "head":
        assert part.decay is not None
        keep = part.decay.exp().view(1, heads, 1, 1)
    q, k, v = (z.view(-1, heads, width) for z in (q, k, v))
    if part.theta is not None:
        cos, sin = angles(positions[:, None], part.theta, torch.float32)  # (S, 1, H, V)
        cos, sin = cos[:, 0], sin[:, 0]
        q, k = torch.cat([q * cos, q * sin], -1), torch.cat([k * cos, k * sin], -1)
        keep = torch.cat([keep, keep], 2) if keep.shape[2] > 1 else keep
    new = state * keep + k[..., None] * v[:, :, None]
    alive = active.bool()
    state.copy_(torch.where(alive[:, None, None, None], new, state) if not bool(alive.all()) else new)
    o = torch.einsum("shkv,shk->shv", new.float(), q).flatten(1)
    squares.zero_()
    squares[:, 0] = o.square().sum(-1)
    if part.gate is not None:
        o = o * linear(narrow[0], part.gate.float()).sigmoid()
    out.copy_(o)


def attend(
    projected: Tensor, keys: Tensor, values: Tensor, positions: Tensor, active: Tensor, frequencies: Tensor,
    out: Tensor,
) -> None:  # fmt: skip
    """Append k and v to the caches (S, C, G, K) at each row's position and attend: out (S, H K). q has H heads, k and
    v G."""
    groups, width = keys.shape[2:]
    heads = out.shape[1] // width
    q, k, v = projected.split([heads * width, groups * width, groups * width], dim=1)
    cos, sin = angles(positions[:, None], frequencies, q.dtype)  # (S, 1, K/2)
    q = rotate_half(q.view(-1, 1, heads, width), cos, sin)
    k = rotate_half(k.view(-1, 1, groups, width), cos, sin)[:, 0]
    v = v.view(-1, groups, width)
    for row, (place, alive) in enumerate(zip(positions.tolist(), active.tolist(), strict=True)):
        if alive:  # each row over its own length, so that none depends on how long the others are
            keys[row, place], values[row, place] = k[row], v[row]
            o = scaled_dot_product_attention(
                q[row : row + 1].transpose(1, 2), keys[row : row + 1, : place + 1].transpose(1, 2),
                values[row : row + 1, : place + 1].transpose(1, 2), enable_gqa=groups < heads,
            )  # fmt: skip
            out[row] = o.flatten()
