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

from linscale.ops.decay_attention.kernels.common import (
    FLOOR,
    HEAD,
    LOG2E,
    NONE,
    TOKEN,
    chunk_decays,
    locate,
    product,
    split,
    tile,
)  # fmt: skip


@triton.jit
def walk_chunks(
    a, b, c, g, out, strides, begin, end, rows, wide, columns, state, scale, A, X, reverse,
    C: tl.constexpr, KIND: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Walk from `begin` to `end`, write the output, return the state behind. strides: of tokens, in a, b, c, g, out."""
    later = rows[:, None] - rows[None, :]
    later = tl.where(reverse, -later, later)
    causal = later >= 0
    if KIND == HEAD:
        decay = tl.maximum(tl.load(g).to(tl.float32), FLOOR) * LOG2E
        between = tl.where(causal, tl.exp2(tl.where(causal, later, 0).to(tl.float32) * decay), 0.0)
    chunks = tl.cast(tl.cdiv(end - begin, C), tl.int32)
    for step in tl.range(0, chunks, num_stages=STAGES):
        t = begin + tl.cast(tl.where(reverse, chunks - 1 - step, step), tl.int64) * C
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
            entering = tl.where(reverse, future, past)
            leaving = tl.where(reverse, past, future)
            if KIND != HEAD:
                apart = past[:, None] - past[None, :]
                apart = tl.where(causal, tl.where(reverse, -apart, apart), 0.0)
                between = tl.where(causal, tl.exp2(apart), 0.0)
            scores *= between
            if KIND == TOKEN:
                known, beyond = split(state, DOT)
                result = tl.zeros((C, columns.shape[0]), dtype=tl.float32)
                result = product(a_tile, known, beyond, result, DOT, PRECISION)
            else:
                result = tl.dot(a_tile, state.to(DOT), input_precision=PRECISION)
            result *= tl.exp2(entering)[:, None]
            result = tl.dot(scores.to(DOT), c_tile.to(DOT), result, input_precision=PRECISION)
            faded, rest = split(c_tile.to(tl.float32) * tl.exp2(leaving)[:, None], DOT)
            state = product(tl.trans(b_tile), faded, rest, state * tl.exp2(total), DOT, PRECISION)
        result = (result * scale).to(out.dtype.element_ty)
        tl.store(tile(out, t, rows, columns, strides[4]), result, mask=live & (columns < X)[None, :])
    return state


@triton.jit
def walk_segment(
    a, b, c, g, out, borders, start, finish, strides, place_of, part, head, rows, T, scale, A, X, reverse, transposed,
    starts, finishes,
    H: tl.constexpr, BA: tl.constexpr, BX: tl.constexpr, C: tl.constexpr, KIND: tl.constexpr, SEGMENTED: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One walk over a segment, for slice number `part` of BX columns of `out` (B, T, H, X), contiguous.

    strides     (row, token, head) of a, b, c and g; place_of: what `locate` says of the segment, and its number
    borders     (borders, H, A, X) float32: the states between the segments of a sequence, numbered through
    start       if `starts`, the state that the walk starts from; finish: if `finishes`, where the state goes that it
                ends with; (N, H, A, X) float32
    transposed  the three states are stored (X, A)
    """
    a_strides, b_strides, c_strides, g_strides = strides
    document, row, begin, end, place, count, segment = place_of
    head_at = tl.cast(head, tl.int64)
    wide = tl.arange(0, BA)
    columns = part * BX + tl.arange(0, BX)
    a += row * a_strides[0] + head_at * a_strides[2]
    b += row * b_strides[0] + head_at * b_strides[2]
    c += row * c_strides[0] + head_at * c_strides[2]
    g += row * g_strides[0] + head_at * g_strides[2]
    out += row * T * H * X + head * X
    inside = wide[:, None] * tl.where(transposed, 1, X) + columns[None, :] * tl.where(transposed, A, 1)
    known = (wide[:, None] < A) & (columns[None, :] < X)
    own = (document * H + head) * A * X
    # Border number segment - document - 1 lies before this segment, and segment - document behind it.
    before = ((segment - document - tl.where(reverse, 0, 1)) * H + head) * A * X
    first = place == 0
    last = place == count - 1

    state = tl.zeros((BA, BX), dtype=tl.float32)
    opening = tl.where(reverse, last, first)
    if starts & opening:
        state = tl.load(start + own + inside, mask=known, other=0.0).to(tl.float32)
    if SEGMENTED:
        if not opening:
            state = tl.load(borders + before + inside, mask=known, other=0.0)
    state = state / tl.where(reverse, scale, 1.0)

    token_strides = (a_strides[1], b_strides[1], c_strides[1], g_strides[1], H * X)
    state = walk_chunks(
        a, b, c, g, out, token_strides, begin, end, rows, wide, columns, state, scale, A, X, reverse,
        C, KIND, DOT, PRECISION, STAGES,
    )  # fmt: skip
    if finishes & tl.where(reverse, first, last):
        tl.store(finish + own + inside, state * tl.where(reverse, scale, 1.0), mask=known)


@triton.jit(do_not_specialize=["T", "per_row", "span"])
def walk_kernel(
    q, k, v, g, out, borders, start, finish, cu, document_of, first_of,
    q_row, q_token, q_head, k_row, k_token, k_head, v_row, v_token, v_head, g_row, g_token, g_head,
    T, per_row, span, scale,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    KIND: tl.constexpr, PACKED: tl.constexpr, SEGMENTED: tl.constexpr, HAS_START: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The output. One program: (segment, head, slice of BV columns). Shapes as in `walk_segment`."""
    program = tl.program_id(0)
    slices: tl.constexpr = (V + BV - 1) // BV
    head = (program // slices) % H
    segment = program // (slices * H)
    document, row, begin, end, place, count = locate(segment, cu, document_of, first_of, T, per_row, span, PACKED)
    if document >= 0:
        strides = (
            (q_row, q_token, q_head),
            (k_row, k_token, k_head),
            (v_row, v_token, v_head),
            (g_row, g_token, g_head),
        )
        walk_segment(
            q, k, v, g, out, borders, start, finish, strides, (document, row, begin, end, place, count, segment),
            program % slices, head, tl.arange(0, C), T, scale, K, V, False, False, HAS_START, True,
            H, BK, BV, C, KIND, SEGMENTED, DOT, PRECISION, STAGES,
        )  # fmt: skip


@triton.jit(do_not_specialize=["T", "per_row", "span", "first_role"])
def walk_grads_kernel(
    q, k, v, g, do, dq, dk, dv, before, behind, start, dfinal, dstart, cu, document_of, first_of,
    q_row, q_token, q_head, k_row, k_token, k_head, v_row, v_token, v_head, g_row, g_token, g_head,
    do_row, do_token, do_head, T, per_row, span, first_role, scale,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BA: tl.constexpr, BX: tl.constexpr, SLICES: tl.constexpr,
    ROLES: tl.constexpr, C: tl.constexpr, KIND: tl.constexpr, PACKED: tl.constexpr, SEGMENTED: tl.constexpr,
    HAS_START: tl.constexpr, HAS_FINAL: tl.constexpr, HAS_DSTART: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """ROLES of the walks 0 (dq), 1 (dk) and 2 (dv), from first_role on, side by side in one launch: one program is
    (segment, head, walk, slice of BX columns). One code for all, and what differs chosen at run time: branches would
    each have shared memory of their own.

    before, behind  the states and the gradients of states at the borders; dstart: gradient of `start`
    """
    program = tl.program_id(0)
    part = program % SLICES
    role = first_role + (program // SLICES) % ROLES
    head = (program // (SLICES * ROLES)) % H
    segment = program // (SLICES * ROLES * H)
    document, row, begin, end, place, count = locate(segment, cu, document_of, first_of, T, per_row, span, PACKED)
    if document >= 0:
        of_query = role == 0
        of_value = role == 2
        q_strides = (q_row, q_token, q_head)
        k_strides = (k_row, k_token, k_head)
        v_strides = (v_row, v_token, v_head)
        do_strides = (do_row, do_token, do_head)
        a = tl.where(of_query, do, tl.where(of_value, k, v))
        b = tl.where(of_query, v, tl.where(of_value, q, do))
        c = tl.where(of_query, k, tl.where(of_value, do, q))
        a_strides = choose(of_query, of_value, do_strides, k_strides, v_strides)
        b_strides = choose(of_query, of_value, v_strides, q_strides, do_strides)
        c_strides = choose(of_query, of_value, k_strides, do_strides, q_strides)
        walk_segment(
            a, b, c, g, tl.where(of_query, dq, tl.where(of_value, dv, dk)), tl.where(of_query, before, behind),
            tl.where(of_query, start, dfinal), dstart, (a_strides, b_strides, c_strides, (g_row, g_token, g_head)),
            (document, row, begin, end, place, count, segment), part, head, tl.arange(0, C), T, scale,
            tl.where(of_value, K, V), tl.where(of_value, V, K), role > 0, role < 2,
            tl.where(of_query, HAS_START, HAS_FINAL), HAS_DSTART & of_value,
            H, BA, BX, C, KIND, SEGMENTED, DOT, PRECISION, STAGES,
        )  # fmt: skip


@triton.jit
def choose(of_query, of_value, query, value, key):
    """One of three triples."""
    return (
        tl.where(of_query, query[0], tl.where(of_value, value[0], key[0])),
        tl.where(of_query, query[1], tl.where(of_value, value[1], key[1])),
        tl.where(of_query, query[2], tl.where(of_value, value[2], key[2])),
    )
