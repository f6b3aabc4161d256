# mypy: allow-untyped-defs
"""The Triton kernels of `delta_rule`, in the equations and names of chunk.py; kernel.py launches them.

Sequences are cut into N chunks of C steps. But for the walk, a program does one chunk of one head, the whole of it on
chip; chunks are numbered (n B + row) H + head. q, k, v, beta, g are (B, T, H, ...), what passes between kernels is
(N, B, H, ...), all contiguous. Steps beyond T have β = 0 and g = 0: the state passes them.

Factors of rows and columns stand beside products, not in their operands, where they can: q and k go to the matrix units
as they came, from one copy on chip, and are not rounded again. No operand is the transpose of what the same kernel has
computed: from Triton 3.4 to 3.7.0 such products are wrong on Hopper (flash-linear-attention's issue 640). It is
computed the other way round, or by the kernel before.

Constants of a kernel, by name everywhere:
    DECAYS    g is given
    DOT       dtype of the operands of products, and of what is kept for nothing else; sums are float32
    PRECISION input_precision of products of float32 operands
"""

import triton
import triton.language as tl

from linscale.ops.decay_attention.kernels.common import BF16

FLOOR = tl.constexpr(-80.0)  # exp(-80) = 2e-35: nothing next to 1
EXACT = tl.constexpr("tf32x3")  # three tf32 products: the digits of float32
BLOCK = tl.constexpr(16)  # rows of the blocks on the diagonal that are inverted step by step


@triton.jit
def product(a, b, DOT: tl.constexpr, PRECISION: tl.constexpr, total=None):
    """total + a b, of operands rounded to DOT."""
    OPERAND: tl.constexpr = BF16 if tl.bfloat16 == DOT else DOT  # Triton's interpreter multiplies no bf16
    return tl.dot(a.to(DOT).to(OPERAND), b.to(DOT).to(OPERAND), total, input_precision=PRECISION)


@triton.jit
def upper_half(x):
    """float32 x cut off after the bits that bf16 has. Not rounded: on Hopper that is a slow instruction."""
    return (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def exact_product(a, b, DOT: tl.constexpr):
    """a b of float32 matrices: to float32's digits, or to 16 bits where all else is bf16."""
    if tl.bfloat16 == DOT:
        high, above = upper_half(a), upper_half(b)
        low, under = a - high, b - above
        result = product(high, under, DOT, EXACT, product(low, above, DOT, EXACT))
        result = product(high, above, DOT, EXACT, result)
    else:
        result = tl.dot(a, b, input_precision=EXACT)
    return result


@triton.jit
def left_exact(a, b, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """a b with 16 bits of a, float32, where b is bf16. Where keys are alike, what these make cancels in sums."""
    if tl.bfloat16 == DOT:
        high = upper_half(a)
        result = product(high, b, DOT, PRECISION, product(a - high, b, DOT, PRECISION))
    else:
        result = product(a, b, DOT, PRECISION)
    return result


@triton.jit
def right_exact(a, b, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """a b with 16 bits of b, float32, where a is bf16."""
    if tl.bfloat16 == DOT:
        high = upper_half(b)
        result = product(a, high, DOT, PRECISION, product(a, b - high, DOT, PRECISION))
    else:
        result = product(a, b, DOT, PRECISION)
    return result


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
    """(C, BW) of x (B, T, H, WIDTH), columns from part BW on."""
    wide = part * BW + tl.arange(0, BW)
    at = (first + steps)[:, None] * WIDTH + wide[None, :]
    return tl.load(x + at, mask=live[:, None] & (wide < WIDTH)[None, :], other=0.0)


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
    tl.store(x + at, value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def decays(g, first, steps, live, C: tl.constexpr, DECAYS: tl.constexpr):
    """G, exp G, exp(G_C - G), and exp G_C (a number)."""
    rows = tl.arange(0, C)
    total = tl.zeros((C,), tl.float32)
    if DECAYS:
        given = tl.load(g + first + steps, mask=live, other=0.0).to(tl.float32)
        total = tl.cumsum(tl.maximum(given, FLOOR), 0)
    last = tl.sum(tl.where(rows == C - 1, total, 0.0), 0)
    past = tl.exp(tl.maximum(total, FLOOR))
    future = tl.exp(tl.maximum(last - total, FLOOR))
    return total, past, future, tl.exp(tl.maximum(last, FLOOR))


@triton.jit
def fade(total, C: tl.constexpr, FROM: tl.constexpr):
    """tril(D, -FROM) of G. Made where it is used: it takes many registers."""
    rows = tl.arange(0, C)
    apart = tl.where(rows[:, None] >= rows[None, :] + FROM, total[:, None] - total[None, :], float("-inf"))
    return tl.exp(apart)


@triton.jit
def unit_lower_inverse(a, C: tl.constexpr, DOT: tl.constexpr):
    """(I + A)⁻¹ as inverse.py has it, C <= 64, every block in its place in (C, C).

    Blocks of 16 on the diagonal are inverted side by side, by elimination in registers, a column at a time: X. Where Y
    is the part of A that joins them in pairs and Z the rest, two neighbours become one by X - X Y X, twice:

        X' = X - X Y X        X' - X' Z X' = X' - X' (Z X - Z X Y X)

    Like there, all that is multiplied is small: inverses, blocks of A, and such blocks times inverses.
    """
    tl.static_assert(C <= 4 * BLOCK)
    BLOCKS: tl.constexpr = C // BLOCK
    rows = tl.arange(0, C)
    within = tl.arange(0, BLOCK)
    beside = rows[:, None] // BLOCK == rows[None, :] // BLOCK
    own = tl.sum(tl.reshape(tl.where(beside, a, 0.0), (BLOCKS, BLOCK, BLOCKS, BLOCK)), 2)
    small = tl.where(within[:, None] == within[None, :], 1.0, 0.0)[None, :, :] + tl.zeros_like(own)
    for step in tl.static_range(BLOCK - 1):
        column = tl.sum(tl.where((within == step)[None, None, :], own, 0.0), 2)
        row = tl.sum(tl.where((within == step)[None, :, None], small, 0.0), 1)
        small -= column[:, :, None] * row[:, None, :]
    spread = tl.broadcast_to(small[:, :, None, :], (BLOCKS, BLOCK, BLOCKS, BLOCK))
    inverse = tl.where(beside, tl.reshape(spread, (C, C)), 0.0)
    if BLOCKS > 1:
        below = exact_product(tl.where(beside, 0.0, a), inverse, DOT)
        pairs = rows[:, None] // (2 * BLOCK) == rows[None, :] // (2 * BLOCK)
        inside = tl.where(pairs, below, 0.0)
        inverse -= exact_product(inverse, inside, DOT)
        if BLOCKS > 2:
            across = tl.where(pairs, 0.0, below)
            across -= exact_product(across, inside, DOT)
            inverse -= exact_product(inverse, across, DOT)
    return inverse


@triton.jit
def prepare_kernel(
    k, v, beta, g, transition, update, decay, reads, written, similar, inverse,
    B, T,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    DECAYS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What a chunk does to the state, and D * k kᵀ, (I + A)⁻¹, W and T β v."""
    number, first, steps, live = place(B, T, H, C)
    total, past, future, whole = decays(g, first, steps, live, C, DECAYS)
    if DECAYS:
        tl.store(decay + number, whole)
    k_tile = tile(k, first, steps, live, 0, K, BK).to(DOT)
    write = tl.load(beta + first + steps, mask=live, other=0.0).to(tl.float32)
    near = product(k_tile, tl.trans(k_tile), DOT, EXACT) * fade(total, C, 1)
    keep(similar, near, number, 0, C, C, C, C)
    inverse_tile = unit_lower_inverse(write[:, None] * near, C, DOT)
    keep(inverse, inverse_tile, number, 0, C, C, C, C)
    weights = inverse_tile * write[None, :]
    reads_tile = left_exact(weights * past[None, :], k_tile, DOT, PRECISION)
    keep(reads, reads_tile, number, 0, C, K, C, BK)
    turn = -right_exact(tl.trans(k_tile), reads_tile * future[:, None], DOT, PRECISION)
    keep(transition, turn, number, 0, K, K, BK, BK)
    for part in tl.range(0, (V + BV - 1) // BV, num_stages=1):
        written_tile = left_exact(weights, tile(v, first, steps, live, part, V, BV), DOT, PRECISION)
        keep(written, written_tile, number, part, C, V, C, BV)
        gain = right_exact(tl.trans(k_tile), written_tile * future[:, None], DOT, PRECISION)
        keep(update, gain, number, part, K, V, BK, BV)


@triton.jit
def turned(turn, now, kept, DOT: tl.constexpr):
    """kept + M S, of M as it was kept and all digits of S, or 16 bits of them where M is bf16."""
    if tl.bfloat16 == DOT:
        high = upper_half(now)
        kept = product(turn, now - high, DOT, EXACT, kept)
        kept = product(turn, high, DOT, EXACT, kept)
    else:
        kept = tl.dot(turn, now, kept, input_precision=EXACT)
    return kept


@triton.jit
def delta_walk_kernel(
    update, transition, decay, state, cu_chunks, met, final,
    chunks, B,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DECAYS: tl.constexpr,
    PACKED: tl.constexpr, BACKWARDS: tl.constexpr, STAGES: tl.constexpr, DOT: tl.constexpr,
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
        tl.store(met + at * K * V + inside, now.to(met.dtype.element_ty), mask=known)
        if DECAYS:
            kept += tl.load(decay + at) * now
        else:
            kept += now
        if BACKWARDS:
            turn = tl.trans(turn)
        now = turned(turn, now, kept, DOT)
    tl.store(final + own + inside, now, mask=known)


@triton.jit
def output_kernel(
    q, k, g, reads, written, met, o,
    B, T, scale,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    DECAYS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """o = tril(D * q kᵀ) u + (q * exp G) S,  u = T β v - W S."""
    number, first, steps, live = place(B, T, H, C)
    total, past, _, _ = decays(g, first, steps, live, C, DECAYS)
    q_tile = tile(q, first, steps, live, 0, K, BK).to(DOT)
    k_tile = tile(k, first, steps, live, 0, K, BK).to(DOT)
    scores = (product(q_tile, tl.trans(k_tile), DOT, PRECISION) * (fade(total, C, 0) * scale)).to(DOT)
    reads_tile = fetch(reads, number, 0, C, K, C, BK)
    for part in tl.range(0, (V + BV - 1) // BV, num_stages=1):
        state = fetch(met, number, part, K, V, BK, BV)
        u = fetch(written, number, part, C, V, C, BV) - product(reads_tile, state, DOT, PRECISION)
        result = product(q_tile, state, DOT, PRECISION) * (past * scale)[:, None]
        put(o, product(scores, u, DOT, PRECISION, result), first, steps, live, part, V, BV)


@triton.jit
def inflow_kernel(
    q, k, g, reads, written, met, do, u, du, dscores, at_once, dupdate,
    B, T, scale,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    DECAYS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All that do says of a chunk before dS' is known: what the chunk adds to dS, (q * exp G)ᵀ do - Wᵀ Pᵀ do, with
    du = Pᵀ do; u; and (D * dP)ᵀ times scale, its diagonal by itself. Columns of S a few at a time."""
    number, first, steps, live = place(B, T, H, C)
    total, past, _, _ = decays(g, first, steps, live, C, DECAYS)
    rows = tl.arange(0, C)
    q_tile = tile(q, first, steps, live, 0, K, BK).to(DOT)
    k_tile = tile(k, first, steps, live, 0, K, BK).to(DOT)
    apart = tl.where(rows[None, :] >= rows[:, None], total[None, :] - total[:, None], float("-inf"))
    triangle = tl.exp(apart) * scale
    scores = (product(k_tile, tl.trans(q_tile), DOT, PRECISION) * triangle).to(DOT)
    pairs = tl.zeros((C, C), tl.float32)
    for part in tl.range(0, (V + BV - 1) // BV, num_stages=1):
        state = fetch(met, number, part, K, V, BK, BV)
        reads_tile = fetch(reads, number, 0, C, K, C, BK)
        own = fetch(written, number, part, C, V, C, BV) - product(reads_tile, state, DOT, PRECISION)
        keep(u, own, number, part, C, V, C, BV)
        do_tile = tile(do, first, steps, live, part, V, BV)
        pairs = product(own, tl.trans(do_tile), DOT, PRECISION, pairs)
        back = product(scores, do_tile, DOT, PRECISION)
        keep(du, back, number, part, C, V, C, BV)
        asked = do_tile.to(tl.float32) * (past * scale)[:, None]
        gain = product(tl.trans(reads_tile), -back, DOT, PRECISION)
        gain = product(tl.trans(q_tile), asked, DOT, PRECISION, gain)
        keep(dupdate, gain, number, part, K, V, BK, BV)
    diagonal = tl.sum(tl.where(rows[:, None] == rows[None, :], pairs, 0.0), 1)
    tl.store(at_once + number * C + rows, diagonal * scale)
    pairs = tl.where(rows[:, None] < rows[None, :], pairs * triangle, 0.0)
    keep(dscores, pairs, number, 0, C, C, C, C)


@triton.jit
def value_grads_kernel(
    k, v, beta, g, similar, inverse, met, dafter, u, du, dr, dnear, behind, dv, dbeta,
    B, T,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    DECAYS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dr, dv, dβ and D * dA of a chunk, from du, S before it and dS' behind it; and what of dG goes through dS': sums
    over K of k * dk are sums over V here. Columns of S a few at a time."""
    number, first, steps, live = place(B, T, H, C)
    total, past, future, whole = decays(g, first, steps, live, C, DECAYS)
    rows = tl.arange(0, C)
    write = tl.load(beta + first + steps, mask=live, other=0.0).to(tl.float32)
    k_tile = tile(k, first, steps, live, 0, K, BK).to(DOT)
    pairs = tl.zeros((C, C), tl.float32)
    dwrite = tl.zeros((C,), tl.float32)
    through = tl.zeros((C,), tl.float32)
    faded = 0.0
    for part in tl.range(0, (V + BV - 1) // BV, num_stages=1):
        own = fetch(u, number, part, C, V, C, BV)
        dstate = fetch(dafter, number, part, K, V, BK, BV)
        back = product(k_tile, dstate, DOT, PRECISION) * future[:, None]
        through += tl.sum(back * own.to(tl.float32), 1)
        back += fetch(du, number, part, C, V, C, BV)
        back = right_exact(tl.trans(fetch(inverse, number, 0, C, C, C, C)), back, DOT, PRECISION)
        keep(dr, back, number, part, C, V, C, BV)
        put(dv, write[:, None] * back, first, steps, live, part, V, BV)
        pairs = product(back, tl.trans(own), DOT, PRECISION, pairs)
        state = fetch(met, number, part, K, V, BK, BV)
        if DECAYS:
            faded += tl.sum(tl.sum(dstate.to(tl.float32) * state.to(tl.float32), 1), 0)
        error = tile(v, first, steps, live, part, V, BV).to(tl.float32)
        error -= product(k_tile, state, DOT, PRECISION) * past[:, None]
        error -= product(fetch(similar, number, 0, C, C, C, C), own, DOT, PRECISION)
        dwrite += tl.sum(back * error, 1)
    tl.store(dbeta + first + steps, dwrite.to(dbeta.dtype.element_ty), mask=live)
    if DECAYS:
        through = tl.where(rows < C - 1, through, 0.0)
        through = tl.where(rows == C - 1, tl.sum(through, 0) + whole * faded, 0.0) - through
        tl.store(behind + number * C + rows, through)
    keep(dnear, pairs * (-write[:, None] * fade(total, C, 1)), number, 0, C, C, C, C)


@triton.jit
def delta_grads_kernel(
    q, k, beta, g, met, dafter, do, dscores, at_once, dnear, u, dr, behind, dq, dk, dg,
    B, T, scale,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    DECAYS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq, dk and dG of a chunk, from what the kernels above leave.

    Sums of dP and dA over rows and columns, which make dG, are those of q * dq and k * dk over K, as long as the
    diagonal of dP, in which there is no decay, has not been added.
    """
    number, first, steps, live = place(B, T, H, C)
    _, past, future, _ = decays(g, first, steps, live, C, DECAYS)
    rows = tl.arange(0, C)
    write = tl.load(beta + first + steps, mask=live, other=0.0).to(tl.float32)
    diagonal = tl.load(at_once + number * C + rows)[:, None]
    q_tile = tile(q, first, steps, live, 0, K, BK).to(DOT)
    k_tile = tile(k, first, steps, live, 0, K, BK).to(DOT)
    pairs = fetch(dscores, number, 0, C, C, C, C)
    result = tl.zeros((C, BK), tl.float32)
    for part in tl.range(0, (V + BV - 1) // BV, num_stages=1):
        state = tl.trans(fetch(met, number, part, K, V, BK, BV))
        result = product(tile(do, first, steps, live, part, V, BV), state, DOT, PRECISION, result)
    result = product(tl.trans(pairs), k_tile, DOT, PRECISION, result * (past * scale)[:, None])
    dtotal = tl.sum(q_tile.to(tl.float32) * result, 1)
    put(dq, result + diagonal * k_tile.to(tl.float32), first, steps, live, 0, K, BK)

    later = product(pairs, q_tile, DOT, PRECISION)
    pairs = fetch(dnear, number, 0, C, C, C, C)
    later = product(tl.trans(pairs), k_tile, DOT, PRECISION, later)
    dtotal -= tl.sum(k_tile.to(tl.float32) * later, 1)
    result = tl.zeros((C, BK), tl.float32)
    for part in tl.range(0, (V + BV - 1) // BV, num_stages=1):
        state = tl.trans(fetch(met, number, part, K, V, BK, BV))
        result = product(fetch(dr, number, part, C, V, C, BV), state, DOT, PRECISION, result)
    result = product(pairs, k_tile, DOT, PRECISION, result * (-write * past)[:, None])
    dtotal += tl.sum(k_tile.to(tl.float32) * result, 1)
    if DECAYS:
        dtotal += tl.load(behind + number * C + rows)
        summed = tl.cumsum(dtotal, 0, reverse=True)
        tl.store(dg + first + steps, summed.to(dg.dtype.element_ty), mask=live)
    result += later + diagonal * q_tile.to(tl.float32)
    for part in tl.range(0, (V + BV - 1) // BV, num_stages=1):
        own = fetch(u, number, part, C, V, C, BV).to(tl.float32) * future[:, None]
        dstate = tl.trans(fetch(dafter, number, part, K, V, BK, BV))
        result = product(own, dstate, DOT, PRECISION, result)
    put(dk, result, first, steps, live, 0, K, BK)
