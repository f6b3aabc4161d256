"""One token of S sequences, in five kernels a layer: what a decoding step costs is reading the weights once.

    project   rows of W times x, with the norm before and the activation, gate or residual after
    mix       S <- decay S + k vᵀ, o = Sᵀ q in place, with what makes q, k and the decay from projections
    attend    softmax attention of one query over a cache, a block of places a program

A program of `project` owns BN outputs and walks over the inputs; of the norm it needs a factor a row only, which it
finds on the way and applies at the end. Sums are float32, in an order that the shapes alone decide.

On Hopper `mix` reads its state before the kernels launched ahead of it have ended: one that writes the same state must
not be among them. In a model the one that does is a step away, and steps begin and end with launches that wait.
"""

import triton
import triton.language as tl

from linscale.ops.decay_attention.kernels.common import await_earlier, let_next_begin

LINE = tl.constexpr(128)  # bytes of L2 that are fetched together

# What precedes the product in `project`: nothing, the norm of x itself, or of what `sums` holds the squares of.
PLAIN, NORMED, SUMMED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
# How `mix` decays the state.
NONE, HEAD, GATED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def fetch_ahead(addresses):
    """Bring lines into L2, without waiting for them."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [addresses], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def project_kernel(
    x, weight, out, residual, sums, ahead, eps, silu_until,
    S: tl.constexpr, K: tl.constexpr, N: tl.constexpr, PARTS: tl.constexpr, NORM: tl.constexpr,
    PAIRED: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr,
    BS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, LINES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """out (S, N) = a(r x Wᵀ) + residual: x (S, K), weight (N, K), or (2 N, K) gate and up rows where PAIRED.

    r is 1, or the reciprocal root mean square of x, or of something else of width K whose squares' sums over PARTS
    pieces `sums` (S, PARTS) holds. The first `silu_until` outputs are put through silu; with PAIRED and ACTIVATION the
    gate. BS is S rounded up to a power of two, at least 16 unless 1.
    """
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    known = columns < N
    rows = tl.arange(0, BS)
    alive = rows < S
    steps = tl.arange(0, BK)
    at = columns[:, None].to(tl.int64) * K
    first_w = tl.load(weight + at + steps[None, :], mask=known[:, None] & (steps < K)[None, :], other=0.0)
    first_u = first_w
    if PAIRED:
        first_u = tl.load(weight + N * K + at + steps[None, :], mask=known[:, None] & (steps < K)[None, :], other=0.0)
    if LINES > 0:
        line = ahead + (tl.program_id(0) * LINES + tl.arange(0, LINES)).to(tl.int64) * LINE
        fetch_ahead(line.to(tl.int64))
    if EARLY:
        let_next_begin()
        await_earlier()
    if BS == 1:
        values = tl.load(x + steps, mask=steps < K, other=0.0).to(tl.float32)
        main, side = first_w.to(tl.float32) * values[None, :], first_u.to(tl.float32) * values[None, :]
        squares = values * values
    else:
        values = tl.load(x + rows[:, None] * K + steps[None, :], mask=alive[:, None] & (steps < K)[None, :], other=0.0)
        across = tl.trans(values.to(first_w.dtype))  # (BK, BS)
        main = tl.dot(first_w, across, input_precision="ieee")  # (BN, BS)
        side = main
        if PAIRED:
            side = tl.dot(first_u, across, input_precision="ieee")
        wide = values.to(tl.float32)
        squares = tl.sum(wide * wide, axis=1)
    for first in tl.range(BK, K, BK):
        inside = first + steps < K
        place = at + (first + steps)[None, :]
        both = known[:, None] & inside[None, :]
        w = tl.load(weight + place, mask=both, other=0.0)
        u = w
        if PAIRED:
            u = tl.load(weight + N * K + place, mask=both, other=0.0)
        if BS == 1:
            values = tl.load(x + first + steps, mask=inside, other=0.0).to(tl.float32)
            main += w.to(tl.float32) * values[None, :]
            if PAIRED:
                side += u.to(tl.float32) * values[None, :]
            if NORM == NORMED:
                squares += values * values
        else:
            values = tl.load(
                x + rows[:, None] * K + (first + steps)[None, :], mask=alive[:, None] & inside[None, :], other=0.0
            )  # (BS, BK)
            across = tl.trans(values.to(w.dtype))
            main = tl.dot(w, across, main, input_precision="ieee")
            if PAIRED:
                side = tl.dot(u, across, side, input_precision="ieee")
            if NORM == NORMED:
                wide = values.to(tl.float32)
                squares += tl.sum(wide * wide, axis=1)
    if BS == 1:
        y, z = tl.sum(main, axis=1)[:, None], tl.sum(side, axis=1)[:, None]  # (BN, 1)
        total = tl.sum(squares, axis=0)[None]
    else:
        y, z, total = main, side, squares
    if NORM == SUMMED:
        pieces: tl.constexpr = triton.next_power_of_2(PARTS)
        part = tl.arange(0, pieces)
        held = tl.load(
            sums + rows[:, None] * PARTS + part[None, :], mask=alive[:, None] & (part < PARTS)[None, :], other=0.0
        )
        total = tl.sum(held, axis=1)
    if NORM != PLAIN:
        factor = tl.rsqrt(total / K + eps)[None, :]
        y *= factor
        z *= factor
    if PAIRED:
        if ACTIVATION:
            y = y * tl.sigmoid(y)
        y = y * z
    else:
        y = tl.where(columns[:, None] < silu_until, y * tl.sigmoid(y), y)
    where = rows[None, :] * N + columns[:, None]
    both = alive[None, :] & known[:, None]
    if RESIDUAL:
        y += tl.load(residual + where, mask=both, other=0.0).to(tl.float32)
    tl.store(out + where, y.to(out.dtype.element_ty), mask=both)


@triton.jit
def finish_kernel(
    y, x, residual, sums, out, eps, silu_until,
    K: tl.constexpr, N: tl.constexpr, PARTS: tl.constexpr, NORM: tl.constexpr, PAIRED: tl.constexpr,
    ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, BN: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """What `project_kernel` does behind its product, where a library makes that: y (S, N), or (S, 2 N) where PAIRED.
    One program a row."""
    row = tl.cast(tl.program_id(0), tl.int64)
    if EARLY:
        let_next_begin()
        await_earlier()
    factor = 1.0
    if NORM == NORMED:
        wide: tl.constexpr = triton.next_power_of_2(K)
        inputs = tl.arange(0, wide)
        values = tl.load(x + row * K + inputs, mask=inputs < K, other=0.0).to(tl.float32)
        factor = tl.rsqrt(tl.sum(values * values, axis=0) / K + eps)
    if NORM == SUMMED:
        pieces: tl.constexpr = triton.next_power_of_2(PARTS)
        part = tl.arange(0, pieces)
        held = tl.load(sums + row * PARTS + part, mask=part < PARTS, other=0.0)
        factor = tl.rsqrt(tl.sum(held, axis=0) / K + eps)
    for first in tl.range(0, N, BN):
        columns = first + tl.arange(0, BN)
        known = columns < N
        width: tl.constexpr = 2 * N if PAIRED else N
        z = tl.load(y + row * width + columns, mask=known, other=0.0).to(tl.float32) * factor
        if PAIRED:
            up = tl.load(y + row * width + N + columns, mask=known, other=0.0).to(tl.float32) * factor
            if ACTIVATION:
                z = z * tl.sigmoid(z)
            z = z * up
        else:
            z = tl.where(columns < silu_until, z * tl.sigmoid(z), z)
        if RESIDUAL:
            z += tl.load(residual + row * N + columns, mask=known, other=0.0).to(tl.float32)
        tl.store(out + row * N + columns, z.to(out.dtype.element_ty), mask=known)


@triton.jit
def mix_kernel(
    projected, state, positions, active, spans, decay, theta, gate_weight, out, sums,
    H: tl.constexpr, V: tl.constexpr, WIDTH: tl.constexpr, RANK: tl.constexpr, KIND: tl.constexpr,
    LRPE: tl.constexpr, FIRST: tl.constexpr, BV: tl.constexpr, SPANS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One program: (sequence, head, BV columns of its state). state (S, H, K, V) float32 or bfloat16, in place.

    projected (rows, WIDTH): q, k, v (H, V each, silu done) and a gate's bottleneck of RANK; for GATED q, f, v, with f
    the forget gate before its sigmoid and `decay` the lower bounds (H V,). For HEAD `decay` is log λ (H,). With LRPE,
    K = 2 V and `theta` (H, V) are angles a token. out (rows, H V) = o times the gate, sums (rows, H V / BV) the squares
    of o. A sequence has the row of its number, and is left alone where it is not `active`; with SPANS it has the rows
    that `spans` (S, 3) says, first and count, one after the other, and starts afresh where the third number is not 0.
    """
    program = tl.program_id(0)
    slices: tl.constexpr = V // BV
    row = tl.cast(program // (slices * H), tl.int64)
    head = (program // slices) % H
    piece = program % slices
    wide = tl.arange(0, V)
    columns = piece * BV + tl.arange(0, BV)
    parts: tl.constexpr = 2 if LRPE else 1
    here = state + (row * H + head) * parts * V * V + wide[:, None] * V + columns[None, :]
    first = row
    count = 1
    if SPANS:
        first = tl.load(spans + row * 3).to(tl.int64)
        count = tl.load(spans + row * 3 + 1)
        alive = count > 0
        known = alive & (tl.load(spans + row * 3 + 2) == 0)
    else:
        alive = tl.load(active + row) != 0
        known = alive
    s = tl.load(here, mask=known & (wide[:, None] < V), other=0.0).to(tl.float32)
    t = s
    if LRPE:
        t = tl.load(here + V * V, mask=known & (wide[:, None] < V), other=0.0).to(tl.float32)
    if EARLY:
        let_next_begin()
        await_earlier()
    if alive:
        base = projected + first * WIDTH + head * V
        q = tl.load(base + wide)
        k_or_f = tl.load(base + H * V + wide)
        v = tl.load(base + 2 * H * V + columns)
        next_q, next_k, next_v = q, k_or_f, v
        for number in tl.range(0, count):
            if SPANS:  # what is read next is under way while this is worked on
                more = number + 1 < count
                base += WIDTH
                next_q = tl.load(base + wide, mask=more & (wide < V), other=0.0)
                next_k = tl.load(base + H * V + wide, mask=more & (wide < V), other=0.0)
                next_v = tl.load(base + 2 * H * V + columns, mask=more & (columns < V), other=0.0)
            query, k, value = q.to(tl.float32), k_or_f.to(tl.float32), v.to(tl.float32)
            keep = tl.full((V,), 1.0, tl.float32)
            if KIND == GATED:
                open_ = tl.sigmoid(k)
                shut = tl.sigmoid(-k)
                if FIRST:
                    keep, k = open_, shut
                else:
                    low = tl.load(decay + head * V + wide)
                    keep = low + (1 - low) * open_
                    k = (1 - low) * shut
            elif KIND == HEAD:
                keep = keep * tl.exp(tl.load(decay + head))
            if LRPE:
                turns = (tl.load(positions + row) + number).to(tl.float64)
                turns = turns * tl.load(theta + head * V + wide).to(tl.float64) * 0.15915494309189535
                angle = ((turns - tl.floor(turns + 0.5)) * 6.283185307179586).to(tl.float32)
                cos, sin = tl.cos(angle), tl.sin(angle)
                s = s * keep[:, None] + (k * cos)[:, None] * value[None, :]
                t = t * keep[:, None] + (k * sin)[:, None] * value[None, :]
                o = tl.sum(s * (query * cos)[:, None] + t * (query * sin)[:, None], axis=0)
            else:
                s = s * keep[:, None] + k[:, None] * value[None, :]
                o = tl.sum(s * query[:, None], axis=0)
            tl.store(sums + (first + number) * H * slices + head * slices + piece, tl.sum(o * o, axis=0))
            if RANK > 0:
                rank = tl.arange(0, RANK)
                narrow = tl.load(projected + (first + number) * WIDTH + 3 * H * V + rank).to(tl.float32)
                up = tl.load(gate_weight + (head * V + columns).to(tl.int64)[:, None] * RANK + rank[None, :])
                o = o * tl.sigmoid(tl.sum(up.to(tl.float32) * narrow[None, :], axis=1))
            tl.store(out + (first + number) * H * V + head * V + columns, o.to(out.dtype.element_ty))
            if SPANS:  # rounded a token, as it is in steps: how a text is cut into spans then leaves no trace
                s = s.to(state.dtype.element_ty).to(tl.float32)
                t = t.to(state.dtype.element_ty).to(tl.float32)
                q, k_or_f, v = next_q, next_k, next_v
        tl.store(here, s.to(state.dtype.element_ty))
        if LRPE:
            tl.store(here + V * V, t.to(state.dtype.element_ty))


@triton.jit
def encode_kernel(
    x, state, active, spans, log_rate, weight,
    D: tl.constexpr, E: tl.constexpr, BD: tl.constexpr, SPANS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One program: (sequence, BD channels). TPE: h <- λ h + x, x <- Σ b h; state h (S, D, E) float32, x (rows, D), both
    in place; log_rate (E,), weight b (D, E). Rows as in `mix_kernel`."""
    blocks: tl.constexpr = (D + BD - 1) // BD
    row = tl.cast(tl.program_id(0) // blocks, tl.int64)
    channels = (tl.program_id(0) % blocks) * BD + tl.arange(0, BD)
    wide: tl.constexpr = triton.next_power_of_2(E)
    terms = tl.arange(0, wide)
    inside = (channels < D)[:, None] & (terms < E)[None, :]
    first = row
    count = 1
    if SPANS:
        first = tl.load(spans + row * 3).to(tl.int64)
        count = tl.load(spans + row * 3 + 1)
        alive = count > 0
        known = alive & (tl.load(spans + row * 3 + 2) == 0)
    else:
        alive = tl.load(active + row) != 0
        known = alive
    here = state + (row * D + channels[:, None]) * E + terms[None, :]
    h = tl.load(here, mask=known & inside, other=0.0)
    keep = tl.exp(tl.load(log_rate + terms, mask=terms < E, other=0.0).to(tl.float32))
    b = tl.load(weight + channels[:, None] * E + terms[None, :], mask=inside, other=0.0).to(tl.float32)
    if EARLY:
        let_next_begin()
        await_earlier()
    if alive:
        for number in tl.range(0, count):
            at = x + (first + number) * D + channels
            h = h * keep[None, :] + tl.load(at, mask=channels < D, other=0.0).to(tl.float32)[:, None]
            tl.store(at, tl.sum(h * b, axis=1).to(x.dtype.element_ty), mask=channels < D)
        tl.store(here, h, mask=inside)


@triton.jit
def attend_kernel(
    projected, keys, values, positions, active, frequencies, partial, weights, arrived, out, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, CAPACITY: tl.constexpr, WIDTH: tl.constexpr,
    SPLITS: tl.constexpr, BT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One program: (sequence, head, BT places of its cache (S, CAPACITY, G, K)); out (S, H K).

    projected (S, WIDTH): q (H K), k (G K), v (G K), turned by their place here (RoPE, frequencies (K/2,) float64). The
    program whose places the new token is among appends k and v. partial (S, H, SPLITS, K) and weights (S, H, SPLITS, 2)
    take the average of the values at its places, the largest score and the sum of exponentials; the last program of a
    head to come there, by the count `arrived` (S, H), puts all of them together, in their order.
    """
    program = tl.program_id(0)
    split = program % SPLITS
    head = (program // SPLITS) % H
    row = tl.cast(program // (SPLITS * H), tl.int64)
    last = tl.load(positions + row)
    alive = (tl.load(active + row) != 0) & (split * BT <= last)
    wide = tl.arange(0, K)
    half = wide % (K // 2)
    places = split * BT + tl.arange(0, BT)
    group = head // (H // G)
    at = ((row * CAPACITY + places[:, None].to(tl.int64)) * G + group) * K + wide[None, :]
    past = alive & (places < last)
    k = tl.load(keys + at, mask=past[:, None], other=0.0).to(tl.float32)
    v = tl.load(values + at, mask=past[:, None], other=0.0).to(tl.float32)
    if EARLY:
        let_next_begin()
        await_earlier()
    if alive:
        turns = last.to(tl.float64) * tl.load(frequencies + half) * 0.15915494309189535
        angle = ((turns - tl.floor(turns + 0.5)) * 6.283185307179586).to(tl.float32)
        cos, sin = tl.cos(angle), tl.sin(angle)
        sin = tl.where(wide < K // 2, -sin, sin)
        other = (wide + K // 2) % K
        base = projected + row * WIDTH
        q = tl.load(base + head * K + wide).to(tl.float32) * cos + tl.load(base + head * K + other).to(tl.float32) * sin
        base += H * K + group * K
        new_k = tl.load(base + wide).to(tl.float32) * cos + tl.load(base + other).to(tl.float32) * sin
        new_v = tl.load(base + G * K + wide)
        q = q.to(out.dtype.element_ty).to(tl.float32)
        stored = new_k.to(keys.dtype.element_ty)
        if (last // BT == split) & (head % (H // G) == 0):
            there = ((row * CAPACITY + last) * G + group) * K + wide
            tl.store(keys + there, stored)
            tl.store(values + there, new_v.to(values.dtype.element_ty))
        new = (places == last)[:, None]
        k = tl.where(new, stored.to(tl.float32)[None, :], k)
        v = tl.where(new, new_v.to(tl.float32)[None, :], v)
        score = tl.where(places <= last, tl.sum(k * q[None, :], axis=1) * scale, float("-inf"))
        top = tl.max(score, axis=0)
        e = tl.exp(score - top)
        total = tl.sum(e, axis=0)
        o = tl.sum(v * e[:, None], axis=0) / total
        used = last // BT + 1
        first = (row * H + head) * SPLITS
        complete = used == 1
        if used > 1:
            tl.store(partial + (first + split) * K + wide, o)
            tl.store(weights + (first + split) * 2, top)
            tl.store(weights + (first + split) * 2 + 1, total)
            tl.debug_barrier()  # all of it is written before the count
            complete = tl.atomic_add(arrived + row * H + head, 1, sem="acq_rel") == used - 1
            if complete:
                tl.store(arrived + row * H + head, 0)
                o = _together(partial + first * K, weights + first * 2, used, K)
        if complete:
            tl.store(out + row * H * K + head * K + wide, o.to(out.dtype.element_ty))


@triton.jit
def _together(partial, weights, used, K: tl.constexpr):
    """(K,): averages (used, K) by their weights exp(score) total."""
    wide = tl.arange(0, K)
    some = tl.arange(0, 16)
    top = tl.full((), float("-inf"), tl.float32)
    for first in tl.range(0, used, 16):
        at = weights + (first + some) * 2
        top = tl.maximum(top, tl.max(tl.load(at, mask=first + some < used, other=float("-inf"), cache_modifier=".cg")))
    total = tl.zeros((), tl.float32)
    o = tl.zeros((K,), tl.float32)
    for first in tl.range(0, used, 16):
        known = first + some < used
        at = weights + (first + some) * 2
        score = tl.load(at, mask=known, other=float("-inf"), cache_modifier=".cg")
        weight = tl.exp(score - top) * tl.load(at + 1, mask=known, other=0.0, cache_modifier=".cg")
        average = tl.load(
            partial + (first + some)[:, None] * K + wide[None, :], mask=known[:, None], other=0.0, cache_modifier=".cg"
        )
        total += tl.sum(weight, axis=0)
        o += tl.sum(average * weight[:, None], axis=0)
    return o / total


@triton.jit
def turn_kernel(
    state, positions, active,
    BLOCK: tl.constexpr, ELEMENTS: tl.constexpr, PLACES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One program: (sequence, CHUNK elements of every place). state (S, PLACES, ELEMENTS) float32; positions (S,) are
    those of the tokens just read. Other rows are left as they are, and cost a program two numbers."""
    parts: tl.constexpr = (ELEMENTS + CHUNK - 1) // CHUNK
    row = tl.cast(tl.program_id(0) // parts, tl.int64)
    full = (tl.load(positions + row) % BLOCK == BLOCK - 1) & (tl.load(active + row) != 0)
    if full:
        at = (tl.program_id(0) % parts) * CHUNK + tl.arange(0, CHUNK)
        inside = at < ELEMENTS
        here = state + row * PLACES * ELEMENTS + at
        nothing = tl.zeros([CHUNK], state.dtype.element_ty)
        keys = tl.load(here + 4 * ELEMENTS, mask=inside)
        values = tl.load(here + 5 * ELEMENTS, mask=inside)
        tl.store(here, keys, mask=inside)
        tl.store(here + ELEMENTS, values, mask=inside)
        for place in tl.static_range(2, 6):
            tl.store(here + place * ELEMENTS, nothing, mask=inside)
        if PLACES >= 8:
            older = tl.load(here + 6 * ELEMENTS, mask=inside)
            newer = tl.load(here + 7 * ELEMENTS, mask=inside)
            tl.store(here + 6 * ELEMENTS, newer, mask=inside)
            tl.store(here + 7 * ELEMENTS, older, mask=inside)
        for place in tl.static_range(8, PLACES):
            tl.store(here + place * ELEMENTS, nothing, mask=inside)
