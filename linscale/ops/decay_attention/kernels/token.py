"""Gradients of `decay_attention`, log decay included, where one number a step decays a whole head: one chunk's share.

With G the running sum of log decays in the chunk, S the state before it and dS the gradient of the state behind it:

    scores  = q kᵀ · exp(G_r - G_c),  dscores = do vᵀ · exp(G_r - G_c)     r >= c, else 0
    dq      = dscores k + exp(G) · do Sᵀ          dk = dscoresᵀ q + exp(G_C - G) · v dSᵀ
    dv      = scoresᵀ do + exp(G_C - G) · k dS

The gradient of a step's log decay is the sum over all paths that cross it, see channel.py.
"""

import triton
import triton.language as tl

from linscale.ops.decay_attention.kernels.channel import state_at
from linscale.ops.decay_attention.kernels.common import borders_of, chunk_decays, locate, product, split, tile


@triton.jit(do_not_specialize=["T", "per_row", "per_segment"])
def token_grads_kernel(
    q, k, v, g, do, dq, dk, dv, dg, states, scales, fades, borders, dstates, dscales, dfades, dborders,
    cu, document_of, first_of, segment_of,
    q_row, q_token, q_head, k_row, k_token, k_head, v_row, v_token, v_head, g_row, g_token, g_head,
    do_row, do_token, do_head, T, per_row, per_segment, scale,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    TILE: tl.constexpr,
    KIND: tl.constexpr, PACKED: tl.constexpr, SEGMENTED: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: (chunk, head). dg (B, T, H) float32. Other shapes as in channel.py."""
    head = tl.program_id(0) % H
    chunk = tl.program_id(0) // H
    document, row, begin, end, place, count = locate(chunk, cu, document_of, first_of, T, per_row, C, PACKED)
    if document >= 0:
        rows = tl.arange(0, C)
        live = (rows < end - begin)[:, None]
        lower = rows[:, None] >= rows[None, :]
        q += row * q_row + tl.cast(head, tl.int64) * q_head
        k += row * k_row + tl.cast(head, tl.int64) * k_head
        v += row * v_row + tl.cast(head, tl.int64) * v_head
        g += row * g_row + tl.cast(head, tl.int64) * g_head
        do += row * do_row + tl.cast(head, tl.int64) * do_head
        at = tl.cast(chunk, tl.int64) * H + head
        border, first_segment, last_segment = borders_of(document, row, place, count, segment_of, per_segment, PACKED)
        border = border * H + head
        across: tl.constexpr = (V + BV - 1) // BV
        down: tl.constexpr = (K + BK - 1) // BK

        past, future, total = chunk_decays(g, begin, rows, end - begin, g_token, KIND)
        apart = tl.where(lower, past[:, None] - past[None, :], 0.0)
        decay = tl.where(lower, tl.exp2(apart), 0.0) * scale
        past = tl.exp2(past) * scale
        future = tl.exp2(future)

        scores = tl.zeros((C, C), dtype=tl.float32)
        for part in tl.range(0, down, num_stages=1):
            wide = part * BK + tl.arange(0, BK)
            there = live & (wide < K)[None, :]
            q_tile = tl.load(tile(q, begin, rows, wide, q_token), mask=there, other=0.0).to(DOT)
            k_tile = tl.load(tile(k, begin, rows, wide, k_token), mask=there, other=0.0).to(DOT)
            scores = tl.dot(q_tile, tl.trans(k_tile), scores, input_precision=PRECISION)
        dscores = tl.zeros((C, C), dtype=tl.float32)
        for slice in tl.range(0, across, num_stages=1):
            columns = slice * BV + tl.arange(0, BV)
            shown = live & (columns < V)[None, :]
            v_tile = tl.load(tile(v, begin, rows, columns, v_token), mask=shown, other=0.0).to(DOT)
            do_tile = tl.load(tile(do, begin, rows, columns, do_token), mask=shown, other=0.0).to(DOT)
            dscores = tl.dot(do_tile, tl.trans(v_tile), dscores, input_precision=PRECISION)
        scores *= decay
        paths = tl.where(rows[:, None] > rows[None, :], scores * dscores, 0.0)
        from_past = tl.sum(paths, axis=1) - tl.sum(paths, axis=0)
        dscores = (dscores * decay).to(DOT)
        scores = scores.to(DOT)
        to_future = tl.zeros((C,), dtype=tl.float32)
        through = 0.0

        for part in tl.range(0, down, num_stages=1):
            wide = part * BK + tl.arange(0, BK)
            there = live & (wide < K)[None, :]
            dq_past = tl.zeros((C, BK), dtype=tl.float32)
            dk_future = tl.zeros((C, BK), dtype=tl.float32)
            for slice in tl.range(0, across, num_stages=1):
                columns = slice * BV + tl.arange(0, BV)
                shown = live & (columns < V)[None, :]
                v_tile = tl.load(tile(v, begin, rows, columns, v_token), mask=shown, other=0.0).to(DOT)
                do_tile = tl.load(tile(do, begin, rows, columns, do_token), mask=shown, other=0.0).to(DOT)
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
                through += tl.sum(state * dstate)
                dq_past = tl.dot(do_tile, tl.trans(state).to(DOT), dq_past, input_precision=PRECISION)
                dk_future = tl.dot(v_tile, tl.trans(dstate).to(DOT), dk_future, input_precision=PRECISION)
            q_tile = tl.load(tile(q, begin, rows, wide, q_token), mask=there, other=0.0)
            k_tile = tl.load(tile(k, begin, rows, wide, k_token), mask=there, other=0.0)
            dq_past *= past[:, None]
            dk_future *= future[:, None]
            from_past += tl.sum(q_tile.to(tl.float32) * dq_past, axis=1)
            to_future += tl.sum(k_tile.to(tl.float32) * dk_future, axis=1)
            dq_past = tl.dot(dscores, k_tile.to(DOT), dq_past, input_precision=PRECISION)
            dk_future = tl.dot(tl.trans(dscores), q_tile.to(DOT), dk_future, input_precision=PRECISION)
            place_of = ((row * T + begin) * H + head) * K + rows[:, None] * (H * K) + wide[None, :]
            tl.store(dq + place_of, dq_past.to(dq.dtype.element_ty), mask=there)
            tl.store(dk + place_of, dk_future.to(dk.dtype.element_ty), mask=there)

        through *= tl.exp2(total)
        before = tl.sum(tl.where(rows[:, None] > rows[None, :], to_future[None, :], 0.0), axis=1)
        after = tl.sum(tl.where(lower, from_past[:, None], 0.0), axis=0)
        token_at = (row * T + begin) * H + head + rows * H
        tl.store(dg + token_at, before + after + through, mask=rows < end - begin)

        for slice in tl.range(0, across, num_stages=1):
            columns = slice * BV + tl.arange(0, BV)
            shown = live & (columns < V)[None, :]
            do_tile = tl.load(tile(do, begin, rows, columns, do_token), mask=shown, other=0.0).to(DOT)
            result = tl.zeros((C, BV), dtype=tl.float32)
            for part in tl.range(0, down, num_stages=1):
                wide = part * BK + tl.arange(0, BK)
                there = live & (wide < K)[None, :]
                k_tile = tl.load(tile(k, begin, rows, wide, k_token), mask=there, other=0.0).to(DOT)
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
                dstate, beyond = split(dstate, DOT)
                result = product(k_tile, dstate, beyond, result, DOT, PRECISION)
            result *= future[:, None]
            result = tl.dot(tl.trans(scores), do_tile, result, input_precision=PRECISION)
            place_of = ((row * T + begin) * H + head) * V + rows[:, None] * (H * V) + columns[None, :]
            tl.store(dv + place_of, result.to(dv.dtype.element_ty), mask=shown)
