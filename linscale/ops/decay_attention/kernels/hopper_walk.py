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
    await_earlier,
    fetch,
    let_next_begin,
    locate,
    state_offsets,
    write,
)

LOST = gl.constexpr(180)  # 2^-180 of a product of two entries up to 2^15 is less than float32 can hold


@gluon.jit
def head_decay(g):
    """log2 of the decay of a step."""
    return gl.maximum(gl.load(g).to(gl.float32), FLOOR) * LOG2E


@gluon.jit
def reach(decay, C: gl.constexpr):
    """Steps, in whole chunks, behind which nothing is left of a step where each decays by 2^decay."""
    return ((LOST / gl.maximum(-decay, 1e-6)).to(gl.int32) + C) // C * C


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
def count_steps(decay, count, line_tiles, C: gl.constexpr):
    """Where every step decays by 2^decay: what is left after the steps up to each, and after those behind it, of a
    chunk of `count` steps, into line_tiles (2, C)."""
    line: gl.constexpr = gl.BlockedLayout([C // 32], [32], [gl.num_warps()], [0])
    token = gl.arange(0, C, layout=line)
    line_tiles.index(0).store(gl.exp2(decay * gl.minimum(token + 1, count).to(gl.float32)))
    line_tiles.index(1).store(gl.exp2(decay * gl.maximum(count - 1 - token, 0).to(gl.float32)))


@gluon.jit
def left(line_tiles, later: gl.constexpr, layout: gl.constexpr, KIND: gl.constexpr):
    """What the decay leaves over the steps of a chunk up to each, or over those behind it if `later`."""
    found = line_tiles.index(1 if later else 0).load(layout)
    return gl.exp2(found) if KIND == TOKEN else found


@gluon.jit
def walk_chunks(
    a, b, c, d, g, out, sums, strides, begin, end, unwritten, d_end, state, scale,
    A: gl.constexpr, X: gl.constexpr, C: gl.constexpr, KIND: gl.constexpr, REVERSE: gl.constexpr,
    OUTPUT: gl.constexpr, SUMS: gl.constexpr, GRADIENT: gl.constexpr, STAGES: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Walk from `begin` to `end`, write the output if OUTPUT, return the state behind, Sᵀ (X, A), log2 of the decay on
    the way (TOKEN) and, if GRADIENT, what the steps before d_end add to the gradient of the state that they started
    from, over scale: the sum of d aᵀ (X, A), each step faded by the decay up to it.
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
    d_tiles = gl.allocate_shared_memory(type, [STAGES, C, X], SHARED_X) if SUMS or GRADIENT else c_tiles
    scores_tile = gl.allocate_shared_memory(type, [C, C], SHARED_C)
    out_tile = gl.allocate_shared_memory(type, [C, X], SHARED_X)
    line_tiles = gl.allocate_shared_memory(gl.float32, [2, C], gl.SwizzledSharedLayout(1, 1, 1, [0]))

    # scoresᵀ: rows are the steps that are read (of b), columns those that read (of a).
    read = gl.arange(0, C, layout=gl.SliceLayout(1, SCORES))
    reads = gl.arange(0, C, layout=gl.SliceLayout(0, SCORES))
    later = read[:, None] - reads[None, :] if REVERSE else reads[None, :] - read[:, None]
    causal = later > 0 if SUMS else later >= 0
    if KIND == HEAD:
        decay = head_decay(g)
        between = gl.where(causal, gl.exp2(gl.where(causal, later, 0).to(gl.float32) * decay), 0.0)
    FADED: gl.constexpr = gl.DotOperandLayout(0, STATE, 2)
    COLUMNS: gl.constexpr = gl.SliceLayout(0, OUT)
    STEPS: gl.constexpr = gl.SliceLayout(0, FADED)

    chunks = ((end - begin + (C - 1)) // C).to(gl.int32)
    for ahead in gl.static_range(STAGES - 1):
        if ahead < chunks:
            t = begin + (chunks - 1 - ahead if REVERSE else ahead) * C
            if OUTPUT:
                fetch(a_tiles.index(ahead), a, t, end, strides[0], A, C, WARPS)
            fetch(b_tiles.index(ahead), b, t, end, strides[1], A, C, WARPS)
            fetch(c_tiles.index(ahead), c, t, end, strides[2], X, C, WARPS)
            if SUMS or GRADIENT:
                fetch(d_tiles.index(ahead), d, t, d_end, strides[3], X, C, WARPS)
        async_copy.commit_group()

    fade = gl.to_tensor(0.0)
    gradient = gl.zeros([X, A], gl.float32, STATE) if GRADIENT else state
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
            if SUMS or GRADIENT:
                fetch(d_tiles.index(following % STAGES), d, t_ahead, d_end, strides[3], X, C, WARPS)
        async_copy.commit_group()
        b_tile = b_tiles.index(slot)
        c_tile = c_tiles.index(slot)
        if KIND == HEAD:
            count = gl.minimum(end - t, C).to(gl.int32)
            if step < 2 if REVERSE else (step == 0) | (count < C):
                count_steps(decay, count, line_tiles, C)
            total = decay * count.to(gl.float32)
        elif KIND == TOKEN:
            total = sum_steps(steps, later_steps, line_tiles)
            steps, later_steps = read_steps(
                g, begin + (chunks - 2 - step if REVERSE else step + 1) * C, end, strides[4], C
            )
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
                past_read = line_tiles.index(0).load(gl.SliceLayout(1, SCORES))
                past_reads = line_tiles.index(0).load(gl.SliceLayout(0, SCORES))
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
                result *= left(line_tiles, REVERSE, COLUMNS, KIND)[None, :]
            result = warpgroup_mma(c_tile.permute((1, 0)), scores_tile, result, is_async=True)

        if KIND == NONE:
            state = warpgroup_mma(c_tile.permute((1, 0)), b_tile, state, is_async=True)
            if GRADIENT:
                d_tile = d_tiles.index(slot)
                gradient = warpgroup_mma(d_tile.permute((1, 0)), a_tile, gradient, is_async=True)
        else:
            faded = c_tile.permute((1, 0)).load(FADED).to(gl.float32)
            weight = left(line_tiles, not REVERSE, STEPS, KIND)
            if SUMS:
                weight = gl.where(t + gl.arange(0, C, layout=STEPS) == unwritten, 0.0, weight)
            faded *= weight[None, :]
            leading = faded.to(type)
            state *= gl.exp2(total)
            rest = (faded - leading.to(gl.float32)).to(type)
            state = warpgroup_mma(leading, b_tile, state, is_async=True)
            state = warpgroup_mma(rest, b_tile, state, is_async=True)

        if OUTPUT:
            if KIND == NONE:
                result = warpgroup_mma_wait(2 if GRADIENT else 1, deps=[result])
            else:
                result = warpgroup_mma_wait(2, deps=[result])
            result = result * scale
            if SUMS:
                met = gl.sum(result * d_tiles.index(slot).permute((1, 0)).load(OUT).to(gl.float32), axis=0)
                columns = gl.arange(0, C, layout=COLUMNS)
                gl.store(sums + (t + columns) * strides[6], met, mask=columns < end - t)
                result += (itself * scale)[None, :] * c_tile.permute((1, 0)).load(OUT).to(gl.float32)
            out_tile.permute((1, 0)).store(result.to(type))
            gl.thread_barrier()
            write(out, t, end, strides[5], out_tile, C, X)
        if KIND != NONE:
            state, _, _ = warpgroup_mma_wait(0, deps=[state, leading, rest])
        elif GRADIENT:
            state, gradient = warpgroup_mma_wait(0, deps=[state, gradient])
        else:
            state = warpgroup_mma_wait(0, deps=[state])
        if GRADIENT and KIND != NONE:
            gl.static_assert(KIND == HEAD)
            if t < d_end:
                weight = left(line_tiles, False, STEPS, KIND) * gl.exp2(decay * (step * C).to(gl.float32))
                faded = d_tiles.index(slot).permute((1, 0)).load(FADED).to(gl.float32) * weight[None, :]
                leading = faded.to(type)
                rest = (faded - leading.to(gl.float32)).to(type)
                gradient = warpgroup_mma(leading, a_tiles.index(slot), gradient, is_async=True)
                gradient = warpgroup_mma(rest, a_tiles.index(slot), gradient, is_async=True)
                gradient, _, _ = warpgroup_mma_wait(0, deps=[gradient, leading, rest])
    async_copy.wait_group(0)
    return state, fade, gradient


@gluon.jit(do_not_specialize=["T", "per_row", "span"])
def hopper_walk_kernel(
    a, b, c, d, g, out, borders, weights, start, finish, sums, behind, final, crossing, cu, document_of, first_of,
    a_row, a_token, a_head, b_row, b_token, b_head, c_row, c_token, c_head, d_row, d_token, d_head,
    g_row, g_token, g_head, T, per_row, span, scale,
    H: gl.constexpr, A: gl.constexpr, X: gl.constexpr, BX: gl.constexpr, C: gl.constexpr, KIND: gl.constexpr,
    PACKED: gl.constexpr, SEGMENTED: gl.constexpr, REVERSE: gl.constexpr, TRANSPOSED: gl.constexpr,
    OUTPUT: gl.constexpr, SUMS: gl.constexpr, GRADIENT: gl.constexpr, HAS_START: gl.constexpr,
    HAS_FINISH: gl.constexpr, HAS_FINAL: gl.constexpr, STAGES: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """One program: (segment, head, slice of BX columns of the output).

    OUTPUT     write out (B, T, H, X), from the states in `borders`; else write there what each segment adds, and log2
               of the decay over it into weights (segments, H, K), for join_kernel
    SUMS       for the gradient of log decays, of the walk that gives dq: d is q, sums (B, T, H, slices) their products,
               crossing (segments, H, slices) the products of the state behind a segment and its gradient, which is in
               `behind` or, if HAS_FINAL, in `final`; there without what the last step wrote, which crosses nothing
    GRADIENT   of the walk that gives dq, in one slice, where d is q: also what each segment adds to the gradient of the
               state it starts from (the last one with that of `final`) into `behind`, and weights as above, for
               join_kernel: q and do need not be read for it alone
    borders, start, finish, behind, final   (.., H, A, X) float32, stored (X, A) if TRANSPOSED
    """
    await_earlier()
    let_next_begin()
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
        d_end = gl.where(opening, begin, end) if GRADIENT else end  # before the first segment no state is asked for
        length = end - begin
        if KIND == HEAD:  # for states alone, nothing is read that has faded when it leaves the segment
            far = reach(head_decay(g), C)
            if GRADIENT:
                d_end = gl.minimum(d_end, begin + far)
            if not OUTPUT:
                if REVERSE:
                    end = gl.minimum(end, begin + far)
                else:
                    begin += gl.maximum(length - far, 0) // C * C
        state, fade, gradient = walk_chunks(
            a, b, c, d, g, out, sums, strides, begin, end, unwritten, d_end, state, scale,
            A, BX, C, KIND, REVERSE, OUTPUT, SUMS, GRADIENT, STAGES, WARPS,
        )  # fmt: skip
        if KIND == HEAD:
            fade = head_decay(g) * length.to(gl.float32)
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
            if GRADIENT:
                if not opening:
                    gradient = gradient * scale
                    if HAS_FINAL:
                        if closing:
                            gradient += gl.load(final + own + inside) * gl.exp2(fade)
                    gl.store(behind + before + inside, gradient)
        else:
            gl.store(borders + after + inside, state)
        if GRADIENT or not OUTPUT:
            if KIND != NONE:
                keys: gl.constexpr = X if TRANSPOSED else A
                line: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
                at = weights + (segment.to(gl.int64) * H + head) * keys + gl.arange(0, keys, layout=line)
                gl.store(at, gl.zeros([keys], gl.float32, line) + fade)
