"""The states of a sequence at the borders of its chunks or segments, forward, or their gradients, in reverse.

    forward   S  <- exp(G_C) S  + (exp(G_C - G) · k)ᵀ v             S before each chunk
    reverse   dS <- exp(G_C) dS + scale (exp(G) · q)ᵀ do            dS behind each chunk

Every segment is walked at the same time. Only the one that opens its sequence knows the state it starts from; the
others start from zero, `join_kernel` passes the states on from segment to segment, and who reads the state of a chunk
adds the faded state that its segment started from (channel.py, token.py): so nothing is walked twice.
"""

import triton
import triton.language as tl

from linscale.ops.decay_attention.kernels.common import (
    CHANNEL,
    FLOOR,
    LOG2E,
    NONE,
    await_earlier,
    chunk_decays,
    exact_sums,
    let_next_begin,
    locate,
    pack,
    product,
    split,
    table,
    tile,
)  # fmt: skip


@triton.jit(do_not_specialize=["T", "per_row", "span"])
def states_kernel(
    b, c, g, masks, chunk_states, scales, fades, borders, weights, start, finish, cu, document_of,
    first_of, first_chunk,
    b_row, b_token, b_head, c_row, c_token, c_head, g_row, g_token, g_head, T, per_row, span, scale,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    KIND: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr, EVERY_CHUNK: tl.constexpr,
    SEGMENTED: tl.constexpr, HAS_START: tl.constexpr, HAS_FINISH: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, PARTS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One program: (segment, head, tile BK x BV of the state). b, c are k, v or, in reverse, q, do.

    chunk_states  (chunks, H, K, V) the state at every chunk, with scales (chunks, H, K, tiles across) if float16, and
    fades         (chunks, H, K) float32, log2 of the decay that a state suffers from the opening of the segment to that
                  chunk; all only if EVERY_CHUNK
    borders       (borders, H, K, V) float32: what each segment but the last adds
    weights       (segments, H, K) float32: log2 of the decay over a segment
    finish        (N, H, K, V) float32: what the last segment ends with
    """
    program = tl.program_id(0)
    across: tl.constexpr = (V + BV - 1) // BV
    down: tl.constexpr = (K + BK - 1) // BK
    columns = (program % across) * BV + tl.arange(0, BV)
    wide = (program // across) % down * BK + tl.arange(0, BK)
    head = (program // (across * down)) % H
    segment = program // (across * down * H)
    document, row, begin, end, place, count = locate(segment, cu, document_of, first_of, T, per_row, span, PACKED)
    opening = (place == count - 1) if REVERSE else (place == 0)
    closing = (place == 0) if REVERSE else (place == count - 1)
    wanted = document >= 0
    if not EVERY_CHUNK:
        wanted = wanted & (not closing)
    if wanted:
        rows = tl.arange(0, C)
        b += row * b_row + tl.cast(head, tl.int64) * b_head
        c += row * c_row + tl.cast(head, tl.int64) * c_head
        g += row * g_row + tl.cast(head, tl.int64) * g_head
        inside = wide[:, None] * V + columns[None, :]
        known = (wide[:, None] < K) & (columns[None, :] < V)
        own = (document * H + head) * K * V
        state = tl.zeros((BK, BV), dtype=tl.float32)
        if HAS_START:
            if opening:
                state = tl.load(start + own + inside, mask=known, other=0.0).to(tl.float32)
        fade = tl.zeros((BK,), dtype=tl.float32)
        chunks = tl.cast(tl.cdiv(end - begin, C), tl.int32)
        if PACKED:
            number = tl.load(first_chunk + document) + place * (span // C)
        else:
            number = tl.cast(row, tl.int32) * tl.cdiv(T, C) + place * (span // C)
        over = table(masks, 0 if REVERSE else 1, rows)

        for step in tl.range(0, chunks, num_stages=STAGES):
            chunk = (chunks - 1 - step) if REVERSE else step
            t = begin + tl.cast(chunk, tl.int64) * C
            live = (rows < end - t)[:, None]
            b_tile = tl.load(tile(b, t, rows, wide, b_token), mask=live & (wide < K)[None, :], other=0.0)
            c_tile = tl.load(tile(c, t, rows, columns, c_token), mask=live & (columns < V)[None, :], other=0.0)
            if EVERY_CHUNK:
                at = (tl.cast(number + chunk, tl.int64) * H + head) * K
                stored, exponent = pack(state, chunk_states.dtype.element_ty)
                tl.store(chunk_states + at * V + inside, stored, mask=known)
                if chunk_states.dtype.element_ty == tl.float16:
                    tl.store(scales + (at + wide) * across + program % across, exponent, mask=wide < K)
                if SEGMENTED:
                    tl.store(fades + at + wide, fade, mask=wide < K)
            if KIND == CHANNEL:
                steps = tl.load(tile(g, t, rows, wide, g_token), mask=live & (wide < K)[None, :], other=0.0)
                steps = tl.maximum(steps.to(tl.float32), FLOOR)
                exponent = exact_sums(over, steps, PARTS)
                b_tile = b_tile.to(tl.float32) * tl.exp2(exponent * LOG2E)
                total = tl.sum(steps, axis=0) * LOG2E
                state *= tl.exp2(total)[:, None]
                fade += total
            elif KIND != NONE:
                before, behind, total = chunk_decays(g, t, rows, end - t, g_token, KIND)
                leaving = before if REVERSE else behind
                c_tile = c_tile.to(tl.float32) * tl.exp2(leaving)[:, None]
                state *= tl.exp2(total)
                fade += total
            if KIND == CHANNEL:
                if REVERSE:
                    b_tile *= scale
                faded, rest = split(b_tile, DOT)
                state = tl.dot(tl.trans(faded), c_tile.to(DOT), state, input_precision=PRECISION)
                if tl.bfloat16 == DOT:
                    state = tl.dot(tl.trans(rest), c_tile.to(DOT), state)
            else:
                c_tile = c_tile.to(tl.float32)
                if REVERSE:
                    c_tile *= scale
                faded, rest = split(c_tile, DOT)
                state = product(tl.trans(b_tile).to(DOT), faded, rest, state, DOT, PRECISION)

        if KIND != NONE:
            tl.store(weights + (tl.cast(segment, tl.int64) * H + head) * K + wide, fade, mask=wide < K)
        if closing:
            if HAS_FINISH:
                tl.store(finish + own + inside, state, mask=known)
        else:
            border = segment - document - 1 if REVERSE else segment - document
            tl.store(borders + (border * H + head) * K * V + inside, state, mask=known)


@triton.jit(do_not_specialize=["per_row"])
def join_kernel(
    borders, weights, finish, first_of, per_row,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    KIND: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr, HAS_FINISH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One program: (sequence, head, tile of the state). Turns what each segment adds into the state at its border.
    EARLY: it may begin before the kernel before it has ended."""
    if EARLY:
        await_earlier()
        let_next_begin()
    program = tl.program_id(0)
    across: tl.constexpr = (V + BV - 1) // BV
    down: tl.constexpr = (K + BK - 1) // BK
    columns = (program % across) * BV + tl.arange(0, BV)
    wide = (program // across) % down * BK + tl.arange(0, BK)
    head = (program // (across * down)) % H
    document = tl.cast(program // (across * down * H), tl.int64)
    if PACKED:
        first = tl.load(first_of + document).to(tl.int64)
        count = tl.load(first_of + document + 1) - tl.load(first_of + document)
    else:
        first = document * per_row
        count = per_row
    inside = wide[:, None] * V + columns[None, :]
    known = (wide[:, None] < K) & (columns[None, :] < V)
    state = tl.zeros((BK, BV), dtype=tl.float32)
    added, fade, at = state, tl.zeros((BK,), dtype=tl.float32), borders + inside
    for step in range(count):
        # In the order of the walk: the state behind `step` segments, while what the next one adds is on its way.
        segment = first + (count - 1 - step if REVERSE else step)
        border = first - document + (count - 2 - step if REVERSE else step)
        ahead = borders + (border * H + head) * K * V + inside
        more = step + 1 < count
        coming = tl.load(ahead, mask=known & more, other=0.0)
        if KIND != NONE:
            state *= tl.exp2(fade)[:, None]
            fade = tl.load(weights + (segment * H + head) * K + wide, mask=(wide < K) & more, other=0.0)
        state += added
        if step > 1:
            tl.store(at, state, mask=known)
        added, at = coming, ahead
    if HAS_FINISH:
        if count > 1:
            segment = first + (0 if REVERSE else count - 1)
            if KIND != NONE:
                state *= tl.exp2(tl.load(weights + (segment * H + head) * K + wide, mask=wide < K, other=0.0))[:, None]
            at = finish + (document * H + head) * K * V + inside
            tl.store(at, state + tl.load(at, mask=known, other=0.0), mask=known)
