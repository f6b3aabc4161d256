"""The gradients of hopper_channel.py, of every chunk by itself."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from linscale.ops.decay_attention.kernels.hopper_common import (
    BEFORE,
    BEHIND,
    MILD,
    ONWARDS,
    UP_TO,
    anew,
    chunk_number,
    cut,
    fetch,
    locate,
    product,
    publish,
    put,
)
from linscale.ops.decay_attention.kernels.hopper_decays import (
    fine,
    four,
    from_middle,
    half_scaled,
    mask,
    scale_both,
    strong_scores,
    sums,
    take_decays,
)


@gluon.jit
def below(pair_tiles, block, operand: gl.constexpr, C: gl.constexpr, ACROSS: gl.constexpr, FLIP: gl.constexpr):
    """Both parts of dA as left operands, only pairs within a block, or ACROSS the middle of one; FLIP: dAᵀ."""
    r = gl.arange(0, C, layout=gl.SliceLayout(1, operand))[:, None]
    c = gl.arange(0, C, layout=gl.SliceLayout(0, operand))[None, :]
    keep = r // block == c // block
    if ACROSS:
        keep = keep & (r // (block // 2) != c // (block // 2))
    high, low = pair_tiles[2], pair_tiles[3]
    if FLIP:
        high, low = high.permute((1, 0)), low.permute((1, 0))
    zero = gl.zeros([C, C], gl.bfloat16, operand)
    return gl.where(keep, high.load(operand), zero), gl.where(keep, low.load(operand), zero)


@gluon.jit
def pair_products(v_tile, do_tile, pair_tiles, t, LAYOUT: gl.constexpr, SCORES: gl.constexpr, C: gl.constexpr):
    """do vᵀ below the diagonal into pair_tiles 2 and 3, two bf16 numbers; what is on the diagonal, (C,)."""
    i = anew(gl.arange(0, C, layout=gl.SliceLayout(1, SCORES)), t)[:, None]
    j = gl.arange(0, C, layout=gl.SliceLayout(0, SCORES))[None, :]
    pairs = product(do_tile, v_tile.permute((1, 0)), SCORES, C, C)
    diagonal = gl.convert_layout(gl.sum(gl.where(i == j, pairs, 0.0), axis=1), gl.SliceLayout(1, LAYOUT))
    high, low = cut(gl.where(i > j, pairs, 0.0))
    pair_tiles[2].store(high)
    pair_tiles[3].store(low)
    return diagonal


@gluon.jit
def decay_grad(x, y_high, y_low, x_tiles, masks, LAYOUT: gl.constexpr, C: gl.constexpr, K: gl.constexpr):
    """The gradient of log decays (C, K), over scale: x summed from each step on, and y (two bf16 numbers) summed over
    the steps before it."""
    high, low = cut(x)
    x_tiles[0].store(high)
    x_tiles[1].store(low)
    x_tiles[2].store(y_high)
    x_tiles[3].store(y_low)
    publish()
    onwards = mask(masks, ONWARDS, LAYOUT, C)
    before = mask(masks, BEFORE, LAYOUT, C)
    total = gl.zeros([C, K], gl.float32, LAYOUT)
    total = warpgroup_mma(onwards, x_tiles[0], total, use_acc=False, is_async=True)
    total = warpgroup_mma(onwards, x_tiles[1], total, is_async=True)
    total = warpgroup_mma(before, x_tiles[2], total, is_async=True)
    total = warpgroup_mma(before, x_tiles[3], total, is_async=True)
    total, _, _ = warpgroup_mma_wait(0, deps=[total, onwards, before])
    return total


@gluon.jit
def value_grad(keys, state_tile, scores_tiles, do_tile, C: gl.constexpr, V: gl.constexpr):
    """keys R + Aᵀ do, not waited for."""
    layout: gl.constexpr = gl.NVMMADistributedLayout(
        [3, 0], [4, gl.num_warps() // 4], [16, V * 4 // gl.num_warps(), 16]
    )
    total = gl.zeros([C, V], gl.float32, layout)
    total = warpgroup_mma(keys, state_tile.permute((1, 0)), total, use_acc=False, is_async=True)
    total = warpgroup_mma(scores_tiles[0], do_tile, total, is_async=True)
    return warpgroup_mma(scores_tiles[1], do_tile, total, is_async=True)


@gluon.jit
def mild_grads(
    s, outputs, t, end, through, states, ahead, x_tiles, v_tile, do_tile, state_tile, pair_tiles, masks, scale,
    LAYOUT: gl.constexpr, SCORES: gl.constexpr, C: gl.constexpr, K: gl.constexpr, V: gl.constexpr, H: gl.constexpr,
    WARPS: gl.constexpr,
):  # fmt: skip
    """Gradients of a chunk with Aᵀ in pair_tiles 0 and 1, R1 in state_tile; S1 is fetched from `states`.

    ahead  what the next chunk takes in the same places, fetched as soon as they are free: v, do, the distances of their
           tokens, R1, and how many rows of it there are, none behind the last chunk
    """
    v, do, v_token, do_token, gradients, more = ahead
    dq, dk, dv, dg = outputs
    dv_tile = value_grad(x_tiles[2], state_tile, pair_tiles, do_tile, C, V)
    future = warpgroup_mma(v_tile, state_tile, gl.zeros([C, K], gl.float32, LAYOUT), use_acc=False, is_async=True)
    dv_tile = warpgroup_mma_wait(1, deps=[dv_tile])
    put(dv, t, end, H * V, dv_tile * scale)
    future = warpgroup_mma_wait(0, deps=[future])
    diagonal = pair_products(v_tile, do_tile, pair_tiles, t, LAYOUT, SCORES, C)
    publish()
    fetch(state_tile, states, t * 0, t * 0 + V, K, K, V, WARPS)
    fetch(v_tile, v, t + C, end, v_token, V, C, WARPS)
    async_copy.commit_group()
    key = x_tiles[2].load(LAYOUT).to(gl.float32) + x_tiles[3].load(LAYOUT).to(gl.float32)
    y = future * key
    future = fine(
        pair_tiles[2].permute((1, 0)), pair_tiles[3].permute((1, 0)),
        x_tiles[0], x_tiles[1], future,
    )  # fmt: skip
    wide = gl.arange(0, K, layout=gl.SliceLayout(0, LAYOUT))
    rows = gl.arange(0, C, layout=gl.SliceLayout(1, LAYOUT))
    # What passes through the chunk is added to the last step, from which all steps before it sum.
    x = y + gl.where((rows == C - 1)[:, None], gl.load(through + wide)[None, :], 0.0)
    high, low = cut(y)
    future = warpgroup_mma_wait(0, deps=[future])
    x -= key * future
    query = x_tiles[0].load(LAYOUT).to(gl.float32) + x_tiles[1].load(LAYOUT).to(gl.float32)
    put(dk, t, end, H * K, (future + diagonal[:, None] * query) * gl.exp2(-s) * scale)
    async_copy.wait_group(0)
    gl.thread_barrier()
    fence_async_shared()
    past = gl.zeros([C, K], gl.float32, LAYOUT)
    past = warpgroup_mma(do_tile, state_tile, past, use_acc=False, is_async=True)
    past = fine(pair_tiles[2], pair_tiles[3], x_tiles[2], x_tiles[3], past)
    past = warpgroup_mma_wait(0, deps=[past])
    key = x_tiles[2].load(LAYOUT).to(gl.float32) + x_tiles[3].load(LAYOUT).to(gl.float32)
    put(dq, t, end, H * K, (past + diagonal[:, None] * key) * gl.exp2(s) * scale)
    query = x_tiles[0].load(LAYOUT).to(gl.float32) + x_tiles[1].load(LAYOUT).to(gl.float32)
    x += query * past
    gl.thread_barrier()
    fetch(do_tile, do, t + C, end, do_token, V, C, WARPS)
    fetch(state_tile, gradients, t * 0, t * 0 + more, K, K, V, WARPS)
    async_copy.commit_group()
    put(dg, t, end, H * K, decay_grad(x, high, low, x_tiles, masks, LAYOUT, C, K) * scale)


@gluon.jit
def strong_grads(
    s, level, outputs, t, end, through, states, q_tile, k_tile, g_tiles, x_tiles, v_tile, do_tile, state_tile,
    pair_tiles, masks, scale,
    LAYOUT: gl.constexpr, SCORES: gl.constexpr, C: gl.constexpr, K: gl.constexpr, V: gl.constexpr, H: gl.constexpr,
    PARTS: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """As `mild_grads`, with q~ and k~ of blocks of C / 2^level rows in x_tiles, S and R in place of S1 and R1: what
    crosses the middle of a larger block is taken from `half_scaled` anew."""
    dq, dk, dv, dg = outputs
    operand: gl.constexpr = gl.DotOperandLayout(0, LAYOUT, 2)
    diagonal = pair_products(v_tile, do_tile, pair_tiles, t, LAYOUT, SCORES, C)
    publish()
    nothing = gl.zeros([C, K], gl.float32, LAYOUT)
    block = C >> level
    high, low = below(pair_tiles, block, operand, C, False, False)
    past = fine(high, low, x_tiles[2], x_tiles[3], nothing)
    past, _, _ = warpgroup_mma_wait(0, deps=[past, high, low])
    past = past * gl.exp2(s)
    high, low = below(pair_tiles, block, operand, C, False, True)
    inside = fine(high, low, x_tiles[0], x_tiles[1], nothing)
    inside, _, _ = warpgroup_mma_wait(0, deps=[inside, high, low])
    inside = inside * gl.exp2(-s)
    rows = gl.arange(0, C, layout=gl.SliceLayout(1, LAYOUT))
    above = gl.to_tensor(0)
    while above < level:
        size = C >> above
        gl.thread_barrier()
        exponent = from_middle(masks, above, t, g_tiles, LAYOUT, C, K, PARTS)
        factor = half_scaled(q_tile, k_tile, x_tiles, exponent, size, LAYOUT, C)
        publish()
        high, low = below(pair_tiles, size, operand, C, True, False)
        dx = fine(high, low, x_tiles[0], x_tiles[1], nothing)
        dx, _, _ = warpgroup_mma_wait(0, deps=[dx, high, low])
        high, low = below(pair_tiles, size, operand, C, True, True)
        dx = fine(high, low, x_tiles[0], x_tiles[1], dx)
        dx, _, _ = warpgroup_mma_wait(0, deps=[dx, high, low])
        dx = dx * factor
        later = ((rows // (size // 2)) % 2 == 1)[:, None]
        past += gl.where(later, dx, 0.0)
        inside += gl.where(later, 0.0, dx)
        above += 1
    gl.thread_barrier()
    exponent = sums(mask(masks, BEHIND, LAYOUT, C), g_tiles, LAYOUT, C, K, PARTS)
    key = k_tile.load(LAYOUT).to(gl.float32)
    x_tiles[2].store((key * gl.exp2(exponent)).to(gl.bfloat16))
    publish()
    dv_tile = warpgroup_mma_wait(0, deps=[value_grad(x_tiles[2], state_tile, pair_tiles, do_tile, C, V)])
    put(dv, t, end, H * V, dv_tile * scale)
    future = product(v_tile, state_tile, LAYOUT, C, K) * gl.exp2(exponent)
    query = q_tile.load(LAYOUT).to(gl.float32)
    put(dk, t, end, H * K, (inside + future + diagonal[:, None] * query) * scale)
    gl.thread_barrier()
    fetch(state_tile, states, t * 0, t * 0 + V, K, K, V, WARPS)
    async_copy.commit_group()
    async_copy.wait_group(0)
    gl.thread_barrier()
    fence_async_shared()
    exponent = sums(mask(masks, UP_TO, LAYOUT, C), g_tiles, LAYOUT, C, K, PARTS)
    past += product(do_tile, state_tile, LAYOUT, C, K) * gl.exp2(exponent)
    put(dq, t, end, H * K, (past + diagonal[:, None] * key) * scale)
    wide = gl.arange(0, K, layout=gl.SliceLayout(0, LAYOUT))
    passing = gl.where((rows == C - 1)[:, None], gl.load(through + wide)[None, :], 0.0)
    high, low = cut(key * future)
    dsteps = decay_grad(query * past - key * inside + passing, high, low, x_tiles, masks, LAYOUT, C, K)
    put(dg, t, end, H * K, dsteps * scale)


@gluon.jit(do_not_specialize=["T", "per_row", "span"])
def hopper_channel_grads_kernel(
    q, k, v, g, do, dq, dk, dv, dg, states, gradients, through, flags, masks, cu, document_of, first_of, first_chunk,
    q_row, q_token, q_head, k_row, k_token, k_head, v_row, v_token, v_head, g_row, g_token, g_head,
    do_row, do_token, do_head, T, per_row, span, scale,
    H: gl.constexpr, K: gl.constexpr, V: gl.constexpr, C: gl.constexpr, PACKED: gl.constexpr, STRONG: gl.constexpr,
    PARTS: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """All gradients of the chunks of one (segment, head), from what the output and hopper_states.py left."""
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, WARPS // 4], [16, K * 4 // WARPS, 16])
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, WARPS // 4], [16, C * 4 // WARPS, 16])
    type: gl.constexpr = gl.bfloat16
    SHARED_K: gl.constexpr = gl.NVMMASharedLayout.get_default_for([C, K], type)
    SHARED_V: gl.constexpr = gl.NVMMASharedLayout.get_default_for([C, V], type)
    SHARED_C: gl.constexpr = gl.NVMMASharedLayout.get_default_for([C, C], type)
    SHARED_S: gl.constexpr = gl.NVMMASharedLayout.get_default_for([V, K], type)
    SHARED_G: gl.constexpr = gl.NVMMASharedLayout.get_default_for([C, K], g.dtype.element_ty)

    program = gl.program_id(0)
    head = program % H
    segment = program // H
    document, row, begin, end, place, count = locate(segment, cu, document_of, first_of, T, per_row, span, PACKED)
    wanted = document >= 0
    if STRONG:
        wanted = wanted & (gl.load(flags + program) > 0)
    if wanted:
        head_at = head.to(gl.int64)
        q += row * q_row + head_at * q_head
        k += row * k_row + head_at * k_head
        v += row * v_row + head_at * v_head
        g += row * g_row + head_at * g_head
        do += row * do_row + head_at * do_head
        at = row * T * H + head
        outputs = (dq + at * K, dk + at * K, dv + at * V, dg + at * K)
        number = chunk_number(first_chunk, document, row, place, span, T, C, PACKED)
        states += (number * H + head) * K * V
        gradients += (number * H + head) * K * V
        through += (number * H + head) * K
        q_tile = gl.allocate_shared_memory(type, [C, K], SHARED_K)
        k_tile = gl.allocate_shared_memory(type, [C, K], SHARED_K)
        v_tile = gl.allocate_shared_memory(type, [C, V], SHARED_V)
        do_tile = gl.allocate_shared_memory(type, [C, V], SHARED_V)
        x_tiles = four(type, C, K, SHARED_K)
        halves = gl.allocate_shared_memory(gl.float32, [2, K], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
        state_tile = gl.allocate_shared_memory(type, [V, K], SHARED_S)
        g_tile = gl.allocate_shared_memory(g.dtype.element_ty, [C, K], SHARED_G)
        # As they came, and then floored and split, in the same place.
        g_tiles = g_tile._reinterpret(type, [PARTS, C, K], SHARED_K)
        pair_tiles = four(type, C, C, SHARED_C)

        chunks = ((end - begin + (C - 1)) // C).to(gl.int32)
        fetch(q_tile, q, begin, end, q_token, K, C, WARPS)
        fetch(k_tile, k, begin, end, k_token, K, C, WARPS)
        fetch(g_tile, g, begin, end, g_token, K, C, WARPS)
        async_copy.commit_group()
        fetch(v_tile, v, begin, end, v_token, V, C, WARPS)
        fetch(do_tile, do, begin, end, do_token, V, C, WARPS)
        fetch(state_tile, gradients, begin * 0, begin * 0 + V, K, K, V, WARPS)
        async_copy.commit_group()
        chunk = gl.to_tensor(0)
        while chunk < chunks:
            t = begin + chunk * C
            hop = chunk.to(gl.int64) * H
            async_copy.wait_group(1)
            gl.thread_barrier()
            strongest = take_decays(g_tile, g_tiles, halves, LAYOUT, C, PARTS)
            publish()
            s = from_middle(masks, 0, t, g_tiles, LAYOUT, C, K, PARTS)
            scores = gl.zeros([C, C], gl.float32, SCORES)
            mild = strongest >= -MILD
            following = gradients + (chunk + 1).to(gl.int64) * H * K * V
            more = gl.where(chunk + 1 < chunks, V, 0)
            ahead = (v, do, v_token, do_token, following, more)
            if STRONG:
                if not mild:
                    scores, s, level = strong_scores(
                        q_tile, k_tile, g_tiles, x_tiles, scores, s, masks, t, LAYOUT, SCORES, C, K, PARTS
                    )
                    high, low = cut(scores)
                    pair_tiles[0].store(high)
                    pair_tiles[1].store(low)
                    async_copy.wait_group(0)
                    publish()
                    strong_grads(
                        s, level, outputs, t, end, through + hop * K, states + hop * K * V, q_tile, k_tile, g_tiles,
                        x_tiles, v_tile, do_tile, state_tile, pair_tiles, masks, scale, LAYOUT, SCORES, C, K, V, H,
                        PARTS, WARPS,
                    )  # fmt: skip
                    gl.thread_barrier()
                    if chunk + 1 < chunks:
                        fetch(q_tile, q, t + C, end, q_token, K, C, WARPS)
                        fetch(k_tile, k, t + C, end, k_token, K, C, WARPS)
                        fetch(g_tile, g, t + C, end, g_token, K, C, WARPS)
                    async_copy.commit_group()
                    fetch(v_tile, v, t + C, end, v_token, V, C, WARPS)
                    fetch(do_tile, do, t + C, end, do_token, V, C, WARPS)
                    fetch(state_tile, following, begin * 0, begin * 0 + more, K, K, V, WARPS)
                    async_copy.commit_group()
            if mild:
                scale_both(q_tile, k_tile, x_tiles, s, LAYOUT)
                publish()
                fetch(q_tile, q, t + C, end, q_token, K, C, WARPS)
                fetch(k_tile, k, t + C, end, k_token, K, C, WARPS)
                fetch(g_tile, g, t + C, end, g_token, K, C, WARPS)
                async_copy.commit_group()
                scores = fine(
                    x_tiles[2], x_tiles[3],
                    x_tiles[0].permute((1, 0)), x_tiles[1].permute((1, 0)), scores,
                )  # fmt: skip
                scores = warpgroup_mma_wait(0, deps=[scores])
                j = anew(gl.arange(0, C, layout=gl.SliceLayout(1, SCORES)), t)[:, None]
                i = gl.arange(0, C, layout=gl.SliceLayout(0, SCORES))[None, :]
                high, low = cut(gl.where(i >= j, scores, 0.0))
                pair_tiles[0].store(high)
                pair_tiles[1].store(low)
                async_copy.wait_group(1)
                publish()
                mild_grads(
                    s, outputs, t, end, through + hop * K, states + hop * K * V, ahead, x_tiles, v_tile, do_tile,
                    state_tile, pair_tiles, masks, scale, LAYOUT, SCORES, C, K, V, H, WARPS,
                )  # fmt: skip
                gl.thread_barrier()
            elif not STRONG:
                gl.store(flags + program, 1)
                chunk = chunks
            chunk += 1
        async_copy.wait_group(0)
