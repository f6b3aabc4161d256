# mypy: allow-untyped-defs
"""The Triton kernels of `delta_rule`, in the equations and names of chunk.py; kernel.py launches them.

Sequences are cut into N chunks of C steps. But for the walk, a program does one chunk of one head, the whole of it on
chip; chunks are numbered (n B + row) H + head. q, k, v, beta, g are (B, T, H, ...), what passes between kernels is
(N, B, H, ...), all contiguous. Steps beyond T have β = 0 and g = 0: the state passes them.

Constants of a kernel, by name everywhere:
    DECAYS    g is given
    PRECISION input_precision of products
"""

import triton
import triton.language as tl

FLOOR = tl.constexpr(-80.0)  # exp(-80) = 2e-35: nothing next to 1
EXACT = tl.constexpr("tf32x3")  # three tf32 products: the digits of float32


@triton.jit
def place(B, T, H: tl.constexpr, C: tl.constexpr):
    """(number of this program's chunk; its first step in a (B, T, H), int64; its steps' offsets; which exist)."""
    program = tl.program_id(0)
    head = program % H
    row = (program // H) % B
    begin = program // (H * B) * C
    rows = tl.arange(0, C)
    first = (tl.cast(row, tl.int64) * T + begin) * H + head
    return tl.cast(program, tl.int64), first, rows * H, begin + rows < T


@triton.jit
def tile(x, first, steps, live, part, WIDTH: tl.constexpr, BW: tl.constexpr):
    """(C, BW) float32 of x (B, T, H, WIDTH), columns from part BW on."""
    wide = part * BW + tl.arange(0, BW)
    at = (first + steps)[:, None] * WIDTH + wide[None, :]
    return tl.load(x + at, mask=live[:, None] & (wide < WIDTH)[None, :], other=0.0).to(tl.float32)


@triton.jit
def put(x, value, first, steps, live, part, WIDTH: tl.constexpr, BW: tl.constexpr):
    """Stores what `tile` would read."""
    wide = part * BW + tl.arange(0, BW)
    at = (first + steps)[:, None] * WIDTH + wide[None, :]
    tl.store(x + at, value.to(x.dtype.element_ty), mask=live[:, None] & (wide < WIDTH)[None, :])


@triton.jit
def matrix(number, part, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):
    """Offsets and mask of matrix `number` of a tensor (N, B, H, ROWS, COLUMNS), columns from part BC on."""
    rows = tl.arange(0, BR)
    columns = part * BC + tl.arange(0, BC)
    at = number * (ROWS * COLUMNS) + rows[:, None] * COLUMNS + columns[None, :]
    return at, (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]


@triton.jit
def fetch(x, number, part, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):
    at, inside = matrix(number, part, ROWS, COLUMNS, BR, BC)
    return tl.load(x + at, mask=inside, other=0.0)


@triton.jit
def keep(x, value, number, part, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):
    at, inside = matrix(number, part, ROWS, COLUMNS, BR, BC)
    tl.store(x + at, value, mask=inside)


@triton.jit
def decays(g, first, steps, live, C: tl.constexpr, DECAYS: tl.constexpr):
    """exp G, exp(G_C - G), exp G_C (a number), and tril(D)."""
    rows = tl.arange(0, C)
    total = tl.zeros((C,), tl.float32)
    if DECAYS:
        given = tl.load(g + first + steps, mask=live, other=0.0).to(tl.float32)
        total = tl.cumsum(tl.maximum(given, FLOOR), 0)
    last = tl.sum(tl.where(rows == C - 1, total, 0.0), 0)
    apart = tl.minimum(tl.maximum(total[:, None] - total[None, :], FLOOR), 0.0)
    triangle = tl.where(rows[:, None] >= rows[None, :], tl.exp(apart), 0.0)
    past = tl.exp(tl.maximum(total, FLOOR))
    future = tl.exp(tl.maximum(last - total, FLOOR))
    return past, future, tl.exp(tl.maximum(last, FLOOR)), triangle


@triton.jit
def strict(triangle, C: tl.constexpr):
    """Without the diagonal."""
    rows = tl.arange(0, C)
    return tl.where(rows[:, None] > rows[None, :], triangle, 0.0)


@triton.jit
def unit_lower_inverse(a, C: tl.constexpr, LEVELS: tl.constexpr):
    """(I + A)⁻¹ as inverse.py has it, every block in its place in (C, C): X <- X - X Y X, where Y joins neighbours."""
    rows = tl.arange(0, C)
    near = (rows[:, None] // 2 == rows[None, :] // 2) & (rows[:, None] > rows[None, :])
    inverse = tl.where(rows[:, None] == rows[None, :], 1.0, 0.0) - tl.where(near, a, 0.0)
    for level in tl.static_range(1, LEVELS):
        size = 1 << level
        joins = (rows[:, None] // (2 * size) == rows[None, :] // (2 * size)) & (
            rows[:, None] // size > rows[None, :] // size
        )
        below = tl.dot(tl.where(joins, a, 0.0), inverse, input_precision=EXACT)
        inverse -= tl.dot(inverse, below, input_precision=EXACT)
    return inverse


@triton.jit
def prepare_kernel(
    k, v, beta, g, transition, update, decay, reads, written, inverse,
    B, T,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    LEVELS: tl.constexpr, DECAYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What a chunk does to the state, and (I + A)⁻¹, W and T β v."""
    number, first, steps, live = place(B, T, H, C)
    past, future, whole, triangle = decays(g, first, steps, live, C, DECAYS)
    if DECAYS:
        tl.store(decay + number, whole)
    k_tile = tile(k, first, steps, live, 0, K, BK)
    write = tl.load(beta + first + steps, mask=live, other=0.0).to(tl.float32)
    near = tl.dot(k_tile, tl.trans(k_tile), input_precision=EXACT) * strict(triangle, C)
    inverse_tile = unit_lower_inverse(write[:, None] * near, C, LEVELS)
    keep(inverse, inverse_tile, number, 0, C, C, C, C)
    weights = inverse_tile * write[None, :]
    k_future = tl.trans(k_tile * future[:, None])
    for part in tl.range(0, (V + BV - 1) // BV, num_stages=1):
        v_tile = tile(v, first, steps, live, part, V, BV)
        written_tile = tl.dot(weights, v_tile, input_precision=PRECISION)
        keep(written, written_tile, number, part, C, V, C, BV)
        keep(update, tl.dot(k_future, written_tile, input_precision=PRECISION), number, part, K, V, BK, BV)
    reads_tile = tl.dot(weights * past[None, :], k_tile, input_precision=PRECISION)
    keep(reads, reads_tile, number, 0, C, K, C, BK)
    keep(transition, -tl.dot(k_future, reads_tile, input_precision=PRECISION), number, 0, K, K, BK, BK)


@triton.jit
def delta_walk_kernel(
    update, transition, decay, state, cu_chunks, met, final,
    chunks, B,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DECAYS: tl.constexpr,
    PACKED: tl.constexpr, BACKWARDS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`walk`, one program a (sequence, head, BV columns of the state): columns do not mix. PACKED: B = 1, and document
    d has the chunks from cu_chunks[d] on."""
    across: tl.constexpr = (V + BV - 1) // BV
    program = tl.program_id(0)
    head = (program // across) % H
    sequence = program // (across * H)
    first = 0
    count = chunks
    row = sequence
    if PACKED:
        first = tl.load(cu_chunks + sequence).to(tl.int32)
        count = tl.load(cu_chunks + sequence + 1).to(tl.int32) - first
        row = 0
    wide = tl.arange(0, BK)
    columns = (program % across) * BV + tl.arange(0, BV)
    inside = wide[:, None] * V + columns[None, :]
    known = (wide[:, None] < K) & (columns[None, :] < V)
    in_matrix = (wide[:, None] < K) & (wide[None, :] < K)
    own = (tl.cast(sequence, tl.int64) * H + head) * K * V
    now = tl.load(state + own + inside, mask=known, other=0.0)
    for step in tl.range(0, count, num_stages=STAGES):
        n = first + (count - 1 - step if BACKWARDS else step)
        at = (tl.cast(n, tl.int64) * B + row) * H + head
        turn = tl.load(transition + at * K * K + wide[:, None] * K + wide[None, :], mask=in_matrix, other=0.0)
        kept = tl.load(update + at * K * V + inside, mask=known, other=0.0)
        tl.store(met + at * K * V + inside, now, mask=known)
        if DECAYS:
            kept += tl.load(decay + at) * now
        else:
            kept += now
        if BACKWARDS:
            turn = tl.trans(turn)
        now = tl.dot(turn, now, kept, input_precision=EXACT)
    tl.store(final + own + inside, now, mask=known)


@triton.jit
def queries(
    q, k, first, steps, live, past, triangle, scale, K: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """q * exp G (C, BK) of a chunk, and its scores tril(D * q kᵀ) (C, C); both times scale."""
    q_tile = tile(q, first, steps, live, 0, K, BK) * scale
    k_tile = tile(k, first, steps, live, 0, K, BK)
    return q_tile * past[:, None], tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * triangle


@triton.jit
def output_kernel(
    q, k, g, reads, written, met, o,
    B, T, scale,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    DECAYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """o = tril(D * q kᵀ) u + (q * exp G) S,  u = T β v - W S."""
    number, first, steps, live = place(B, T, H, C)
    past, _, _, triangle = decays(g, first, steps, live, C, DECAYS)
    q_past, scores = queries(q, k, first, steps, live, past, triangle, scale, K, BK, PRECISION)
    reads_tile = fetch(reads, number, 0, C, K, C, BK)
    for part in tl.range(0, (V + BV - 1) // BV, num_stages=1):
        state = fetch(met, number, part, K, V, BK, BV)
        u = fetch(written, number, part, C, V, C, BV) - tl.dot(reads_tile, state, input_precision=PRECISION)
        result = tl.dot(q_past, state, input_precision=PRECISION)
        result += tl.dot(scores, u, input_precision=PRECISION)
        put(o, result, first, steps, live, part, V, BV)


@triton.jit
def inflow_kernel(
    q, k, g, reads, do, dupdate,
    B, T, scale,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    DECAYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What a chunk adds to dS on the way back: (q * exp G)ᵀ do - Wᵀ Pᵀ do."""
    number, first, steps, live = place(B, T, H, C)
    past, _, _, triangle = decays(g, first, steps, live, C, DECAYS)
    q_past, scores = queries(q, k, first, steps, live, past, triangle, scale, K, BK, PRECISION)
    reads_tile = fetch(reads, number, 0, C, K, C, BK)
    query = q_past - tl.dot(scores, reads_tile, input_precision=PRECISION)
    for part in tl.range(0, (V + BV - 1) // BV, num_stages=1):
        do_tile = tile(do, first, steps, live, part, V, BV)
        keep(dupdate, tl.dot(tl.trans(query), do_tile, input_precision=PRECISION), number, part, K, V, BK, BV)


@triton.jit
def delta_grads_kernel(
    q, k, v, beta, g, reads, written, inverse, met, dafter, do, dq, dk, dv, dbeta, dg,
    B, T, scale,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    DECAYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of a chunk's inputs, from do, S before it and dS' behind it. Columns of S a few at a time."""
    number, first, steps, live = place(B, T, H, C)
    past, future, whole, triangle = decays(g, first, steps, live, C, DECAYS)
    below = strict(triangle, C)
    write = tl.load(beta + first + steps, mask=live, other=0.0).to(tl.float32)[:, None]
    q_tile = tile(q, first, steps, live, 0, K, BK) * scale
    k_tile = tile(k, first, steps, live, 0, K, BK)
    reads_tile = fetch(reads, number, 0, C, K, C, BK)
    inverse_tile = fetch(inverse, number, 0, C, C, C, C)
    products = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
    similar = tl.dot(k_tile, tl.trans(k_tile), input_precision=EXACT)
    dscores = tl.zeros((C, C), tl.float32)
    dnear = tl.zeros((C, C), tl.float32)
    dq_past = tl.zeros((C, BK), tl.float32)
    dk_past = tl.zeros((C, BK), tl.float32)
    dk_future = tl.zeros((C, BK), tl.float32)
    dwrite = tl.zeros((C,), tl.float32)
    faded = 0.0
    for part in tl.range(0, (V + BV - 1) // BV, num_stages=1):
        state = fetch(met, number, part, K, V, BK, BV)
        dstate = fetch(dafter, number, part, K, V, BK, BV)
        u = fetch(written, number, part, C, V, C, BV) - tl.dot(reads_tile, state, input_precision=PRECISION)
        do_tile = tile(do, first, steps, live, part, V, BV)
        du = tl.dot(tl.trans(products * triangle), do_tile, input_precision=PRECISION)
        du += tl.dot(k_tile, dstate, input_precision=PRECISION) * future[:, None]
        dr = tl.dot(tl.trans(inverse_tile), du, input_precision=PRECISION)
        put(dv, write * dr, first, steps, live, part, V, BV)
        error = tile(v, first, steps, live, part, V, BV)
        error -= tl.dot(k_tile, state, input_precision=PRECISION) * past[:, None]
        error -= tl.dot(similar * below, u, input_precision=PRECISION)
        dwrite += tl.sum(dr * error, 1)
        faded += tl.sum(tl.sum(dstate * state, 1), 0)
        dscores = tl.dot(do_tile, tl.trans(u), dscores, input_precision=PRECISION)
        dnear = tl.dot(dr, tl.trans(u), dnear, input_precision=PRECISION)
        dq_past = tl.dot(do_tile, tl.trans(state), dq_past, input_precision=PRECISION)
        dk_past = tl.dot(dr, tl.trans(state), dk_past, input_precision=PRECISION)
        dk_future = tl.dot(u, tl.trans(dstate), dk_future, input_precision=PRECISION)
    tl.store(dbeta + first + steps, dwrite.to(dbeta.dtype.element_ty), mask=live)
    dscores *= triangle
    dnear *= -write * below
    dq_past *= past[:, None]
    dk_past *= -write * past[:, None]
    dk_future *= future[:, None]
    result = tl.dot(dscores, k_tile, input_precision=PRECISION) + dq_past
    put(dq, result * scale, first, steps, live, 0, K, BK)
    result = tl.dot(tl.trans(dscores), q_tile, input_precision=PRECISION) + dk_future + dk_past
    result += tl.dot(dnear + tl.trans(dnear), k_tile, input_precision=PRECISION)
    put(dk, result, first, steps, live, 0, K, BK)
    if DECAYS:
        rows = tl.arange(0, C)
        pairs = strict(dscores, C) * products + dnear * similar
        through_end = tl.where(rows < C - 1, tl.sum(k_tile * dk_future, 1), 0.0)
        dtotal = tl.sum(q_tile * dq_past + k_tile * dk_past, 1) - through_end + tl.sum(pairs, 1) - tl.sum(pairs, 0)
        dtotal += tl.where(rows == C - 1, tl.sum(through_end, 0) + whole * faded, 0.0)
        summed = tl.cumsum(dtotal, 0, reverse=True)
        tl.store(dg + first + steps, summed.to(dg.dtype.element_ty), mask=live)
