"""`decay_attention` where one number a step decays a whole head: each program walks its segment with the state on chip.

    outₜ = scale · Sₜᵀ aₜ,   Sₜ = exp(gₜ) Sₜ₋₁ + bₜ cₜᵀ        a, b (.., A)   c, out (.., X)   S (A, X)

Forward that is o from (q, k, v), and dq from (do, v, k). With time reversed, where step t is decayed by gₜ₊₁, it is dv
from (k, q, do) and dk from (v, do, q). The state before a segment (after it, in reverse) comes from states.py. In one
chunk, with G the running sum of g and C its last step:

    out = scale · ((a bᵀ · exp(G_r - G_c) below the diagonal) c + exp(G) · a S)
    S  <- exp(G_C) S + bᵀ (exp(G_C - G) · c)
"""

import triton
import triton.language as tl

from linscale.ops.decay_attention.kernels.common import FLOOR, HEAD, LOG2E, NONE, chunk_decays, locate, tile


@triton.jit
def walk_chunks(
    a, b, c, g, out, strides, begin, end, rows, wide, columns, state, scale,
    A: tl.constexpr, X: tl.constexpr, C: tl.constexpr, KIND: tl.constexpr,
    REVERSE: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Walk from `begin` to `end`, write the output and return the state behind. strides: of tokens, in a, b, c, g, out."""
    if REVERSE:
        causal = rows[:, None] <= rows[None, :]
    else:
        causal = rows[:, None] >= rows[None, :]
    if KIND == HEAD:
        step = tl.maximum(tl.load(g).to(tl.float32), FLOOR) * LOG2E
        apart = tl.where(causal, tl.abs(rows[:, None] - rows[None, :]), 0).to(tl.float32)
        between = tl.where(causal, tl.exp2(apart * step), 0.0)
    chunks = tl.cast(tl.cdiv(end - begin, C), tl.int32)
    for step in tl.range(0, chunks, num_stages=STAGES):
        t = begin + tl.cast(chunks - 1 - step if REVERSE else step, tl.int64) * C
        live = (rows < end - t)[:, None]
        a_tile = tl.load(tile(a, t, rows, wide, strides[0]), mask=live & (wide < A)[None, :], other=0.0).to(DOT)
        b_tile = tl.load(tile(b, t, rows, wide, strides[1]), mask=live & (wide < A)[None, :], other=0.0).to(DOT)
        c_tile = tl.load(tile(c, t, rows, columns, strides[2]), mask=live & (columns < X)[None, :], other=0.0)
        scores = tl.dot(a_tile, tl.trans(b_tile), input_precision=PRECISION)
        if KIND == NONE:
            c_tile = c_tile.to(DOT)
            result = tl.dot(a_tile, state.to(DOT), input_precision=PRECISION)
            scores = tl.where(causal, scores, 0.0)
            result = tl.dot(scores.to(DOT), c_tile, result, input_precision=PRECISION)
            state = tl.dot(tl.trans(b_tile), c_tile, state, input_precision=PRECISION)
        else:
            past, future, total = chunk_decays(g, t, rows, end - t, strides[3], KIND)
            entering = future if REVERSE else past
            leaving = past if REVERSE else future
            if KIND != HEAD:
                apart = past[None, :] - past[:, None] if REVERSE else past[:, None] - past[None, :]
                between = tl.where(causal, tl.exp2(tl.where(causal, apart, 0.0)), 0.0)
            scores *= between
            result = tl.dot(a_tile, state.to(DOT), input_precision=PRECISION) * tl.exp2(entering)[:, None]
            result = tl.dot(scores.to(DOT), c_tile.to(DOT), result, input_precision=PRECISION)
            faded = (c_tile.to(tl.float32) * tl.exp2(leaving)[:, None]).to(DOT)
            state = tl.dot(tl.trans(b_tile), faded, state * tl.exp2(total), input_precision=PRECISION)
        result = (result * scale).to(out.dtype.element_ty)
        tl.store(tile(out, t, rows, columns, strides[4]), result, mask=live & (columns < X)[None, :])
    return state


@triton.jit(do_not_specialize=["T", "per_row", "span"])
def walk_kernel(
    a, b, c, g, out, borders, start, finish, cu, document_of, first_of,
    a_row, a_token, a_head, b_row, b_token, b_head, c_row, c_token, c_head, g_row, g_token, g_head,
    T, per_row, span, scale,
    H: tl.constexpr, A: tl.constexpr, X: tl.constexpr, BA: tl.constexpr, BX: tl.constexpr, C: tl.constexpr,
    KIND: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr, TRANSPOSED: tl.constexpr,
    SEGMENTED: tl.constexpr, HAS_START: tl.constexpr, HAS_FINISH: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One program: (segment, head, slice of BX columns).

    out      (B, T, H, X), contiguous
    borders  (borders, H, A, X) float32: the states between the segments of a sequence, numbered through
    start    state that the walk starts from; finish: state that it ends with, (N, H, A, X) float32
    TRANSPOSED  the three states are stored (X, A)
    """
    program = tl.program_id(0)
    slices: tl.constexpr = (X + BX - 1) // BX
    part = program % slices
    head = (program // slices) % H
    segment = program // (slices * H)
    document, row, begin, end, place, count = locate(segment, cu, document_of, first_of, T, per_row, span, PACKED)
    if document >= 0:
        rows = tl.arange(0, C)
        wide = tl.arange(0, BA)
        columns = part * BX + tl.arange(0, BX)
        a += row * a_row + tl.cast(head, tl.int64) * a_head
        b += row * b_row + tl.cast(head, tl.int64) * b_head
        c += row * c_row + tl.cast(head, tl.int64) * c_head
        g += row * g_row + tl.cast(head, tl.int64) * g_head
        out += row * T * H * X + head * X
        if TRANSPOSED:
            inside = wide[:, None] + columns[None, :] * A
        else:
            inside = wide[:, None] * X + columns[None, :]
        known = (wide[:, None] < A) & (columns[None, :] < X)
        own = (document * H + head) * A * X
        # Border number segment - document - 1 lies before this segment, and segment - document behind it.
        before = ((segment - document - 1 + REVERSE) * H + head) * A * X

        state = tl.zeros((BA, BX), dtype=tl.float32)
        opening = (place == count - 1) if REVERSE else (place == 0)
        if HAS_START:
            if opening:
                state = tl.load(start + own + inside, mask=known, other=0.0).to(tl.float32)
        if SEGMENTED:
            if not opening:
                state = tl.load(borders + before + inside, mask=known, other=0.0)
        if REVERSE:
            state = state / scale

        strides = (a_token, b_token, c_token, g_token, H * X)
        state = walk_chunks(
            a, b, c, g, out, strides, begin, end, rows, wide, columns, state, scale,
            A, X, C, KIND, REVERSE, DOT, PRECISION, STAGES,
        )  # fmt: skip
        if HAS_FINISH:
            closing = (place == 0) if REVERSE else (place == count - 1)
            if closing:
                if REVERSE:
                    state = state * scale
                tl.store(finish + own + inside, state, mask=known)
