"""Per-channel decay as Hopper runs it: one walk forward, one walk back, the state of a head in registers.

With P the running sum of log2 decays in a chunk of C steps, m its middle and s = P - P_m (C, K), let

    q~ = q · 2^s        k~ = k · 2^-s        S1 = 2^(P_m) · S        R1 = 2^(P_C - P_m) · R

where S is the state before the chunk and R the gradient of the state behind it, over scale. All that a chunk does are
then products of these, and each output takes its decay at the very end:

    A  = lower(q~ k~ᵀ)                          out = scale · (A v + q~ S1)
    S  <- 2^(P_C - P_m) · (S1 + k~ᵀ v)          R   <- 2^(P_m) · (R1 + q~ᵀ do)
    dA = lower(do vᵀ)                           dv  = scale · (Aᵀ do + k~ R1)
    dq = scale · 2^s · (dA k~ + do S1ᵀ)         dk  = scale · 2^-s · (dAᵀ q~ + v R1ᵀ)

The gradient of a step's log decay is the sum over all paths that cross it: those of pairs in the chunk, those from a
state before it, those to behind it, and those through the whole chunk, the row sums of S1 · R1.

This holds while |s| <= MILD, far from where bf16 and float32 end. Where a chunk decays more it is done by halves: pairs
across the middle have factors of at most 1 whatever the decay, and what lies within a half is a smaller chunk.

Operands of A and of dA's products are split in two bf16 numbers (q~ and k~ carry no digits to spare); products with a
state take one. The forward pass leaves S1 of each chunk, bf16, for the backward pass.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, warpgroup_mma, warpgroup_mma_wait

from linscale.ops.decay_attention.kernels.hopper_common import (
    BEHIND,
    BETWEEN,
    MILD,
    UP_TO,
    anew,
    chunk_number,
    fetch,
    locate,
    publish,
    state_offsets,
    write,
)
from linscale.ops.decay_attention.kernels.hopper_decays import (
    fine,
    four,
    half,
    mask,
    scale_both,
    strong_scores,
    sums,
    take_decays,
)


@gluon.jit(do_not_specialize=["T", "per_row", "span"])
def hopper_channel_kernel(
    q, k, v, g, out, states, borders, start, finish, flags, masks, cu, document_of, first_of, first_chunk,
    q_row, q_token, q_head, k_row, k_token, k_head, v_row, v_token, v_head, g_row, g_token, g_head,
    T, per_row, span, scale,
    H: gl.constexpr, K: gl.constexpr, V: gl.constexpr, C: gl.constexpr, PACKED: gl.constexpr,
    SEGMENTED: gl.constexpr, HAS_START: gl.constexpr, SAVE: gl.constexpr, STRONG: gl.constexpr, PARTS: gl.constexpr,
    WARPS: gl.constexpr,
):  # fmt: skip
    """The output. One program: (segment, head).

    states   (chunks, H, V, K) bf16, S1 of every chunk (S of strong ones), if SAVE
    borders  (borders, H, K, V) float32, the states between segments;  start, finish: (N, H, K, V) float32
    flags    (programs,) int32, zeros. At a strong chunk a program of the first launch gives up and sets its flag; a
             second launch, STRONG, does again what is flagged. One kernel for both would take too many registers.
    """
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, WARPS // 4], [16, K * 4 // WARPS, 16])
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, WARPS // 4], [16, C * 4 // WARPS, 16])
    STATE: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [V // 16, WARPS * 16 // V], [16, K * V // (16 * WARPS), 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [V // 16, WARPS * 16 // V], [16, C * V // (16 * WARPS), 16])
    type: gl.constexpr = gl.bfloat16
    SHARED_K: gl.constexpr = gl.NVMMASharedLayout.get_default_for([C, K], type)
    SHARED_V: gl.constexpr = gl.NVMMASharedLayout.get_default_for([C, V], type)
    SHARED_C: gl.constexpr = gl.NVMMASharedLayout.get_default_for([C, C], type)
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
        out += (row * T * H + head) * V
        number = chunk_number(first_chunk, document, row, place, span, T, C, PACKED)
        q_tile = gl.allocate_shared_memory(type, [C, K], SHARED_K)
        k_tile = gl.allocate_shared_memory(type, [C, K], SHARED_K)
        g_tile = gl.allocate_shared_memory(g.dtype.element_ty, [C, K], SHARED_G)
        v_tile = gl.allocate_shared_memory(type, [C, V], SHARED_V)
        # As they came, and then floored and split, in the same place.
        g_tiles = g_tile._reinterpret(type, [PARTS, C, K], SHARED_K)
        x_tiles = four(type, C, K, SHARED_K)
        halves = gl.allocate_shared_memory(gl.float32, [2, K], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
        scores_tile = gl.allocate_shared_memory(type, [C, C], SHARED_C)
        out_tile = gl.allocate_shared_memory(type, [C, V], SHARED_V)
        state_tile = gl.allocate_shared_memory(type, [V, K], gl.NVMMASharedLayout.get_default_for([V, K], type))

        steps = gl.arange(0, C, layout=gl.SliceLayout(1, LAYOUT))
        middle_tile = gl.allocate_shared_memory(type, [C, C], SHARED_C)
        BLOCKED: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])
        r = gl.arange(0, C, layout=gl.SliceLayout(1, BLOCKED))[:, None]
        c = gl.arange(0, C, layout=gl.SliceLayout(0, BLOCKED))[None, :]
        middle_tile.store(gl.load(masks + BETWEEN * (C * C) + (r * C + c)))

        inside = state_offsets(0, STATE, K, V, V, False)
        own = (document * H + head) * K * V
        state = gl.zeros([V, K], gl.float32, STATE)
        if HAS_START:
            if place == 0:
                state = gl.load(start + own + inside)
        if SEGMENTED:
            if place > 0:
                state = gl.load(borders + ((segment - document - 1) * H + head) * K * V + inside)
        j = gl.arange(0, C, layout=gl.SliceLayout(1, SCORES))[:, None]
        i = gl.arange(0, C, layout=gl.SliceLayout(0, SCORES))[None, :]

        chunks = ((end - begin + (C - 1)) // C).to(gl.int32)
        fetch(q_tile, q, begin, end, q_token, K, C, WARPS)
        fetch(k_tile, k, begin, end, k_token, K, C, WARPS)
        fetch(g_tile, g, begin, end, g_token, K, C, WARPS)
        async_copy.commit_group()
        fetch(v_tile, v, begin, end, v_token, V, C, WARPS)
        async_copy.commit_group()
        step = gl.to_tensor(0)
        while step < chunks:
            t = begin + step * C
            async_copy.wait_group(1)
            gl.thread_barrier()
            strongest = take_decays(g_tile, g_tiles, halves, LAYOUT, C, PARTS)
            publish()
            between = sums(middle_tile, g_tiles, LAYOUT, C, K, PARTS)
            s = gl.where((anew(steps, t) >= C // 2)[:, None], between, -between)
            mild = strongest >= -MILD
            scores = gl.zeros([C, C], gl.float32, SCORES)
            if STRONG:
                if not mild:
                    scores, s, _ = strong_scores(
                        q_tile, k_tile, g_tiles, x_tiles, scores, s, masks, t, LAYOUT, SCORES, C, K, PARTS
                    )
                    past = sums(mask(masks, UP_TO, LAYOUT, C), g_tiles, LAYOUT, C, K, PARTS)
                    x_tiles[0].store((q_tile.load(LAYOUT).to(gl.float32) * gl.exp2(past)).to(type))
                    future = sums(mask(masks, BEHIND, LAYOUT, C), g_tiles, LAYOUT, C, K, PARTS)
                    x_tiles[2].store((k_tile.load(LAYOUT).to(gl.float32) * gl.exp2(future)).to(type))
            elif not mild:
                gl.store(flags + program, 1)
                chunks = 0
            if mild:
                scale_both(q_tile, k_tile, x_tiles, s, LAYOUT)
                publish()
                scores = fine(
                    x_tiles[2], x_tiles[3],
                    x_tiles[0].permute((1, 0)), x_tiles[1].permute((1, 0)), scores,
                )  # fmt: skip
                scores = warpgroup_mma_wait(0, deps=[scores])
                scores = gl.where(i >= j, scores, 0.0)
            scores_tile.store(scores.to(type))
            publish()
            if step + 1 < chunks:
                fetch(q_tile, q, t + C, end, q_token, K, C, WARPS)
                fetch(k_tile, k, t + C, end, k_token, K, C, WARPS)
                fetch(g_tile, g, t + C, end, g_token, K, C, WARPS)
            async_copy.commit_group()

            # Mild: S1, to which k~ᵀ v is added, then the rest of the decay. Strong: S, and all of its decay first.
            if not STRONG or mild:
                state = state * half(halves, 0, STATE)
            state_tile.store(state.to(type))
            if STRONG:
                if not mild:
                    state = state * (half(halves, 0, STATE) * half(halves, 1, STATE))
            async_copy.wait_group(1)
            publish()
            result = warpgroup_mma(
                state_tile, x_tiles[0].permute((1, 0)), gl.zeros([V, C], gl.float32, OUT), use_acc=False,
                is_async=True,
            )  # fmt: skip
            result = warpgroup_mma(v_tile.permute((1, 0)), scores_tile, result, is_async=True)
            state = warpgroup_mma(v_tile.permute((1, 0)), x_tiles[2], state, is_async=True)
            if SAVE:
                at = states + ((number + step) * H + head) * K * V
                write(at, begin * 0, begin * 0 + V, K, state_tile, V, K)
            result = warpgroup_mma_wait(1, deps=[result])
            out_tile.permute((1, 0)).store((result * scale).to(type))
            state = warpgroup_mma_wait(0, deps=[state])
            if not STRONG or mild:
                state = state * half(halves, 1, STATE)
            gl.thread_barrier()
            if step + 1 < chunks:
                fetch(v_tile, v, t + C, end, v_token, V, C, WARPS)
            async_copy.commit_group()
            write(out, t, end, H * V, out_tile, C, V)
            step += 1
        async_copy.wait_group(0)
        if place == count - 1:
            gl.store(finish + own + inside, state)
