"""The Triton kernels of attention inside a window: a program holds one head of a window, or of a few short ones.

Rows of a tile are the tokens of TOGETHER windows, one after the other; a row sees those before it in its own. Heads
come in halves, as RoPE turns them: channel m with m + K/2. Weights are computed again in the backward pass.
"""

import triton
import triton.language as tl


@triton.jit
def rows_of(batch, M: tl.constexpr, TOGETHER: tl.constexpr, ROWS: tl.constexpr):
    """Window and place of every row, and whether there is one."""
    row = tl.arange(0, ROWS)
    window = tl.program_id(0) * TOGETHER + row // M
    return window, row % M, (row < TOGETHER * M) & (window < batch)


@triton.jit
def half(pointer, rows, there, first, K: tl.constexpr, HALF: tl.constexpr, which: tl.constexpr):
    """Half `which` of the heads that begin at `first` in `rows`: (ROWS, HALF) float32."""
    channel = tl.arange(0, HALF)
    mask = there[:, None] & (channel < K // 2)[None, :]
    at = rows[:, None] + first + which * (K // 2) + channel[None, :]
    return tl.load(pointer + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def angles(turns, place, M: tl.constexpr, K: tl.constexpr, HALF: tl.constexpr, which: tl.constexpr):
    """Cosines (which = 0) or sines of the places of all rows, (ROWS, HALF)."""
    channel = tl.arange(0, HALF)
    at = (which * M + place[:, None]) * (K // 2) + channel[None, :]
    return tl.load(turns + at, mask=(channel < K // 2)[None, :] & (place[:, None] < M), other=0.0).to(tl.float32)


@triton.jit
def turned(
    pointer, turns, rows, there, place, first, M: tl.constexpr, K: tl.constexpr, HALF: tl.constexpr,
    TURNED: tl.constexpr,
):  # fmt: skip
    """Both halves (ROWS, HALF) of the heads that begin at `first`, turned by their places, in the dtype of products."""
    low, high = half(pointer, rows, there, first, K, HALF, 0), half(pointer, rows, there, first, K, HALF, 1)
    if TURNED:
        c, s = angles(turns, place, M, K, HALF, 0), angles(turns, place, M, K, HALF, 1)
        low, high = low * c - high * s, high * c + low * s
    return low.to(pointer.dtype.element_ty), high.to(pointer.dtype.element_ty)


@triton.jit
def weights(a0, a1, b0, b1, M: tl.constexpr, ROWS: tl.constexpr, SCALE: tl.constexpr, PRECISION: tl.constexpr):
    """Softmax over the rows before in the same window, (ROWS, ROWS) float32; a, b: halves of queries and of keys."""
    scores = tl.dot(a0, tl.trans(b0), input_precision=PRECISION) + tl.dot(a1, tl.trans(b1), input_precision=PRECISION)
    row = tl.arange(0, ROWS)
    seen = (row[:, None] >= row[None, :]) & (row[:, None] // M == row[None, :] // M)
    scores = tl.where(seen, scores * SCALE, float("-inf"))
    scores = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    return scores / tl.sum(scores, axis=1)[:, None]


@triton.jit
def kept(seed, window, place, H: tl.constexpr, M: tl.constexpr, DROPOUT: tl.constexpr):
    """By what each weight is multiplied: 0 where it is dropped out, 1 / (1 - DROPOUT) elsewhere."""
    first = ((window * H + tl.program_id(1)) * M + place) * M
    draw = tl.rand(tl.load(seed), first[:, None] + place[None, :])
    return tl.where(draw < DROPOUT, 0.0, 1.0 / (1.0 - DROPOUT))


@triton.jit
def window_kernel(
    qkv, turns, seed, o, batch, H: tl.constexpr, M: tl.constexpr, K: tl.constexpr, TOGETHER: tl.constexpr,
    ROWS: tl.constexpr, HALF: tl.constexpr, WIDE: tl.constexpr, SCALE: tl.constexpr, DROPOUT: tl.constexpr,
    TURNED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """o (B, M, H K) of qkv (B, M, 3 H K)."""
    window, place, there = rows_of(batch, M, TOGETHER, ROWS)
    rows = (window * M + place) * (3 * H * K)
    first = tl.program_id(1) * K
    narrow: tl.constexpr = qkv.dtype.element_ty
    q0, q1 = turned(qkv, turns, rows, there, place, first, M, K, HALF, TURNED)
    k0, k1 = turned(qkv, turns, rows, there, place, first + H * K, M, K, HALF, TURNED)
    p = weights(q0, q1, k0, k1, M, ROWS, SCALE, PRECISION)
    if DROPOUT > 0:
        p *= kept(seed, window, place, H, M, DROPOUT)
    channel = tl.arange(0, WIDE)
    mask = there[:, None] & (channel < K)[None, :]
    v = tl.load(qkv + rows[:, None] + first + 2 * H * K + channel[None, :], mask=mask, other=0.0)
    out = tl.dot(p.to(narrow), v, input_precision=PRECISION)
    at = (window * M + place)[:, None] * (H * K) + first + channel[None, :]
    tl.store(o + at, out.to(narrow), mask=mask)


@triton.jit
def window_grads_kernel(
    qkv, turns, seed, do, dqkv, batch, H: tl.constexpr, M: tl.constexpr, K: tl.constexpr, TOGETHER: tl.constexpr,
    ROWS: tl.constexpr, HALF: tl.constexpr, WIDE: tl.constexpr, SCALE: tl.constexpr, DROPOUT: tl.constexpr,
    TURNED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dqkv (B, M, 3 H K) of do (B, M, H K)."""
    window, place, there = rows_of(batch, M, TOGETHER, ROWS)
    rows = (window * M + place) * (3 * H * K)
    first = tl.program_id(1) * K
    narrow: tl.constexpr = qkv.dtype.element_ty
    q0, q1 = turned(qkv, turns, rows, there, place, first, M, K, HALF, TURNED)
    k0, k1 = turned(qkv, turns, rows, there, place, first + H * K, M, K, HALF, TURNED)
    p = weights(q0, q1, k0, k1, M, ROWS, SCALE, PRECISION)
    channel = tl.arange(0, WIDE)
    mask = there[:, None] & (channel < K)[None, :]
    at = (window * M + place)[:, None] * (H * K) + first + channel[None, :]
    g = tl.load(do + at, mask=mask, other=0.0)
    v = tl.load(qkv + rows[:, None] + first + 2 * H * K + channel[None, :], mask=mask, other=0.0)
    dp = tl.dot(g, tl.trans(v), input_precision=PRECISION)
    dropped = p
    if DROPOUT > 0:
        share = kept(seed, window, place, H, M, DROPOUT)
        dropped = p * share
        dp *= share
    dv = tl.dot(tl.trans(dropped.to(narrow)), g, input_precision=PRECISION)
    tl.store(dqkv + rows[:, None] + first + 2 * H * K + channel[None, :], dv.to(narrow), mask=mask)
    ds = (p * (dp - tl.sum(p * dp, axis=1)[:, None]) * SCALE).to(narrow)
    dq0, dq1 = tl.dot(ds, k0, input_precision=PRECISION), tl.dot(ds, k1, input_precision=PRECISION)
    back = tl.trans(ds)
    dk0, dk1 = tl.dot(back, q0, input_precision=PRECISION), tl.dot(back, q1, input_precision=PRECISION)
    if TURNED:
        c, s = angles(turns, place, M, K, HALF, 0), angles(turns, place, M, K, HALF, 1)
        dq0, dq1 = dq0 * c + dq1 * s, dq1 * c - dq0 * s
        dk0, dk1 = dk0 * c + dk1 * s, dk1 * c - dk0 * s
    put(dqkv, rows, there, first, dq0, dq1, K, HALF)
    put(dqkv, rows, there, first + H * K, dk0, dk1, K, HALF)


@triton.jit
def put(pointer, rows, there, first, low, high, K: tl.constexpr, HALF: tl.constexpr):
    """Both halves (ROWS, HALF) of heads, to where `half` reads them."""
    channel = tl.arange(0, HALF)
    mask = there[:, None] & (channel < K // 2)[None, :]
    at = pointer + rows[:, None] + first + channel[None, :]
    tl.store(at, low.to(pointer.dtype.element_ty), mask=mask)
    tl.store(at + K // 2, high.to(pointer.dtype.element_ty), mask=mask)
