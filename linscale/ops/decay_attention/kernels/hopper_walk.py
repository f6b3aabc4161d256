"""The walks of walk.py as Hopper runs them best: the whole state of a head in registers, products by warpgroups.

The recurrence and its roles are those of walk.py. Here everything is kept transposed, Sᵀ (X, A) and outᵀ (X, C): a
warpgroup takes the left operand of a product from registers: the state goes from accumulator to operand without
touching shared memory, in which inputs arrive a few chunks ahead. So each input is read from memory once, and a walk
takes about as long as reading them.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from linscale.ops.decay_attention.kernels.hopper_common import (
    FLOOR,
    HEAD,
    LOG2E,
    NONE,
    TOKEN,
    add,
    fetch,
    locate,
    state_offsets,
)


@gluon.jit
def read_steps(g, t, end, stride, C: gl.constexpr):
    """log2 of the decay of each step of a chunk and of the one behind it, 0 where there is none; in every warp."""
    line: gl.constexpr = gl.BlockedLayout([C // 32], [32], [gl.num_warps()], [0])
    token = gl.arange(0, C, layout=line)
    steps = gl.load(g + (t + token) * stride, mask=(t + token < end) & (t + token >= 0), other=0.0)
    behind = (t + token + 1 < end) & (t + token + 1 >= 0) & (token + 1 < C)
    later = gl.load(g + (t + token + 1) * stride, mask=behind, other=0.0)
    return gl.maximum(steps.to(gl.float32), FLOOR) * LOG2E, gl.maximum(later.to(gl.float32), FLOOR) * LOG2E


@gluon.jit
def sum_steps(steps, later, line_tiles):
    """log2 of the decay up to each step, and over those behind it, into line_tiles (2, C); returns the chunk's."""
    line_tiles.index(0).store(gl.associative_scan(steps, 0, add))
    line_tiles.index(1).store(gl.associative_scan(later, 0, add, reverse=True))
    return gl.sum(steps, axis=0)


@gluon.jit
def decays(g, t, end, rows, line_tiles, KIND: gl.constexpr, C: gl.constexpr):
    """log2 of the decay over a chunk: (past, future) for each of `rows`, as `chunk_decays` in common.py."""
    if KIND == HEAD:
        count = gl.minimum(end - t, C).to(gl.int32)
        step = gl.maximum(gl.load(g).to(gl.float32), FLOOR) * LOG2E
        past = step * gl.minimum(rows + 1, count).to(gl.float32)
        future = step * gl.maximum(count - 1 - rows, 0).to(gl.float32)
    else:
        past = line_tiles.index(0).load(rows.type.layout)
        future = line_tiles.index(1).load(rows.type.layout)
    return past, future


@gluon.jit
def walk_chunks(
    a, b, c, d, g, out, sums, strides, begin, end, unwritten, state, scale,
    A: gl.constexpr, X: gl.constexpr, C: gl.constexpr, KIND: gl.constexpr, REVERSE: gl.constexpr,
    OUTPUT: gl.constexpr, SUMS: gl.constexpr, STAGES: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Walk from `begin` to `end`, write the output if OUTPUT, return the state behind, Sᵀ (X, A), and log2 of
    the decay on the way.
    SUMS: write also the sum over X of the output times d (.., X), before it is rounded and without what a step has from
    itself; and leave the step `unwritten` out of the state. strides: of tokens, in a, b, c, d, g, out and sums."""
    FINE: gl.constexpr = KIND == TOKEN or SUMS  # the state as two numbers of its type
    type: gl.constexpr = b.dtype.element_ty
    SHARED_A: gl.constexpr = gl.NVMMASharedLayout.get_default_for([C, A], type)
    SHARED_X: gl.constexpr = gl.NVMMASharedLayout.get_default_for([C, X], type)
    SHARED_C: gl.constexpr = gl.NVMMASharedLayout.get_default_for([C, C], type)
    STATE: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, A, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, C, 16])
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, WARPS // 4], [16, C * 4 // WARPS, 16])
    a_tiles = gl.allocate_shared_memory(type, [STAGES if OUTPUT else 1, C, A], SHARED_A)
    b_tiles = gl.allocate_shared_memory(type, [STAGES, C, A], SHARED_A)
    c_tiles = gl.allocate_shared_memory(type, [STAGES, C, X], SHARED_X)
    d_tiles = gl.allocate_shared_memory(type, [STAGES if SUMS else 1, C, X], SHARED_X) if SUMS else c_tiles
    scores_tile = gl.allocate_shared_memory(type, [C, C], SHARED_C)
    out_tile = gl.allocate_shared_memory(type, [C, X], SHARED_X)
    line_tiles = gl.allocate_shared_memory(gl.float32, [2, C], gl.SwizzledSharedLayout(1, 1, 1, [0]))

    # scoresᵀ: rows are the steps that are read (of b), columns those that read (of a).
    read = gl.arange(0, C, layout=gl.SliceLayout(1, SCORES))
    reads = gl.arange(0, C, layout=gl.SliceLayout(0, SCORES))
    later = read[:, None] - reads[None, :] if REVERSE else reads[None, :] - read[:, None]
    causal = later > 0 if SUMS else later >= 0
    if KIND == HEAD:
        decay = gl.maximum(gl.load(g).to(gl.float32), FLOOR) * LOG2E
        between = gl.where(causal, gl.exp2(gl.where(causal, later, 0).to(gl.float32) * decay), 0.0)
    columns = gl.arange(0, C, layout=gl.SliceLayout(0, OUT))
    FADED: gl.constexpr = gl.DotOperandLayout(0, STATE, 2)
    steps_faded = gl.arange(0, C, layout=gl.SliceLayout(0, FADED))

    chunks = ((end - begin + (C - 1)) // C).to(gl.int32)
    for ahead in gl.static_range(STAGES - 1):
        if ahead < chunks:
            t = begin + (chunks - 1 - ahead if REVERSE else ahead) * C
            if OUTPUT:
                fetch(a_tiles.index(ahead), a, t, end, strides[0], A, C, WARPS)
            fetch(b_tiles.index(ahead), b, t, end, strides[1], A, C, WARPS)
            fetch(c_tiles.index(ahead), c, t, end, strides[2], X, C, WARPS)
            if SUMS:
                fetch(d_tiles.index(ahead), d, t, end, strides[3], X, C, WARPS)
        async_copy.commit_group()

    fade = gl.to_tensor(0.0)
    if KIND == TOKEN:
        steps, later_steps = read_steps(g, begin + (chunks - 1 if REVERSE else 0) * C, end, strides[4], C)
    for step in range(chunks):
        t = begin + (chunks - 1 - step if REVERSE else step) * C
        slot = step % STAGES
        async_copy.wait_group(STAGES - 2)
        gl.thread_barrier()
        fence_async_shared()
        following = step + (STAGES - 1)
        if following < chunks:
            t_ahead = begin + (chunks - 1 - following if REVERSE else following) * C
            if OUTPUT:
                fetch(a_tiles.index(following % STAGES), a, t_ahead, end, strides[0], A, C, WARPS)
            fetch(b_tiles.index(following % STAGES), b, t_ahead, end, strides[1], A, C, WARPS)
            fetch(c_tiles.index(following % STAGES), c, t_ahead, end, strides[2], X, C, WARPS)
            if SUMS:
                fetch(d_tiles.index(following % STAGES), d, t_ahead, end, strides[3], X, C, WARPS)
        async_copy.commit_group()
        b_tile = b_tiles.index(slot)
        c_tile = c_tiles.index(slot)
        if KIND == HEAD:
            total = decay * gl.minimum(end - t, C).to(gl.float32)
        elif KIND == TOKEN:
            total = sum_steps(steps, later_steps, line_tiles)
            steps, later_steps = read_steps(
                g, begin + (chunks - 2 - step if REVERSE else step + 1) * C, end, strides[4], C
            )

        if KIND != NONE:
            fade += total

        if OUTPUT:
            a_tile = a_tiles.index(slot)
            scores = warpgroup_mma(
                b_tile, a_tile.permute((1, 0)), gl.zeros([C, C], gl.float32, SCORES), use_acc=False, is_async=True
            )
            # Operands in registers are named where their product is waited for: nothing may take their place before.
            known = gl.convert_layout(state.to(type), gl.DotOperandLayout(0, OUT, 2))
            result = warpgroup_mma(
                known,
                a_tile.permute((1, 0)),
                gl.zeros([X, C], gl.float32, OUT),
                use_acc=False,
                is_async=True,
            )
            if FINE:
                beyond = (state - state.to(type).to(gl.float32)).to(type)
                beyond = gl.convert_layout(beyond, gl.DotOperandLayout(0, OUT, 2))
                result = warpgroup_mma(
                    beyond,
                    a_tile.permute((1, 0)),
                    result,
                    is_async=True,
                )
                scores = warpgroup_mma_wait(2, deps=[scores])
            else:
                scores = warpgroup_mma_wait(1, deps=[scores])
            if SUMS:
                itself = gl.convert_layout(gl.sum(gl.where(later == 0, scores, 0.0), axis=0), gl.SliceLayout(0, OUT))
            if KIND == NONE:
                scores = gl.where(causal, scores, 0.0)
            elif KIND == HEAD:
                scores *= between
            else:
                past_read, _ = decays(g, t, end, read, line_tiles, KIND, C)
                past_reads, _ = decays(g, t, end, reads, line_tiles, KIND, C)
                apart = past_reads[None, :] - past_read[:, None]
                apart = -apart if REVERSE else apart
                scores *= gl.where(causal, gl.exp2(gl.where(causal, apart, 0.0)), 0.0)
            scores_tile.store(scores.to(type))
            fence_async_shared()
            gl.thread_barrier()
            if FINE:
                result, _, _ = warpgroup_mma_wait(0, deps=[result, known, beyond])
            else:
                result, _ = warpgroup_mma_wait(0, deps=[result, known])
            if KIND != NONE:
                past, future = decays(g, t, end, columns, line_tiles, KIND, C)
                result *= gl.exp2(future if REVERSE else past)[None, :]
            result = warpgroup_mma(c_tile.permute((1, 0)), scores_tile, result, is_async=True)

        if KIND == NONE:
            state = warpgroup_mma(c_tile.permute((1, 0)), b_tile, state, is_async=True)
        else:
            past, future = decays(g, t, end, steps_faded, line_tiles, KIND, C)
            faded = c_tile.permute((1, 0)).load(FADED).to(gl.float32)
            weight = gl.exp2(past if REVERSE else future)
            if SUMS:
                weight = gl.where(t + steps_faded == unwritten, 0.0, weight)
            faded *= weight[None, :]
            leading = faded.to(type)
            state *= gl.exp2(total)
            rest = (faded - leading.to(gl.float32)).to(type)
            state = warpgroup_mma(leading, b_tile, state, is_async=True)
            state = warpgroup_mma(rest, b_tile, state, is_async=True)

        if OUTPUT:
            if KIND == NONE:
                result = warpgroup_mma_wait(1, deps=[result])
            else:
                result = warpgroup_mma_wait(2, deps=[result])
            result = result * scale
            if SUMS:
                met = gl.sum(result * d_tiles.index(slot).permute((1, 0)).load(OUT).to(gl.float32), axis=0)
                gl.store(sums + (t + columns) * strides[6], met, mask=columns < end - t)
                result += (itself * scale)[None, :] * c_tile.permute((1, 0)).load(OUT).to(gl.float32)
            out_tile.permute((1, 0)).store(result.to(type))
            gl.thread_barrier()
            ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [256 // X, X // 8], [WARPS, 1], [1, 0])
            rows = gl.arange(0, C, layout=gl.SliceLayout(1, ROWS))
            across = gl.arange(0, X, layout=gl.SliceLayout(0, ROWS))
            live = (rows < end - t)[:, None] & (across < X)[None, :]
            gl.store(
                out + t * strides[5] + (rows[:, None] * strides[5] + across[None, :]), out_tile.load(ROWS), mask=live
            )
        if KIND == NONE:
            state = warpgroup_mma_wait(0, deps=[state])
        else:
            state, _, _ = warpgroup_mma_wait(0, deps=[state, leading, rest])
    async_copy.wait_group(0)
    return state, fade


@gluon.jit(do_not_specialize=["T", "per_row", "span"])
def hopper_walk_kernel(
    a, b, c, d, g, out, borders, weights, start, finish, sums, behind, final, crossing, cu, document_of, first_of,
    a_row, a_token, a_head, b_row, b_token, b_head, c_row, c_token, c_head, d_row, d_token, d_head,
    g_row, g_token, g_head, T, per_row, span, scale,
    H: gl.constexpr, A: gl.constexpr, X: gl.constexpr, BX: gl.constexpr, C: gl.constexpr, KIND: gl.constexpr,
    PACKED: gl.constexpr, SEGMENTED: gl.constexpr, REVERSE: gl.constexpr, TRANSPOSED: gl.constexpr,
    OUTPUT: gl.constexpr, SUMS: gl.constexpr, HAS_START: gl.constexpr, HAS_FINISH: gl.constexpr,
    HAS_FINAL: gl.constexpr, STAGES: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """One program: (segment, head, slice of BX columns of the output).

    OUTPUT     write out (B, T, H, X), from the states in `borders`; else write there what each segment adds, and log2
               of the decay over it into weights (segments, H, K), for join_kernel
    SUMS       for the gradient of log decays, of the walk that gives dq: d is q, sums (B, T, H, slices) their products,
               crossing (segments, H, slices) the products of the state behind a segment and its gradient, which is in
               `behind` or, if HAS_FINAL, in `final`; there without what the last step wrote, which crosses nothing
    borders, start, finish, behind, final   (.., H, A, X) float32, stored (X, A) if TRANSPOSED
    """
    program = gl.program_id(0)
    slices: gl.constexpr = X // BX
    part = program % slices
    head = (program // slices) % H
    segment = program // (slices * H)
    document, row, begin, end, place, count = locate(segment, cu, document_of, first_of, T, per_row, span, PACKED)
    first = place == 0
    last = place == count - 1
    opening = last if REVERSE else first
    closing = first if REVERSE else last
    wanted = document >= 0
    if not OUTPUT:
        wanted = wanted & (not closing)
    if wanted:
        head_at = head.to(gl.int64)
        a += row * a_row + head_at * a_head
        b += row * b_row + head_at * b_head
        c += row * c_row + head_at * c_head + part * BX
        g += row * g_row + head_at * g_head
        d += row * d_row + head_at * d_head + part * BX
        out += (row * T * H + head) * X + part * BX
        sums += (row * T * H + head) * slices + part
        STATE: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, A, 16])
        inside = state_offsets(part, STATE, A, X, BX, TRANSPOSED)
        own = (document * H + head) * A * X
        # Border number segment - document - 1 lies before this segment, and segment - document behind it.
        before = ((segment - document - (0 if REVERSE else 1)) * H + head) * A * X
        after = ((segment - document - (1 if REVERSE else 0)) * H + head) * A * X
        state = gl.zeros([BX, A], gl.float32, STATE)
        if HAS_START:
            if opening:
                state = gl.load(start + own + inside)
        if OUTPUT and SEGMENTED:
            if not opening:
                state = gl.load(borders + before + inside)
        if REVERSE:
            state = state / scale
        strides = (a_token, b_token, c_token, d_token, g_token, H * X, H * slices)
        unwritten = gl.where(closing, end - 1, -1) if HAS_FINAL else end
        state, fade = walk_chunks(
            a, b, c, d, g, out, sums, strides, begin, end, unwritten, state, scale,
            A, BX, C, KIND, REVERSE, OUTPUT, SUMS, STAGES, WARPS,
        )  # fmt: skip
        if REVERSE:
            state = state * scale
        if OUTPUT:
            if HAS_FINISH:
                if closing:
                    gl.store(finish + own + inside, state)
            if SUMS:
                gradient = gl.zeros([BX, A], gl.float32, STATE)
                if HAS_FINAL:
                    if closing:
                        gradient = gl.load(final + own + inside)
                if SEGMENTED:
                    if not closing:
                        gradient = gl.load(behind + after + inside)
                met = gl.sum(gl.sum(state * gradient, axis=1), axis=0)
                gl.store(crossing + (segment.to(gl.int64) * H + head) * slices + part, met)
        else:
            gl.store(borders + after + inside, state)
            if KIND != NONE:
                line: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
                wide = gl.arange(0, A, layout=line)
                at = weights + (segment.to(gl.int64) * H + head) * A + wide
                gl.store(at, gl.zeros([A], gl.float32, line) + fade)
