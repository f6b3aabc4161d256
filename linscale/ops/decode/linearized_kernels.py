# mypy: allow-untyped-defs
"""One token of a linearized layer on a GPU: its short convolutions, and its linear attention, a kernel each.

What they compute is in linearized.py. States (S, H, ROWS, COLUMNS) are float32, K rows of the memory and then those of
the convolutions; they change in place. All else of a row is worked out in float32. Memories are read before earlier
kernels have ended, as in kernels.py.
"""

import triton
import triton.language as tl

from linscale.ops.decay_attention.kernels.common import await_earlier, let_next_begin
from linscale.ops.decode import linearized

SMALLEST = tl.constexpr(linearized.SMALLEST)
SHORTEST = tl.constexpr(linearized.SHORTEST)

# Constants of `linear_mix_kernel`, in the order in which shapes.py names them.
NONE, SILU, RELU, SOFTMAX = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)  # FEATURES
UNTURNED, BEFORE, AFTER, LRPE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)  # ROTARY
LASTING, HEAD, HEAD_GATE, CHANNEL_GATE, FORGET = (  # FADING
    tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3), tl.constexpr(4),
)  # fmt: skip
WHOLE, GROUP, RMS, SUM = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)  # DIVIDED


@triton.jit
def convolve_kernel(
    projected, state, active, filters,
    H: tl.constexpr, ROWS: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, TAPS: tl.constexpr, BC: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """One program: (sequence, BC channels of q, k and v, which are QUERIES, KEYS and VALUES many). projected (S, WIDTH)
    in place; filters (C, TAPS)."""
    total: tl.constexpr = QUERIES + KEYS + VALUES
    blocks: tl.constexpr = (total + BC - 1) // BC
    row = tl.cast(tl.program_id(0) // blocks, tl.int64)
    channels = (tl.program_id(0) % blocks) * BC + tl.arange(0, BC)
    known = channels < total
    # The inputs lie end to end: those of q tap by tap, then those of k, of v; a head's rows hold a piece of that.
    begin = tl.where(channels < QUERIES, 0, tl.where(channels < QUERIES + KEYS, QUERIES, QUERIES + KEYS))
    wide = tl.where(channels < QUERIES, QUERIES, tl.where(channels < QUERIES + KEYS, KEYS, VALUES))
    piece: tl.constexpr = (ROWS - K) * COLUMNS
    own = state + row * H * ROWS * COLUMNS
    if EARLY:
        let_next_begin()
        await_earlier()
    if tl.load(active + row) != 0:
        here = projected + row * WIDTH + channels
        x = tl.load(here, mask=known, other=0.0).to(tl.float32)
        y = x * tl.load(filters + channels * TAPS + TAPS - 1, mask=known, other=0.0)
        for tap in tl.static_range(TAPS - 1):
            flat = begin * (TAPS - 1) + tap * wide + channels - begin
            at = own + ((flat // piece) * ROWS + K) * COLUMNS + flat % piece
            seen = tl.load(at, mask=known, other=0.0)
            y += seen * tl.load(filters + channels * TAPS + tap, mask=known, other=0.0)
            if tap > 0:  # moves on by one
                flat -= wide
                at = own + ((flat // piece) * ROWS + K) * COLUMNS + flat % piece
                tl.store(at, seen, mask=known)
        flat = begin * (TAPS - 1) + (TAPS - 2) * wide + channels - begin
        tl.store(own + ((flat // piece) * ROWS + K) * COLUMNS + flat % piece, x, mask=known)
        tl.store(here, y.to(projected.dtype.element_ty), mask=known)


@triton.jit
def features_of(
    base, bias, maps, wide, cos, sin,
    D: tl.constexpr, F: tl.constexpr, FEATURES: tl.constexpr, ROTARY: tl.constexpr, MAPPED: tl.constexpr,
):  # fmt: skip
    """q or k of a head as the state takes them, (K,): base and bias point to its D numbers, maps to its W (D, F / 2).

    wide is 0 to K; cos and sin are those of the places that ROTARY turns: (D,) before the features, else (K,)."""
    if MAPPED:
        along = tl.arange(0, D)
        x = tl.load(base + along).to(tl.float32) + tl.load(bias + along)
        if ROTARY == BEFORE:
            other = (along + D // 2) % D
            x = x * cos + (tl.load(base + other).to(tl.float32) + tl.load(bias + other)) * sin
        half: tl.constexpr = F // 2
        w = tl.load(maps + along[:, None] * half + (wide % half)[None, :]).to(tl.float32)
        y = tl.sum(x[:, None] * w, axis=0)  # (K,)
    else:
        channel = wide % D  # a second half, of softmax or LRPE, is of the same channels
        y = tl.load(base + channel).to(tl.float32) + tl.load(bias + channel)
        if ROTARY == BEFORE:
            other = (wide + D // 2) % D
            y = y * cos + (tl.load(base + other).to(tl.float32) + tl.load(bias + other)) * sin
    if FEATURES == SOFTMAX:
        half_way: tl.constexpr = F // 2
        second = (wide // half_way) % 2 == 1
        y = tl.where(second, -y, y)
        top = tl.max(tl.where(second, float("-inf"), y), axis=0)
        top_of_second = tl.max(tl.where(second, y, float("-inf")), axis=0)
        y = tl.exp(y - tl.where(second, top_of_second, top))
        copies: tl.constexpr = 2 if ROTARY == LRPE else 1  # that LRPE has made of each
        total = tl.sum(tl.where(second, 0.0, y), axis=0) / copies
        total_of_second = tl.sum(tl.where(second, y, 0.0), axis=0) / copies
        y = y / tl.where(second, total_of_second, total)
    elif FEATURES == SILU:
        y = y * tl.sigmoid(y)
    elif FEATURES == RELU:
        y = tl.maximum(y, 0.0)
    if ROTARY == AFTER:
        other = (wide + F // 2) % F
        z = tl.load(base + other).to(tl.float32) + tl.load(bias + other)
        if FEATURES == SILU:
            z = z * tl.sigmoid(z)
        elif FEATURES == RELU:
            z = tl.maximum(z, 0.0)
        y = y * cos + z * sin
    elif ROTARY == LRPE:
        y = tl.where(wide < F, y * cos, y * sin)
    return y


@triton.jit
def linear_mix_kernel(
    projected, state, positions, active, bias, q_map, k_map, frequencies, decay, gain, out, sharpened, eps,
    H: tl.constexpr, G: tl.constexpr, VG: tl.constexpr, D: tl.constexpr, F: tl.constexpr, V: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, FEATURES: tl.constexpr, ROTARY: tl.constexpr,
    FADING: tl.constexpr, DIVIDED: tl.constexpr, DELTA: tl.constexpr, GATE: tl.constexpr, MAPPED: tl.constexpr,
    BV: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One program: (sequence, head, BV columns of its state); BV = V where outputs are divided.

    projected (S, WIDTH), before bias (WIDTH,): q (H, D), k (G, D), v (VG, V), and, as far as they are there, logits of
    decays (H,) or (H, F), of what is written (H,), and the output gate (H, V). F features of a head, 2 F = K with LRPE.
    frequencies: float64 (D / 2,) or (K / 2,), with LRPE float32 (H, F). decay (H,) or (H, F). out (S, H V).
    """
    slices: tl.constexpr = V // BV
    K: tl.constexpr = 2 * F if ROTARY == LRPE else F
    row = tl.cast(tl.program_id(0) // (slices * H), tl.int64)
    head = (tl.program_id(0) // slices) % H
    wide = tl.arange(0, K)
    columns = (tl.program_id(0) % slices) * BV + tl.arange(0, BV)
    alive = tl.load(active + row) != 0
    own = state + (row * H + head) * ROWS * COLUMNS
    here = own + wide[:, None] * COLUMNS + columns[None, :]
    s = tl.load(here, mask=alive & (wide[:, None] < K), other=0.0)
    if EARLY:
        let_next_begin()
        await_earlier()
    if alive:
        cos = wide.to(tl.float32)
        sin = cos
        if ROTARY != UNTURNED:
            turned: tl.constexpr = D if ROTARY == BEFORE else K
            along = tl.arange(0, turned)
            if ROTARY == LRPE:
                frequency = tl.load(frequencies + head * F + along % F).to(tl.float64)
            else:
                frequency = tl.load(frequencies + along % (turned // 2))
            turns = tl.load(positions + row).to(tl.float64) * frequency * 0.15915494309189535
            angle = ((turns - tl.floor(turns + 0.5)) * 6.283185307179586).to(tl.float32)
            cos, sin = tl.cos(angle) * sharpened, tl.sin(angle) * sharpened
            if ROTARY != LRPE:
                sin = tl.where(along < turned // 2, -sin, sin)
        base = projected + row * WIDTH
        first_k: tl.constexpr = H * D
        first_v: tl.constexpr = first_k + G * D
        first_decay: tl.constexpr = first_v + VG * V
        decays: tl.constexpr = H if FADING == HEAD_GATE else (H * F if FADING == CHANNEL_GATE else 0)
        first_write: tl.constexpr = first_decay + decays
        first_gate: tl.constexpr = first_write + (H if DELTA else 0)
        q = features_of(
            base + head * D,
            bias + head * D,
            q_map + head * D * (F // 2),
            wide,
            cos,
            sin,
            D,
            F,
            FEATURES,
            ROTARY,
            MAPPED,
        )
        at_k = first_k + head // (H // G) * D
        if FADING == FORGET:
            turn: tl.constexpr = BEFORE if ROTARY == BEFORE else UNTURNED
            logits = features_of(base + at_k, bias + at_k, k_map, wide, cos, sin, D, F, NONE, turn, False)
            logits += tl.load(decay + head * F + wide % F)
            k = tl.sigmoid(-logits)
            if ROTARY == LRPE:
                k = tl.where(wide < F, k * cos, k * sin)
            keep = tl.sigmoid(logits)
        else:
            k = features_of(
                base + at_k, bias + at_k, k_map + head * D * (F // 2), wide, cos, sin, D, F, FEATURES, ROTARY, MAPPED
            )
            keep = tl.full((K,), 1.0, tl.float32)
        if FADING == HEAD:
            keep = keep * tl.exp(tl.load(decay + head))
        elif FADING == HEAD_GATE:
            logit = tl.load(base + first_decay + head).to(tl.float32) + tl.load(bias + first_decay + head)
            keep = keep * tl.sigmoid(logit)
        elif FADING == CHANNEL_GATE:
            at = first_decay + head * F + wide % F
            keep = tl.sigmoid(tl.load(base + at).to(tl.float32) + tl.load(bias + at))
        at_v = first_v + head // (H // VG) * V + columns
        v = tl.load(base + at_v).to(tl.float32) + tl.load(bias + at_v)
        if DELTA:
            q = q / tl.maximum(tl.sqrt(tl.sum(q * q, axis=0)), SHORTEST)
            k = k / tl.maximum(tl.sqrt(tl.sum(k * k, axis=0)), SHORTEST)
        elif DIVIDED != SUM:
            k = k * K**-0.5
        s = s * keep[:, None]
        if DELTA:
            logit = tl.load(base + first_write + head).to(tl.float32) + tl.load(bias + first_write + head)
            v = tl.sigmoid(logit) * (v - tl.sum(s * k[:, None], axis=0))
        s += k[:, None] * v[None, :]
        o = tl.sum(s * q[:, None], axis=0)
        if DIVIDED == SUM:
            sums = tl.load(own + wide * COLUMNS + V) * keep + k
            tl.debug_barrier()  # threads beyond K have read what others are about to write
            tl.store(own + wide * COLUMNS + V, sums)
            o = o / (tl.sum(sums * q, axis=0) + SMALLEST)
        elif DIVIDED != WHOLE:
            if DIVIDED == GROUP:
                o = o - tl.sum(o, axis=0) / V
            o = o * tl.rsqrt(tl.sum(o * o, axis=0) / V + eps)
            if DIVIDED == RMS:
                o = o * tl.load(gain + head * V + columns)
        if GATE:
            at_gate = first_gate + head * V + columns
            gate = tl.load(base + at_gate).to(tl.float32) + tl.load(bias + at_gate)
            o = o * gate * tl.sigmoid(gate)
        tl.store(out + row * H * V + head * V + columns, o.to(out.dtype.element_ty))
        tl.store(here, s)
