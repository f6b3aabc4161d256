"""One token of S sequences in a linearized layer, in plain PyTorch: what it computes, and how a CPU decodes it.

convolve     q, k, v <- Σ_j w_j (their last inputs, which the state holds)             where there are filters
linear_mix   S <- decay S + k vᵀ, or the delta rule, in place; o = Sᵀ q over its norm, times the gate
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize, relu, silu

from linscale.ops.decode.shapes import LinearMix
from linscale.ops.rotary import angles, rotate_half, rotate_lrpe

SMALLEST = 1e-12  # added to sums of similarities
SHORTEST = 1e-6  # length of q and k that is divided by


def convolve(projected: Tensor, part: LinearMix, state: Tensor, active: Tensor) -> None:
    """The first C columns of `projected` (S, WIDTH) become what the filters give, in place, and the state (S, H, K +
    rows, columns) holds them as inputs, for the rows that are active."""
    assert part.filters is not None
    channels, taps = part.filters.shape
    rows = state[:, :, part.key_width :]
    flat = rows.flatten(1)
    sizes = [(taps - 1) * width for width in part.widths[:3]]
    pieces = flat[:, : sum(sizes)].split(sizes, 1)
    tails = torch.cat([piece.unflatten(1, (taps - 1, -1)) for piece in pieces], 2)  # (S, taps - 1, C)
    x = projected[:, :channels].float()
    seen = torch.cat([tails, x[:, None]], 1)
    y = seen[:, -1] * part.filters[:, -1]
    for tap in range(taps - 1):
        y = torch.addcmul(y, seen[:, tap], part.filters[:, tap])
    alive = (active > 0)[:, None]
    projected[:, :channels] = torch.where(alive, y.to(projected.dtype), projected[:, :channels])
    behind = torch.cat([*(x.flatten(1) for x in seen[:, 1:].split(part.widths[:3], 2)), flat[:, sum(sizes) :]], 1)
    rows.copy_(torch.where(alive[:, :, None, None], behind.view_as(rows), rows))


def linear_mix(
    projected: Tensor, part: LinearMix, state: Tensor, positions: Tensor, active: Tensor, out: Tensor, *,
    turns: tuple[Tensor, Tensor] | None = None,
) -> None:  # fmt: skip
    """state (S, H, K, V) and out (S, H V), for the rows that are active. `turns` are the angles of `positions`, where
    they are known already."""
    heads, values = part.n_heads, part.value_dim
    given = (projected.float() + part.bias).split([width for width in part.widths if width], 1)
    named = dict(zip([n for n, width in zip("qkvdwg", part.widths, strict=True) if width], given, strict=True))
    q, k, keep = _queries_keys(part, named, positions, turns)
    v = _every_head(named["v"].view(-1, part.value_heads, values), heads)
    memory = state[:, :, : part.key_width]
    s = memory if keep is None else keep[..., None] * memory
    if part.delta:
        q, k = (normalize(x, dim=-1, eps=SHORTEST) for x in (q, k))
        v = named["w"].sigmoid()[..., None] * (v - _through(s, k))
    elif part.divided == "sum":
        v = torch.cat([v, v.new_ones(*v.shape[:-1], 1)], -1)
    else:
        k = k * k.shape[-1] ** -0.5
    s = torch.addcmul(s, k[..., None], v[..., None, :])
    o = _divided(part, _through(s, q))
    o = o if not part.gate else o * silu(named["g"])
    alive = (active > 0)[:, None]
    out.copy_(torch.where(alive, o.to(out.dtype), out))
    memory.copy_(torch.where(alive[:, :, None, None], s, memory))


def _through(s: Tensor, x: Tensor) -> Tensor:
    """Sᵀ x, (S, H, V)."""
    return torch.bmm(x.flatten(0, 1)[:, None], s.flatten(0, 1)).view(*s.shape[:2], -1)


def _queries_keys(
    part: LinearMix, named: dict[str, Tensor], positions: Tensor, turns: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """q, k (S, H, K), and what stays of the state, or None: (S or 1, H, K or 1)."""
    heads = part.n_heads
    q, k = named["q"].view(-1, heads, part.head_dim), named["k"].view(-1, part.key_heads, part.head_dim)
    keep = None
    if turns is None and part.rotary != "none":
        frequencies = part.theta if part.rotary == "lrpe" else part.frequencies
        assert frequencies is not None
        turns = angles(positions, frequencies, torch.float32)
    if part.rotary == "before":
        q, k = (_rotated(x, part, turns) for x in (q, k))
    k = _every_head(k, heads)
    q = _mapped(part, q, 0)
    if part.fading == "forget":
        assert part.decay is not None
        logits = k + part.decay
        k, keep = (-logits).sigmoid(), logits.sigmoid()
    else:
        k = _mapped(part, k, 1)
    if part.fading == "head":
        assert part.decay is not None
        keep = part.decay.exp().view(1, heads, 1)
    elif part.fading.endswith("gate"):
        keep = logsigmoid(named["d"]).exp().view(len(q), heads, -1)
    if part.rotary == "after":
        q, k = (_rotated(x, part, turns) for x in (q, k))
    if part.rotary == "lrpe":
        assert turns is not None
        q, k = (rotate_lrpe(x, *turns) for x in (q, k))
        keep = keep if keep is None or keep.shape[2] == 1 else torch.cat([keep, keep], -1)
    return q, k, keep


def _rotated(x: Tensor, part: LinearMix, turns: tuple[Tensor, Tensor] | None) -> Tensor:
    """x (S, heads, width) by RoPE."""
    assert turns is not None
    cos, sin = (turn[:, None] * part.sharpened for turn in turns)  # (S, 1, width / 2)
    return rotate_half(x[:, None], cos, sin)[:, 0]


def _mapped(part: LinearMix, x: Tensor, of: int) -> Tensor:
    """Features of q (`of` 0) or k (1)."""
    if part.maps is not None:
        x = torch.einsum("shd,hdf->shf", x, part.maps[of].float())
    if part.features == "softmax":
        return torch.cat([x.softmax(-1), (-x).softmax(-1)], -1)
    return {"none": lambda y: y, "silu": silu, "relu": relu}[part.features](x)


def _every_head(x: Tensor, heads: int) -> Tensor:
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _divided(part: LinearMix, o: Tensor) -> Tensor:
    """(S, H V), from (S, H, columns)."""
    if part.divided == "sum":
        o = o[..., :-1] / (o[..., -1:] + SMALLEST)
    elif part.divided != "none":
        o = o - o.mean(-1, keepdim=True) if part.divided == "group" else o
        o = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + part.eps)
    flat = o.flatten(1)
    return flat if part.gain is None else flat * part.gain
