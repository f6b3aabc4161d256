"""The states of hopper_channel.py by themselves: at the borders of segments, and their gradients at every chunk."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, warpgroup_mma, warpgroup_mma_wait

from linscale.ops.decay_attention.kernels.hopper_common import (
    BEHIND,
    MILD,
    UP_TO,
    chunk_number,
    fetch,
    locate,
    publish,
    state_offsets,
    write,
)
from linscale.ops.decay_attention.kernels.hopper_decays import half, mask, sums, take_decays


@gluon.jit(do_not_specialize=["T", "per_row", "span"])
def hopper_channel_states_kernel(
    b, c, g, borders, weights, start, finish, states, gradients, through, masks, cu, document_of, first_of, first_chunk,
    b_row, b_token, b_head, c_row, c_token, c_head, g_row, g_token, g_head, T, per_row, span, scale,
    H: gl.constexpr, K: gl.constexpr, V: gl.constexpr, C: gl.constexpr, PACKED: gl.constexpr,
    REVERSE: gl.constexpr, EVERY_CHUNK: gl.constexpr, SEGMENTED: gl.constexpr, HAS_START: gl.constexpr,
    HAS_FINISH: gl.constexpr, PARTS: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """States (V, K) of one (segment, head), forward from k and v, or their gradients over scale, back from q and do.

    EVERY_CHUNK, in reverse only: R1 of every chunk (R of strong ones) into gradients (chunks, H, V, K), bf16, and into
    through (chunks, H, K) what passes through it, from `states`, which the output left; from the states in `borders`.
    Otherwise: what each segment adds to the next into `borders`, and log2 of the decay over it into weights (segments,
    H, K), for join_kernel.
    """
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, WARPS // 4], [16, K * 4 // WARPS, 16])
    STATE: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [V // 16, WARPS * 16 // V], [16, K * V // (16 * WARPS), 16])
    type: gl.constexpr = gl.bfloat16
    SHARED_K: gl.constexpr = gl.NVMMASharedLayout.get_default_for([C, K], type)
    SHARED_V: gl.constexpr = gl.NVMMASharedLayout.get_default_for([C, V], type)
    SHARED_S: gl.constexpr = gl.NVMMASharedLayout.get_default_for([V, K], type)
    SHARED_G: gl.constexpr = gl.NVMMASharedLayout.get_default_for([C, K], g.dtype.element_ty)
    program = gl.program_id(0)
    head = program % H
    segment = program // H
    document, row, begin, end, place, count = locate(segment, cu, document_of, first_of, T, per_row, span, PACKED)
    opening = place == (count - 1 if REVERSE else 0)
    closing = place == (0 if REVERSE else count - 1)
    wanted = document >= 0
    if not EVERY_CHUNK:
        wanted = wanted & (not closing)
    if wanted:
        head_at = head.to(gl.int64)
        b += row * b_row + head_at * b_head
        c += row * c_row + head_at * c_head
        g += row * g_row + head_at * g_head
        number = chunk_number(first_chunk, document, row, place, span, T, C, PACKED)
        b_tiles = gl.allocate_shared_memory(type, [2, C, K], SHARED_K)
        c_tiles = gl.allocate_shared_memory(type, [2, C, V], SHARED_V)
        raw_tiles = gl.allocate_shared_memory(g.dtype.element_ty, [2, C, K], SHARED_G)
        x_tile = gl.allocate_shared_memory(type, [C, K], SHARED_K)
        halves = gl.allocate_shared_memory(gl.float32, [2, K], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
        if EVERY_CHUNK:
            state_tile = gl.allocate_shared_memory(type, [V, K], SHARED_S)
            out_tile = gl.allocate_shared_memory(type, [V, K], SHARED_S)
        inside = state_offsets(0, STATE, K, V, V, False)
        own = (document * H + head) * K * V
        state = gl.zeros([V, K], gl.float32, STATE)
        if HAS_START:
            if opening:
                state = gl.load(start + own + inside)
        if SEGMENTED:
            if not opening:
                border = segment - document - (0 if REVERSE else 1)
                state = gl.load(borders + (border * H + head) * K * V + inside)
        if REVERSE:
            state = state / scale
        fade = gl.full([1, K], 1.0, gl.float32, STATE)
        over = mask(masks, UP_TO if REVERSE else BEHIND, LAYOUT, C)
        chunks = ((end - begin + (C - 1)) // C).to(gl.int32)
        t = begin + (chunks - 1 if REVERSE else 0) * C
        fetch(b_tiles.index(0), b, t, end, b_token, K, C, WARPS)
        fetch(c_tiles.index(0), c, t, end, c_token, V, C, WARPS)
        fetch(raw_tiles.index(0), g, t, end, g_token, K, C, WARPS)
        async_copy.commit_group()
        for step in range(chunks):
            slot = step % 2
            chunk = chunks - 1 - step if REVERSE else step
            async_copy.wait_group(0)
            gl.thread_barrier()
            at = (number + chunk) * H + head
            if EVERY_CHUNK:
                fetch(state_tile, states + at * K * V, begin * 0, begin * 0 + V, K, K, V, WARPS)
            async_copy.commit_group()
            if step + 1 < chunks:
                t = begin + (chunks - 2 - step if REVERSE else step + 1) * C
                fetch(b_tiles.index(1 - slot), b, t, end, b_token, K, C, WARPS)
                fetch(c_tiles.index(1 - slot), c, t, end, c_token, V, C, WARPS)
                fetch(raw_tiles.index(1 - slot), g, t, end, g_token, K, C, WARPS)
            async_copy.commit_group()
            g_tiles = raw_tiles.index(slot)._reinterpret(type, [PARTS, C, K], SHARED_K)
            strongest = take_decays(raw_tiles.index(slot), g_tiles, halves, LAYOUT, C, PARTS)
            publish()
            exponent = sums(over, g_tiles, LAYOUT, C, K, PARTS)
            x_tile.store((b_tiles.index(slot).load(LAYOUT).to(gl.float32) * gl.exp2(exponent)).to(type))
            publish()
            late = half(halves, 1, STATE)
            if EVERY_CHUNK:
                if strongest < -MILD:
                    late = gl.full([1, K], 1.0, gl.float32, STATE)
                shown = state * late
                out_tile.store(shown.to(type))
                async_copy.wait_group(1)
                gl.thread_barrier()
                met = gl.sum(state_tile.load(STATE).to(gl.float32) * shown, axis=0)
                if strongest < -MILD:
                    total = half(halves, 0, STATE) * half(halves, 1, STATE)
                    met = met * gl.sum(total, axis=0)
                wide = gl.arange(0, K, layout=gl.SliceLayout(0, STATE))
                gl.store(through + at * K + wide, met)
                write(gradients + at * K * V, begin * 0, begin * 0 + V, K, out_tile, V, K)
            total = half(halves, 0, STATE) * half(halves, 1, STATE)
            fade = fade * total
            state = state * total
            state = warpgroup_mma(c_tiles.index(slot).permute((1, 0)), x_tile, state, is_async=True)
            state = warpgroup_mma_wait(0, deps=[state])
        async_copy.wait_group(0)
        if REVERSE:
            state = state * scale
        if EVERY_CHUNK:
            if HAS_FINISH:
                if closing:
                    gl.store(finish + own + inside, state)
        else:
            border = segment - document - (1 if REVERSE else 0)
            gl.store(borders + (border * H + head) * K * V + inside, state)
            wide = gl.arange(0, K, layout=gl.SliceLayout(0, STATE))[None, :]
            gl.store(weights + (segment.to(gl.int64) * H + head) * K + wide, gl.log2(fade))
