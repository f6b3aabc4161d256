# mypy: allow-untyped-defs
"""The Triton kernels of `linear_scan`; kernel.py launches them. Imported only where they run.

A program owns BC channels of one row of the batch over one segment of time, and walks it tile by tile. A tile is S
blocks of U steps. A thread runs through the U steps of a block on its own: first from zero, for what the block as a
whole does to h, the pair (product of its decays, h that it reaches); these pairs are passed from block to block; then
once more, from the h before the block.

Time runs over p = 0, 1, ...; forward p is the token t. REVERSE: p counts from the last token back. With dhₜ the
gradient that reaches hₜ from outside and eₜ its whole gradient, eₜ = dhₜ + aₜ₊₁ eₜ₊₁ is the same recurrence, with the
decay of the token behind and, before its first step, the gradient of the final state under a decay of 1.

Constants of a kernel, by name everywhere:
    GROUPS    channels are numbered through up to three axes, of sizes (.., n1, n2); 1: they are evenly spaced
    IN_TIME   the decay differs between steps
    SHARED    one decay for all channels of a program
    PACKED    marks (T+1,) is given: n where document n starts, N behind the last token, else -1
    ENTERING  what comes in from outside at each sequence's first p is given: (documents, C) float32
    SEGMENTED carries (rows, segments, C) float32 holds the h that each segment ends with
"""

import triton
import triton.language as tl

NO_GRAD = tl.constexpr(0)
EACH = tl.constexpr(1)
SUM_TIME = tl.constexpr(2)
SUM_CHANNELS = tl.constexpr(3)

LARGEST = tl.constexpr(3e38)


@triton.jit
def finite(product):
    """A product of decays above one, of which an h of 0 must stay 0. What is no number stays none."""
    product = tl.minimum(product, LARGEST, propagate_nan=tl.PropagateNan.ALL)
    return tl.maximum(product, -LARGEST, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def compose(a, h, a_but, h_but, b, k, b_but, k_but):
    """First the blocks on the left, z -> a z + h, then those on the right, z -> b z + k. but: without the last one."""
    return finite(a * b), b * h + k, finite(a * b_but), b_but * h + k_but


@triton.jit
def compose_packed(a, h, a_but, h_but, b, k, b_but, k_but):
    """`compose`, where a product of 0 may hold a document's start: see `step`."""
    product = tl.where(b == 0.0, 0.0, finite(a * b))
    product_but = tl.where(b_but == 0.0, 0.0, finite(a * b_but))
    return product, tl.where(b == 0.0, k, b * h + k), product_but, tl.where(b_but == 0.0, k_but, b_but * h + k_but)


@triton.jit
def step(a, h, x, border, PACKED: tl.constexpr):
    """a h + x. border (S, 1), PACKED only: where a document starts, and nothing passes, not even what is no number."""
    return tl.where(border, x, a * h + x) if PACKED else a * h + x


@triton.jit
def enter(decays, values, borders, carry, PACKED: tl.constexpr):
    """U decays and U inputs (S, BC) of the steps of every block -> the h before each block, the product of decays up to
    its end, both (S, BC), and the h behind the tile (1, BC).

    carry  the h before the tile (1, BC)
    """
    product = decays[0]
    h = values[0]
    for u in tl.static_range(1, len(decays)):
        product *= decays[u]
        h = step(decays[u], h, values[u], borders[u], PACKED)
    S: tl.constexpr = h.shape[0]
    block = tl.arange(0, S)[:, None]
    h = tl.where(block == 0, step(product, carry, h, product == 0.0, PACKED), h)
    one = tl.full(h.shape, 1.0, tl.float32)
    before = tl.where(block == 0, carry, 0.0)
    if S > 1:
        if PACKED:
            product, h, _, before = tl.associative_scan((product, h, one, before), 0, compose_packed)
        else:
            product, h, _, before = tl.associative_scan((product, h, one, before), 0, compose)
    return before, product, tl.sum(tl.where(block == S - 1, h, 0.0), axis=0)[None, :]


@triton.jit
def place(program, segments, n, tiles, span, T, BC: tl.constexpr):
    """(row of the batch, segment, number of its channel tile, channels (BC,), mask, first p, p behind its last)."""
    lane = program % tiles
    segment = (program // tiles) % segments
    row = tl.cast(program // (tiles * segments), tl.int64)
    slices = tl.cdiv(n, BC)
    column = (lane % slices) * BC + tl.arange(0, BC)
    begin = tl.cast(segment, tl.int64) * span
    end = tl.minimum(begin + span, tl.cast(T, tl.int64))
    return row, segment, lane, (lane // slices) * n + column, column < n, begin, end


@triton.jit
def first_steps(begin, block, U: tl.constexpr):
    """The first step of each block (S,), int64; begin is a multiple of U.

    Not as block * U + begin: of that LLVM's vectoriser (in Triton 3.6) made a product of 32 bits that ran over into its
    neighbour, in the backward kernel for 3 channels of packed documents. test_compile.py looks for it.
    """
    return (begin // U + block) * U


@triton.jit
def offsets(c, n1, n2, s0, s1, s2, GROUPS: tl.constexpr):
    """Where channels c lie: (BC,) int64."""
    if GROUPS == 1:
        at = c.to(tl.int64) * s2
    elif GROUPS == 2:
        at = (c // n2).to(tl.int64) * s1 + (c % n2).to(tl.int64) * s2
    else:
        at = (c // n2 // n1).to(tl.int64) * s0 + (c // n2 % n1).to(tl.int64) * s1 + (c % n2).to(tl.int64) * s2
    return at


@triton.jit
def decays_at(a, c, n1, n2, a0, a1, a2, S: tl.constexpr, GROUPS: tl.constexpr, SHARED: tl.constexpr):
    """Pointers to the decays of channels c, (S, BC) or, if they are shared, (S, 1), all at the first step."""
    if SHARED:
        a += offsets(tl.min(c, axis=0), n1, n2, a0, a1, a2, GROUPS)
        pointers = a + tl.zeros((S, 1), tl.int64)
    else:
        pointers = a + offsets(c, n1, n2, a0, a1, a2, GROUPS)[None, :] + tl.zeros((S, 1), tl.int64)
    return pointers


@triton.jit
def first_carry(
    entering, carries, row, segment, segments, C, c, known, ENTERING: tl.constexpr, SEGMENTED: tl.constexpr,
):  # fmt: skip
    """The h before a segment (1, BC)."""
    carry = tl.zeros_like(c).to(tl.float32)
    if ENTERING:
        carry = tl.load(entering + row * C + c, mask=known & (segment == 0), other=0.0)
    if SEGMENTED:
        ended = carries + (row * segments + segment - 1) * C + c
        carry += tl.load(ended, mask=known & (segment > 0), other=0.0)
    return carry[None, :]


@triton.jit
def read(
    x, a, constant, marks, entering, p, end, T, C, c, known,
    REVERSE: tl.constexpr, IN_TIME: tl.constexpr, SHARED: tl.constexpr, PACKED: tl.constexpr, ENTERING: tl.constexpr,
):  # fmt: skip
    """Decay, input and border of the steps p (S,), from their pointers: two (S, BC) float32, 1 and 0 past the end, and
    (S, 1), whether a document starts there.

    constant  the decay if it is the same at every step
    """
    live = p < end
    value = tl.load(x, mask=live[:, None] & known[None, :], other=0.0).to(tl.float32)
    decayed = live & (p > 0) if REVERSE else live
    if IN_TIME:
        mask = decayed[:, None] if SHARED else decayed[:, None] & known[None, :]
        decay = tl.load(a, mask=mask, other=1.0).to(tl.float32)
    else:
        decay = tl.where(decayed[:, None], constant, 1.0)
    border = (p < 0)[:, None]
    if PACKED:
        document = tl.load(marks + (T - p if REVERSE else p), mask=live, other=-1)
        border = (document >= 0)[:, None]
        if ENTERING:
            at = (document - 1 if REVERSE else document).to(tl.int64)[:, None] * C + c[None, :]
            coming = tl.load(entering + at, mask=border & known[None, :], other=0.0)
            value += coming if REVERSE else tl.where(border, decay * coming, 0.0)
        decay = tl.where(border, 0.0, decay)
    return tl.broadcast_to(decay, value.shape), value, border


@triton.jit
def totals_kernel(
    x, a, marks, entering, products, ends, segments, n, tiles, span, T, C, n1, n2,
    x_row, x_time, x0, x1, x2, a_row, a_time, a0, a1, a2,
    U: tl.constexpr, S: tl.constexpr, BC: tl.constexpr, GROUPS: tl.constexpr, REVERSE: tl.constexpr,
    IN_TIME: tl.constexpr, SHARED: tl.constexpr, PACKED: tl.constexpr, ENTERING: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """What every segment does to h: the product of its decays, the h it reaches from zero: (rows, segments, C).

    ENTERING only with PACKED: an unpacked row starts from outside, before its first segment.
    """
    row, segment, _, c, known, begin, end = place(tl.program_id(0), segments, n, tiles, span, T, BC)
    a = decays_at(a + row * a_row, c, n1, n2, a0, a1, a2, S, GROUPS, SHARED)
    x += row * x_row + offsets(c, n1, n2, x0, x1, x2, GROUPS)[None, :]
    constant = tl.full((1, 1), 1.0, tl.float32)
    if not IN_TIME:
        constant = tl.load(a, mask=True if SHARED else known[None, :], other=1.0).to(tl.float32)
    block = tl.arange(0, S)
    p = first_steps(begin, block, U)
    x_step = tl.cast(x_time, tl.int64)
    a_step = tl.cast(a_time, tl.int64)
    if REVERSE:
        x += (T - 1) * x_step
        a += T * a_step
        x_step = -x_step
        a_step = -a_step
    x += p[:, None] * x_step
    a += p[:, None] * a_step
    carry = tl.zeros((1, BC), tl.float32)
    total = tl.full((S, BC), 1.0, tl.float32)
    for _ in tl.range(0, tl.cdiv(end - begin, U * S).to(tl.int32), num_stages=STAGES):
        decays, values, borders = tl.tuple([]), tl.tuple([]), tl.tuple([])
        for u in tl.static_range(U):
            decay, value, border = read(
                x + u * x_step, a + u * a_step, constant, marks, entering, p + u, end, T, C, c, known,
                REVERSE, IN_TIME, SHARED, PACKED, ENTERING,
            )  # fmt: skip
            decays = decays + (decay,)  # noqa: RUF005
            values = values + (value,)  # noqa: RUF005
            borders = borders + (border,)  # noqa: RUF005
        _before, product, carry = enter(decays, values, borders, carry, PACKED)
        total = tl.where(product == 0.0, 0.0, finite(total * product)) if PACKED else finite(total * product)
        p += U * S
        x += U * S * x_step
        a += U * S * a_step
    at = (row * segments + segment) * C + c[None, :]
    total = tl.sum(tl.where((block == S - 1)[:, None], total, 0.0), axis=0)[None, :]
    tl.store(products + at, total, mask=known[None, :])
    tl.store(ends + at, carry, mask=known[None, :])


@triton.jit
def forward_kernel(
    x, a, marks, entering, carries, h, final, segments, n, tiles, span, T, C, n1, n2,
    x_row, x_time, x0, x1, x2, a_row, a_time, a0, a1, a2,
    U: tl.constexpr, S: tl.constexpr, BC: tl.constexpr, GROUPS: tl.constexpr, IN_TIME: tl.constexpr,
    SHARED: tl.constexpr, PACKED: tl.constexpr, ENTERING: tl.constexpr, SEGMENTED: tl.constexpr, FINAL: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """h (rows, T, C), and with FINAL the last of each sequence (documents, C) float32."""
    row, segment, _, c, known, begin, end = place(tl.program_id(0), segments, n, tiles, span, T, BC)
    a = decays_at(a + row * a_row, c, n1, n2, a0, a1, a2, S, GROUPS, SHARED)
    x += row * x_row + offsets(c, n1, n2, x0, x1, x2, GROUPS)[None, :]
    constant = tl.full((1, 1), 1.0, tl.float32)
    if not IN_TIME:
        constant = tl.load(a, mask=True if SHARED else known[None, :], other=1.0).to(tl.float32)
    block = tl.arange(0, S)
    p = first_steps(begin, block, U)
    x_step = tl.cast(x_time, tl.int64)
    a_step = tl.cast(a_time, tl.int64)
    x += p[:, None] * x_step
    a += p[:, None] * a_step
    h += (row * T + p)[:, None] * C + c[None, :]
    carry = first_carry(entering, carries, row, segment, segments, C, c, known, ENTERING and not PACKED, SEGMENTED)
    for _ in tl.range(0, tl.cdiv(end - begin, U * S).to(tl.int32), num_stages=STAGES):
        decays, values, borders = tl.tuple([]), tl.tuple([]), tl.tuple([])
        for u in tl.static_range(U):
            decay, value, border = read(
                x + u * x_step, a + u * a_step, constant, marks, entering, p + u, end, T, C, c, known,
                False, IN_TIME, SHARED, PACKED, ENTERING,
            )  # fmt: skip
            decays = decays + (decay,)  # noqa: RUF005
            values = values + (value,)  # noqa: RUF005
            borders = borders + (border,)  # noqa: RUF005
        value, _product, carry = enter(decays, values, borders, carry, PACKED)
        for u in tl.static_range(U):
            value = step(decays[u], value, values[u], borders[u], PACKED)
            live = p + u < end
            mask = live[:, None] & known[None, :]
            tl.store(h + tl.cast(u, tl.int64) * C, value.to(h.dtype.element_ty), mask=mask)
            if PACKED and FINAL:
                document = tl.load(marks + p + (u + 1), mask=live, other=-1) - 1
                at = document.to(tl.int64)[:, None] * C + c[None, :]
                tl.store(final + at, value, mask=(document >= 0)[:, None] & known[None, :])
        p += U * S
        x += U * S * x_step
        a += U * S * a_step
        h += tl.cast(U * S, tl.int64) * C
    if FINAL and not PACKED:
        tl.store(final + row * C + c[None, :], carry, mask=known[None, :] & (segment == segments - 1))


@triton.jit
def backward_kernel(
    dh, a, marks, entering, carries, h, state, dx, da, dstate, segments, n, tiles, span, T, C, n1, n2,
    d_row, d_time, d0, d1, d2, a_row, a_time, a0, a1, a2,
    U: tl.constexpr, S: tl.constexpr, BC: tl.constexpr, GROUPS: tl.constexpr, IN_TIME: tl.constexpr,
    SHARED: tl.constexpr, PACKED: tl.constexpr, ENTERING: tl.constexpr, SEGMENTED: tl.constexpr,
    DECAY_GRAD: tl.constexpr, STATE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dx (rows, T, C); with STATE, which says that there is one, dstate (documents, C) float32; by DECAY_GRAD, da as
    EACH (rows, T, C), SUM_TIME (rows, segments, C) float32, or SUM_CHANNELS (rows, T, channel tiles) float32.

    entering  the gradient of the final state
    """
    row, segment, lane, c, known, begin, end = place(tl.program_id(0), segments, n, tiles, span, T, BC)
    begin_a = a + row * a_row
    a = decays_at(begin_a, c, n1, n2, a0, a1, a2, S, GROUPS, SHARED)
    dh += row * d_row + offsets(c, n1, n2, d0, d1, d2, GROUPS)[None, :]
    constant = tl.full((1, 1), 1.0, tl.float32)
    if not IN_TIME:
        constant = tl.load(a, mask=True if SHARED else known[None, :], other=1.0).to(tl.float32)
    block = tl.arange(0, S)
    p = first_steps(begin, block, U)
    d_step = -tl.cast(d_time, tl.int64)
    a_step = -tl.cast(a_time, tl.int64)
    dh += (p - (T - 1))[:, None] * d_step
    a += (p - T)[:, None] * a_step
    out = (row * T + T - 1 - p)[:, None] * C + c[None, :]
    carry = first_carry(entering, carries, row, segment, segments, C, c, known, ENTERING and not PACKED, SEGMENTED)
    sums = tl.zeros((S, BC), tl.float32)
    for _ in tl.range(0, tl.cdiv(end - begin, U * S).to(tl.int32), num_stages=STAGES):
        decays, values, borders = tl.tuple([]), tl.tuple([]), tl.tuple([])
        for u in tl.static_range(U):
            decay, value, border = read(
                dh + u * d_step, a + u * a_step, constant, marks, entering, p + u, end, T, C, c, known,
                True, IN_TIME, SHARED, PACKED, ENTERING,
            )  # fmt: skip
            decays = decays + (decay,)  # noqa: RUF005
            values = values + (value,)  # noqa: RUF005
            borders = borders + (border,)  # noqa: RUF005
        e, _product, carry = enter(decays, values, borders, carry, PACKED)
        for u in tl.static_range(U):
            e = step(decays[u], e, values[u], borders[u], PACKED)
            live = p + u < end
            mask = live[:, None] & known[None, :]
            at = out - tl.cast(u, tl.int64) * C
            tl.store(dx + at, e.to(dx.dtype.element_ty), mask=mask)
            t = T - 1 - u - p
            document = tl.where(live & (t == 0), row, -1)
            if PACKED:
                document = tl.load(marks + t, mask=live, other=-1).to(tl.int64)
            starts = (document >= 0)[:, None]
            at_state = document[:, None] * C + c[None, :]
            if STATE and PACKED:
                decay = tl.load(a + (u + 1) * a_step, mask=starts if SHARED else starts & known[None, :], other=0.0)
                tl.store(dstate + at_state, decay.to(tl.float32) * e, mask=starts & known[None, :])
            if DECAY_GRAD != NO_GRAD:
                before = tl.load(h + (at - C), mask=mask & (starts == 0), other=0.0).to(tl.float32)
                if STATE:
                    before += tl.load(state + at_state, mask=starts & known[None, :], other=0.0)
                grad = tl.where(mask, e * before, 0.0)
                if DECAY_GRAD == EACH:
                    tl.store(da + at, grad.to(da.dtype.element_ty), mask=mask)
                elif DECAY_GRAD == SUM_TIME:
                    sums += grad
                else:
                    tl.store(da + (row * T + t) * tiles + lane, tl.sum(grad, axis=1), mask=live)
        p += U * S
        dh += U * S * d_step
        a += U * S * a_step
        out -= tl.cast(U * S, tl.int64) * C
    if DECAY_GRAD == SUM_TIME:
        tl.store(da + (row * segments + segment) * C + c, tl.sum(sums, axis=0), mask=known)
    if STATE and not PACKED:
        first = tl.load(begin_a + offsets(c, n1, n2, a0, a1, a2, GROUPS), mask=known, other=0.0).to(tl.float32)
        last = known[None, :] & (segment == segments - 1)
        tl.store(dstate + row * C + c[None, :], first[None, :] * carry, mask=last)
