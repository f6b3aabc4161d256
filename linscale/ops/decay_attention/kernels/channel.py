"""`decay_attention` with per-channel decay: the output and the gradients of one chunk, from the states around it.

With G the running sum of log decays in the chunk, S the state before it and dS the gradient of the state behind it:

    scores_rc = Σ_j q_rj k_cj exp(G_rj - G_cj)    r >= c
    o         = scores v + (q · exp G) S                                      (all of o times scale)
    dq        = (do Sᵀ) · exp G + through the scores,   dk = (v dSᵀ) · exp(G_C - G) + through the scores
    dv        = scoresᵀ do + (k · exp(G_C - G)) dS

Scores. Inside a block of rows with middle m, exp(G_r - G_c) = exp(G_r - G_m) exp(G_m - G_c), and the pairs of the
block are one product of matrices. One of the two exponents may be positive. While all of them stay within MILD, in
the chunk as one block or after it is halved often enough, that is the whole work: the leaves. A halving that is left
above them holds the pairs r > c that it separates, for which both exponents are <= 0 however strong the decay. A row
in the second half of its block is there only a query and one in the first half only a key: one tile x, q or k by row,
times one exponential an entry, gives all those pairs as x xᵀ and their gradients as masked dscores, and as its
transpose, times x. A pair belongs to the halving that separates it, the highest bit in which r and c differ. The
exponents are sums of log decays over a stretch of rows: products with 0/1 matrices, exact, with nothing to cancel.

The gradient of a step's log decay is the sum over all paths that cross the step, by where they begin and end:
    in the chunk, both:   Σ_{r>=t} (q dq - k dk through the scores, r ≠ c)
    from before, ending:  Σ_{r>=t} q_r · dq_r from S
    from it, to beyond:   Σ_{r<t}  k_r · dk_r from dS
    from before, beyond:  exp(G_C) rowsum(S · dS)
Each is summed inside the chunk: under strong decay small sums stay small.
"""

import triton
import triton.language as tl

from linscale.ops.decay_attention.kernels.common import (
    FLOOR,
    LOG2E,
    MILD,
    borders_of,
    exact_sums,
    fine_product,
    locate,
    pack,
    product,
    split,
    table,
    tile,
)  # fmt: skip
from linscale.ops.decay_attention.masks import LEVELS

# Numbers of the 0/1 matrices of ../masks.py; those from BETWEEN on are followed by one for each further level.
PAST, FUTURE, BEFORE, AFTER = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
BETWEEN = tl.constexpr(4)
LEAF = tl.constexpr(4 + LEVELS)
BLOCKS = tl.constexpr(4 + 2 * LEVELS)
SEPARATED = tl.constexpr(4 + 3 * LEVELS)


@triton.jit
def to_middle(masks, steps, level, rows, PARTS: tl.constexpr):
    """log2 of the decay between each row and the middle of its block of C / 2^level rows, (C, BK), <= 0."""
    return exact_sums(table(masks, BETWEEN + level, rows), steps, PARTS) * LOG2E


@triton.jit
def state_at(
    states, scales, fades, borders, at, border, faded, wide, columns,
    K: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr, SEGMENTED: tl.constexpr,
):  # fmt: skip
    """The state at a chunk (BK, BV), float32: the stored one and, faded, the one its segment started from. TILE is
    the width of the tiles that states.py worked in."""
    inside = wide[:, None] * V + columns[None, :]
    known = (wide[:, None] < K) & (columns[None, :] < V)
    state = tl.load(states + at * K * V + inside, mask=known, other=0.0).to(tl.float32)
    if states.dtype.element_ty == tl.float16:
        across: tl.constexpr = (V + TILE - 1) // TILE
        scale = tl.load(scales + (at * K + wide) * across + tl.min(columns) // TILE, mask=wide < K, other=0.0)
        state *= tl.exp2(scale)[:, None]
    if SEGMENTED:
        if faded:
            fade = tl.exp2(tl.load(fades + at * K + wide, mask=wide < K, other=0.0))
            state += fade[:, None] * tl.load(borders + border * K * V + inside, mask=known, other=0.0)
    return state


@triton.jit(do_not_specialize=["T", "per_row", "per_segment"])
def output_kernel(
    q, k, v, g, masks, out, saved, states, scales, fades, borders, cu, document_of, first_of, segment_of,
    q_row, q_token, q_head, k_row, k_token, k_head, v_row, v_token, v_head, g_row, g_token, g_head,
    T, per_row, per_segment, scale,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    TILE: tl.constexpr,
    PACKED: tl.constexpr, SEGMENTED: tl.constexpr, SAVE: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One program: (chunk, head, slice of BV columns of the output). saved (chunks, H, C + 1, C): the
    scores as `pack` gives them, and in the last row their scales, if SAVE."""
    program = tl.program_id(0)
    across: tl.constexpr = (V + BV - 1) // BV
    columns = (program % across) * BV + tl.arange(0, BV)
    head = (program // across) % H
    chunk = program // (across * H)
    document, row, begin, end, place, count = locate(chunk, cu, document_of, first_of, T, per_row, C, PACKED)
    if document >= 0:
        rows = tl.arange(0, C)
        live = (rows < end - begin)[:, None]
        q += row * q_row + tl.cast(head, tl.int64) * q_head
        k += row * k_row + tl.cast(head, tl.int64) * k_head
        v += row * v_row + tl.cast(head, tl.int64) * v_head
        g += row * g_row + tl.cast(head, tl.int64) * g_head
        at = tl.cast(chunk, tl.int64) * H + head
        border, first_segment, _ = borders_of(document, row, place, count, segment_of, per_segment, PACKED)
        border = border * H + head
        scores = tl.zeros((C, C), dtype=tl.float32)
        result = tl.zeros((C, BV), dtype=tl.float32)
        for part in tl.range(0, (K + BK - 1) // BK, num_stages=1):
            wide = part * BK + tl.arange(0, BK)
            there = live & (wide < K)[None, :]
            q_tile = tl.load(tile(q, begin, rows, wide, q_token), mask=there, other=0.0).to(tl.float32)
            k_tile = tl.load(tile(k, begin, rows, wide, k_token), mask=there, other=0.0).to(tl.float32)
            steps = tl.load(tile(g, begin, rows, wide, g_token), mask=there, other=0.0).to(tl.float32)
            steps = tl.maximum(steps, FLOOR)
            state = state_at(
                states, scales, fades, borders, at, border, not first_segment, wide, columns, K, V, TILE, SEGMENTED
            )
            past = exact_sums(table(masks, PAST, rows), steps, PARTS)
            faded, faded_rest = split(q_tile * tl.exp2(past * LOG2E), DOT)
            state, state_rest = split(state, DOT)
            result = fine_product(faded, faded_rest, state, state_rest, result, DOT, PRECISION)
            level = 0
            exponent = to_middle(masks, steps, level, rows, PARTS)
            while tl.min(exponent) < -MILD:
                later = (rows & (C >> (level + 1))) != 0
                x, rest = split(tl.where(later[:, None], q_tile, k_tile) * tl.exp2(exponent), DOT)
                products = tl.zeros((C, C), dtype=tl.float32)
                products = fine_product(x, rest, tl.trans(x), tl.trans(rest), products, DOT, PRECISION)
                scores = tl.where(table(masks, SEPARATED + level, rows) != 0, scores + products, scores)
                level += 1
                exponent = to_middle(masks, steps, level, rows, PARTS)
            later = (rows & (C >> (level + 1))) != 0
            signed = tl.where(later[:, None], exponent, -exponent)
            queries, queries_rest = split(q_tile * tl.exp2(signed), DOT)
            keys, keys_rest = split(k_tile * tl.exp2(-signed), DOT)
            products = tl.zeros((C, C), dtype=tl.float32)
            products = fine_product(
                queries, queries_rest, tl.trans(keys), tl.trans(keys_rest), products, DOT, PRECISION
            )
            scores = tl.where(table(masks, LEAF + level, rows) != 0, scores + products, scores)
        if SAVE:
            if program % across == 0:
                square = rows[:, None] * C + rows[None, :]
                stored, exponent = pack(scores, saved.dtype.element_ty)
                tl.store(saved + at * (C + 1) * C + square, stored)
                tl.store(saved + (at * (C + 1) + C) * C + rows, exponent.to(saved.dtype.element_ty))
        there = live & (columns < V)[None, :]
        v_tile = tl.load(tile(v, begin, rows, columns, v_token), mask=there, other=0.0)
        result = tl.dot(scores.to(DOT), v_tile.to(DOT), result, input_precision=PRECISION)
        out += row * T * H * V + head * V
        tl.store(tile(out, begin, rows, columns, H * V), (result * scale).to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["T", "per_row", "per_segment"])
def grads_kernel(
    q, k, v, g, do, masks, dq, dk, dg, states, scales, fades, borders, dstates, dscales, dfades, dborders,
    cu, document_of, first_of, segment_of,
    q_row, q_token, q_head, k_row, k_token, k_head, v_row, v_token, v_head, g_row, g_token, g_head,
    do_row, do_token, do_head, T, per_row, per_segment, scale,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    TILE: tl.constexpr,
    PACKED: tl.constexpr, SEGMENTED: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One program: (chunk, head, slice of BK columns of dq, dk, dg). dstates: gradients of the state behind a chunk."""
    program = tl.program_id(0)
    down: tl.constexpr = (K + BK - 1) // BK
    across: tl.constexpr = (V + BV - 1) // BV
    wide = (program % down) * BK + tl.arange(0, BK)
    head = (program // down) % H
    chunk = program // (down * H)
    document, row, begin, end, place, count = locate(chunk, cu, document_of, first_of, T, per_row, C, PACKED)
    if document >= 0:
        rows = tl.arange(0, C)
        live = (rows < end - begin)[:, None]
        q += row * q_row + tl.cast(head, tl.int64) * q_head
        k += row * k_row + tl.cast(head, tl.int64) * k_head
        v += row * v_row + tl.cast(head, tl.int64) * v_head
        g += row * g_row + tl.cast(head, tl.int64) * g_head
        do += row * do_row + tl.cast(head, tl.int64) * do_head
        at = tl.cast(chunk, tl.int64) * H + head
        border, first_segment, last_segment = borders_of(document, row, place, count, segment_of, per_segment, PACKED)
        border = border * H + head
        there = live & (wide < K)[None, :]

        dq_past = tl.zeros((C, BK), dtype=tl.float32)
        dk_future = tl.zeros((C, BK), dtype=tl.float32)
        through = tl.zeros((BK,), dtype=tl.float32)
        pairs = tl.zeros((C, C), dtype=tl.float32)
        on_diagonal = tl.zeros((C,), dtype=tl.float32)
        for slice in tl.range(0, across, num_stages=1):
            columns = slice * BV + tl.arange(0, BV)
            shown = live & (columns < V)[None, :]
            v_tile = tl.load(tile(v, begin, rows, columns, v_token), mask=shown, other=0.0).to(DOT)
            do_tile = tl.load(tile(do, begin, rows, columns, do_token), mask=shown, other=0.0).to(DOT)
            on_diagonal += tl.sum(do_tile.to(tl.float32) * v_tile.to(tl.float32), axis=1)
            pairs = tl.dot(do_tile, tl.trans(v_tile), pairs, input_precision=PRECISION)
            state = state_at(
                states, scales, fades, borders, at, border, not first_segment, wide, columns, K, V, TILE, SEGMENTED
            )
            dstate = state_at(
                dstates,
                dscales,
                dfades,
                dborders,
                at,
                border + H,
                not last_segment,
                wide,
                columns,
                K,
                V,
                TILE,
                SEGMENTED,
            )
            through += tl.sum(state * dstate, axis=1)
            state, rest = split(state, DOT)
            dq_past = product(do_tile, tl.trans(state), tl.trans(rest), dq_past, DOT, PRECISION)
            dstate, rest = split(dstate, DOT)
            dk_future = product(v_tile, tl.trans(dstate), tl.trans(rest), dk_future, DOT, PRECISION)
        on_diagonal *= scale
        # dscores below the diagonal; their transpose, for dk, is another view of the same.
        pairs, pairs_rest = split(pairs * scale * table(masks, AFTER, rows), DOT)

        g_tile = tile(g, begin, rows, wide, g_token)
        q_tile = tile(q, begin, rows, wide, q_token)
        k_tile = tile(k, begin, rows, wide, k_token)
        steps = tl.maximum(tl.load(g_tile, mask=there, other=0.0).to(tl.float32), FLOOR)
        dq_past *= tl.exp2(exact_sums(table(masks, PAST, rows), steps, PARTS) * LOG2E) * scale
        dk_future *= tl.exp2(exact_sums(table(masks, FUTURE, rows), steps, PARTS) * LOG2E)
        through *= tl.exp2(tl.sum(steps, axis=0) * LOG2E)
        dk_inside = tl.zeros((C, BK), dtype=tl.float32)
        level = 0
        exponent = to_middle(masks, steps, level, rows, PARTS)
        # Rarely entered: its tiles are loaded anew, for there are no registers to keep them in.
        while tl.min(exponent) < -MILD:
            later = ((rows & (C >> (level + 1))) != 0)[:, None]
            factor = tl.exp2(exponent)
            query = tl.load(q_tile, mask=there & later, other=0.0).to(tl.float32)
            key = tl.load(k_tile, mask=there & (later == 0), other=0.0).to(tl.float32)
            x, rest = split((query + key) * factor, DOT)
            own = table(masks, SEPARATED + level, rows)
            some, some_rest = (pairs * own).to(DOT), (pairs_rest * own).to(DOT)
            dx = tl.zeros((C, BK), dtype=tl.float32)
            dq_past += fine_product(some, some_rest, x, rest, dx, DOT, PRECISION) * factor
            dx = fine_product(tl.trans(some), tl.trans(some_rest), x, rest, dx, DOT, PRECISION)
            dk_inside += dx * factor
            level += 1
            steps = tl.maximum(tl.load(g_tile, mask=there, other=0.0).to(tl.float32), FLOOR)
            exponent = to_middle(masks, steps, level, rows, PARTS)
        signed = tl.where(((rows & (C >> (level + 1))) != 0)[:, None], exponent, -exponent)
        if level > 0:
            own = table(masks, BLOCKS + level, rows)
            pairs, pairs_rest = (pairs * own).to(DOT), (pairs_rest * own).to(DOT)
        dx = tl.zeros((C, BK), dtype=tl.float32)
        x, rest = split(tl.load(k_tile, mask=there, other=0.0).to(tl.float32) * tl.exp2(-signed), DOT)
        dq_past += fine_product(pairs, pairs_rest, x, rest, dx, DOT, PRECISION) * tl.exp2(signed)
        x, rest = split(tl.load(q_tile, mask=there, other=0.0).to(tl.float32) * tl.exp2(signed), DOT)
        dx = fine_product(tl.trans(pairs), tl.trans(pairs_rest), x, rest, dx, DOT, PRECISION)
        dk_inside += dx * tl.exp2(-signed)
        q_tile = tl.load(q_tile, mask=there, other=0.0).to(tl.float32)
        k_tile = tl.load(k_tile, mask=there, other=0.0).to(tl.float32)
        digits: tl.constexpr = 3 if PARTS == 3 else 2
        dsteps = exact_sums(table(masks, BEFORE, rows), q_tile * dq_past - k_tile * dk_inside, digits)
        dsteps += exact_sums(table(masks, AFTER, rows), k_tile * dk_future, digits) + through[None, :]
        dq_past += on_diagonal[:, None] * k_tile
        dk_future += dk_inside + on_diagonal[:, None] * q_tile
        place_of = ((row * T + begin) * H + head) * K + rows[:, None] * (H * K) + wide[None, :]
        tl.store(dq + place_of, dq_past.to(dq.dtype.element_ty), mask=there)
        tl.store(dk + place_of, dk_future.to(dk.dtype.element_ty), mask=there)
        tl.store(dg + place_of, dsteps.to(dg.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["T", "per_row", "per_segment"])
def value_grad_kernel(
    k, g, do, masks, dv, saved, dstates, dscales, dfades, dborders, cu, document_of, first_of, segment_of,
    k_row, k_token, k_head, g_row, g_token, g_head, do_row, do_token, do_head, T, per_row, per_segment, scale,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    TILE: tl.constexpr,
    PACKED: tl.constexpr, SEGMENTED: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One program: (chunk, head, slice of BV columns of dv)."""
    program = tl.program_id(0)
    across: tl.constexpr = (V + BV - 1) // BV
    columns = (program % across) * BV + tl.arange(0, BV)
    head = (program // across) % H
    chunk = program // (across * H)
    document, row, begin, end, place, count = locate(chunk, cu, document_of, first_of, T, per_row, C, PACKED)
    if document >= 0:
        rows = tl.arange(0, C)
        live = (rows < end - begin)[:, None]
        k += row * k_row + tl.cast(head, tl.int64) * k_head
        g += row * g_row + tl.cast(head, tl.int64) * g_head
        do += row * do_row + tl.cast(head, tl.int64) * do_head
        at = tl.cast(chunk, tl.int64) * H + head
        border, _, last_segment = borders_of(document, row, place, count, segment_of, per_segment, PACKED)
        border = (border + 1) * H + head
        shown = live & (columns < V)[None, :]
        saved += at * (C + 1) * C
        scores = tl.load(saved + rows[:, None] * C + rows[None, :]).to(tl.float32)
        scores, rest = split(scores * tl.exp2(tl.load(saved + C * C + rows).to(tl.float32))[:, None], DOT)
        do_tile = tl.load(tile(do, begin, rows, columns, do_token), mask=shown, other=0.0)
        do_tile = do_tile.to(DOT)
        result = tl.dot(tl.trans(scores), do_tile, input_precision=PRECISION)
        if tl.bfloat16 == DOT:
            result = tl.dot(tl.trans(rest), do_tile, result)
        result *= scale
        for part in tl.range(0, (K + BK - 1) // BK, num_stages=1):
            wide = part * BK + tl.arange(0, BK)
            there = live & (wide < K)[None, :]
            steps = tl.load(tile(g, begin, rows, wide, g_token), mask=there, other=0.0).to(tl.float32)
            steps = tl.maximum(steps, FLOOR)
            k_tile = tl.load(tile(k, begin, rows, wide, k_token), mask=there, other=0.0).to(tl.float32)
            dstate = state_at(
                dstates, dscales, dfades, dborders, at, border, not last_segment, wide, columns, K, V, TILE, SEGMENTED
            )
            dstate, dstate_rest = split(dstate, DOT)
            future = exact_sums(table(masks, FUTURE, rows), steps, PARTS) * LOG2E
            faded, faded_rest = split(k_tile * tl.exp2(future), DOT)
            result = fine_product(faded, faded_rest, dstate, dstate_rest, result, DOT, PRECISION)
        place_of = ((row * T + begin) * H + head) * V + rows[:, None] * (H * V) + columns[None, :]
        tl.store(dv + place_of, result.to(dv.dtype.element_ty), mask=shown)
