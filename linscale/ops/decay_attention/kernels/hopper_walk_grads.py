"""dk and dv, and the gradient of a log decay per token, of the walks of hopper_walk.py: both from one state."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from linscale.ops.decay_attention.kernels.hopper_common import (
    HEAD,
    NONE,
    TOKEN,
    add,
    await_earlier,
    fetch,
    locate,
    put,
    state_offsets,
)
from linscale.ops.decay_attention.kernels.hopper_walk import count_steps, head_decay, left, read_steps, sum_steps


@gluon.jit(do_not_specialize=["T", "per_row", "span"])
def hopper_grads_kernel(
    q, k, v, g, do, dk, dv, dg, sums, crossing, behind, dfinal, dstate, cu, document_of, first_of,
    q_row, q_token, q_head, k_row, k_token, k_head, v_row, v_token, v_head, g_row, g_token, g_head,
    do_row, do_token, do_head, T, per_row, span, scale,
    H: gl.constexpr, K: gl.constexpr, V: gl.constexpr, C: gl.constexpr, KIND: gl.constexpr,
    PACKED: gl.constexpr, SEGMENTED: gl.constexpr, DECAY_GRAD: gl.constexpr, HAS_FINAL: gl.constexpr,
    HAS_DSTART: gl.constexpr, STAGES: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """dk and dv of one (segment, head), from its end to its beginning: both need the gradient of the state, R (K, V),
    and the same inputs. With time reversed (walk.py), R <- exp(G_C) R + (exp(G) q)ᵀ do, times scale when stored, and

        dk = scale ((v doᵀ · decay) q + exp(G_C - G) v Rᵀ)        dv = scale ((k qᵀ · decay) do + exp(G_C - G) k R)

    DECAY_GRAD: also dg (B, T, H), from what the walk that gives dq left in `sums` and `crossing`. All paths that cross
    step t end at a step from t on, or behind the segment: dg is the sum of q · dq - k · dk from t on, and `crossing`.
    Of pairs in a chunk both products are the same numbers, and those with a state are taken from two bf16 numbers for
    it: what does not cross t cancels to seven digits, however long the segment. What a step reads from itself crosses
    nothing and is left out: under strong decay it is far larger than all that counts, and so are its last digits. So
    are those of what the final state has from the last step.
    """
    FINE: gl.constexpr = KIND == TOKEN or DECAY_GRAD
    type: gl.constexpr = q.dtype.element_ty
    SHARED_K: gl.constexpr = gl.NVMMASharedLayout.get_default_for([C, K], type)
    SHARED_V: gl.constexpr = gl.NVMMASharedLayout.get_default_for([C, V], type)
    SHARED_C: gl.constexpr = gl.NVMMASharedLayout.get_default_for([C, C], type)
    SHARED_R: gl.constexpr = gl.NVMMASharedLayout.get_default_for([K, V], type)
    R: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, V, 16])
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, WARPS // 4], [16, C * 4 // WARPS, 16])
    OUT_K: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, WARPS // 4], [16, K * 4 // WARPS, 16])
    OUT_V: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, WARPS // 4], [16, V * 4 // WARPS, 16])
    ROWS_K: gl.constexpr = gl.BlockedLayout([1, 8], [256 // K, K // 8], [WARPS, 1], [1, 0])
    ROWS_V: gl.constexpr = gl.BlockedLayout([1, 8], [256 // V, V // 8], [WARPS, 1], [1, 0])
    FADED: gl.constexpr = gl.DotOperandLayout(0, R, 2)

    # By itself the walk that gives dq leaves nothing that is needed here.
    if SEGMENTED or DECAY_GRAD:
        await_earlier()
    program = gl.program_id(0)
    head = program % H
    segment = program // H
    document, row, begin, end, place, count = locate(segment, cu, document_of, first_of, T, per_row, span, PACKED)
    if document >= 0:
        opening = place == count - 1
        closing = place == 0
        head_at = head.to(gl.int64)
        q += row * q_row + head_at * q_head
        k += row * k_row + head_at * k_head
        v += row * v_row + head_at * v_head
        g += row * g_row + head_at * g_head
        do += row * do_row + head_at * do_head
        dk += (row * T * H + head) * K
        dv += (row * T * H + head) * V

        q_tiles = gl.allocate_shared_memory(type, [STAGES, C, K], SHARED_K)
        k_tiles = gl.allocate_shared_memory(type, [STAGES, C, K], SHARED_K)
        v_tiles = gl.allocate_shared_memory(type, [STAGES, C, V], SHARED_V)
        do_tiles = gl.allocate_shared_memory(type, [STAGES, C, V], SHARED_V)
        r_tiles = gl.allocate_shared_memory(type, [2 if FINE else 1, K, V], SHARED_R)
        r_tile = r_tiles.index(0)
        scores_tile = gl.allocate_shared_memory(type, [C, C], SHARED_C)
        dscores_tile = gl.allocate_shared_memory(type, [C, C], SHARED_C)
        line_tiles = gl.allocate_shared_memory(gl.float32, [2, C], gl.SwizzledSharedLayout(1, 1, 1, [0]))

        inside = state_offsets(0, R, V, K, K, True)
        own = (document * H + head) * K * V
        r = gl.zeros([K, V], gl.float32, R)
        if HAS_FINAL:
            if opening:
                r = gl.load(dfinal + own + inside)
        if SEGMENTED:
            if not opening:
                r = gl.load(behind + ((segment - document) * H + head) * K * V + inside)
        r = r / scale

        # scoresᵀ and dscoresᵀ: rows are the steps that were read, columns those that read them.
        read = gl.arange(0, C, layout=gl.SliceLayout(1, SCORES))
        reads = gl.arange(0, C, layout=gl.SliceLayout(0, SCORES))
        later = reads[None, :] - read[:, None]
        causal = later >= 0
        if KIND == HEAD:
            decay = head_decay(g)
            between = gl.where(causal, gl.exp2(gl.where(causal, later, 0).to(gl.float32) * decay), 0.0)

        if DECAY_GRAD:
            crossed = gl.load(crossing + segment.to(gl.int64) * H + head)
            sums += row * T * H + head
            dg += row * T * H + head

        chunks = ((end - begin + (C - 1)) // C).to(gl.int32)
        for ahead in gl.static_range(STAGES - 1):
            if ahead < chunks:
                t = begin + (chunks - 1 - ahead) * C
                fetch(q_tiles.index(ahead), q, t, end, q_token, K, C, WARPS)
                fetch(k_tiles.index(ahead), k, t, end, k_token, K, C, WARPS)
                fetch(v_tiles.index(ahead), v, t, end, v_token, V, C, WARPS)
                fetch(do_tiles.index(ahead), do, t, end, do_token, V, C, WARPS)
            async_copy.commit_group()

        if KIND == TOKEN:
            steps, later_steps = read_steps(g, begin + (chunks - 1) * C, end, g_token, C)
        for step in range(chunks):
            t = begin + (chunks - 1 - step) * C
            slot = step % STAGES
            async_copy.wait_group(STAGES - 2)
            gl.thread_barrier()
            r_tile.store(r.to(type))
            if FINE:
                r_tiles.index(1).store((r - r.to(type).to(gl.float32)).to(type))
            fence_async_shared()
            gl.thread_barrier()
            following = step + (STAGES - 1)
            if following < chunks:
                t_ahead = begin + (chunks - 1 - following) * C
                fetch(q_tiles.index(following % STAGES), q, t_ahead, end, q_token, K, C, WARPS)
                fetch(k_tiles.index(following % STAGES), k, t_ahead, end, k_token, K, C, WARPS)
                fetch(v_tiles.index(following % STAGES), v, t_ahead, end, v_token, V, C, WARPS)
                fetch(do_tiles.index(following % STAGES), do, t_ahead, end, do_token, V, C, WARPS)
            async_copy.commit_group()
            if KIND == HEAD:
                count = gl.minimum(end - t, C).to(gl.int32)
                if step < 2:
                    count_steps(decay, count, line_tiles, C)
                total = decay * count.to(gl.float32)
            elif KIND == TOKEN:
                total = sum_steps(steps, later_steps, line_tiles)
                steps, later_steps = read_steps(g, t - C, end, g_token, C)
            q_tile = q_tiles.index(slot)
            k_tile = k_tiles.index(slot)
            v_tile = v_tiles.index(slot)
            do_tile = do_tiles.index(slot)

            nothing = gl.zeros([C, C], gl.float32, SCORES)
            scores = warpgroup_mma(k_tile, q_tile.permute((1, 0)), nothing, use_acc=False, is_async=True)
            dscores = warpgroup_mma(v_tile, do_tile.permute((1, 0)), nothing, use_acc=False, is_async=True)
            dv_tile = warpgroup_mma(k_tile, r_tile, gl.zeros([C, V], gl.float32, OUT_V), use_acc=False, is_async=True)
            dk_tile = warpgroup_mma(
                v_tile, r_tile.permute((1, 0)), gl.zeros([C, K], gl.float32, OUT_K), use_acc=False, is_async=True
            )
            if KIND == TOKEN:
                past_read = line_tiles.index(0).load(gl.SliceLayout(1, SCORES))
                past_reads = line_tiles.index(0).load(gl.SliceLayout(0, SCORES))
                apart = gl.where(causal, past_reads[None, :] - past_read[:, None], 0.0)
                between = gl.where(causal, gl.exp2(apart), 0.0)
            if FINE:
                rest = r_tiles.index(1)
                dv_tile = warpgroup_mma(k_tile, rest, dv_tile, is_async=True)
                dk_tile = warpgroup_mma(v_tile, rest.permute((1, 0)), dk_tile, is_async=True)
            scores = warpgroup_mma_wait(5 if FINE else 3, deps=[scores])
            scores = gl.where(causal, scores, 0.0) if KIND == NONE else scores * between
            scores_tile.store(scores.to(type))
            dscores = warpgroup_mma_wait(4 if FINE else 2, deps=[dscores])
            if DECAY_GRAD:
                itself = gl.convert_layout(gl.sum(gl.where(later == 0, dscores, 0.0), axis=1), gl.SliceLayout(1, OUT_K))
                dscores = gl.where(later == 0, 0.0, dscores)
            dscores = gl.where(causal, dscores, 0.0) if KIND == NONE else dscores * between
            dscores_tile.store(dscores.to(type))
            fence_async_shared()
            gl.thread_barrier()

            dv_tile = warpgroup_mma_wait(1, deps=[dv_tile])
            if KIND != NONE:
                dv_tile *= left(line_tiles, True, gl.SliceLayout(1, OUT_V), KIND)[:, None]
            dv_tile = warpgroup_mma(scores_tile, do_tile, dv_tile, is_async=True)
            dk_tile = warpgroup_mma_wait(1, deps=[dk_tile])
            if KIND != NONE:
                dk_tile *= left(line_tiles, True, gl.SliceLayout(1, OUT_K), KIND)[:, None]
            dk_tile = warpgroup_mma(dscores_tile, q_tile, dk_tile, is_async=True)

            if KIND == NONE:
                r = warpgroup_mma(q_tile.permute((1, 0)), do_tile, r, is_async=True)
                dv_tile = warpgroup_mma_wait(2, deps=[dv_tile])
            else:
                weight = left(line_tiles, False, gl.SliceLayout(0, FADED), KIND)
                faded = q_tile.permute((1, 0)).load(FADED).to(gl.float32) * weight[None, :]
                leading = faded.to(type)
                r *= gl.exp2(total)
                rest_faded = (faded - leading.to(gl.float32)).to(type)
                r = warpgroup_mma(leading, do_tile, r, is_async=True)
                r = warpgroup_mma(rest_faded, do_tile, r, is_async=True)
                dv_tile = warpgroup_mma_wait(3, deps=[dv_tile])
            put(dv, t, end, H * V, gl.convert_layout((dv_tile * scale).to(type), ROWS_V))
            dk_tile = warpgroup_mma_wait(1 if KIND == NONE else 2, deps=[dk_tile])
            if DECAY_GRAD:
                met_k = gl.sum(dk_tile * scale * k_tile.load(OUT_K).to(gl.float32), axis=1)
                dk_tile += itself[:, None] * q_tile.load(OUT_K).to(gl.float32)
            put(dk, t, end, H * K, gl.convert_layout((dk_tile * scale).to(type), ROWS_K))
            if DECAY_GRAD:
                line: gl.constexpr = gl.BlockedLayout([C // 32], [32], [WARPS], [0])
                token = gl.arange(0, C, layout=line)
                ended = gl.load(sums + (t + token) * H, mask=token < end - t, other=0.0)
                begun = gl.convert_layout(met_k, line)
                if HAS_FINAL:
                    begun = gl.where((t + token == end - 1) & opening, 0.0, begun)
                met = ended - begun
                onwards = gl.associative_scan(met, 0, add, reverse=True) + crossed
                gl.store(dg + (t + token) * H, onwards, mask=token < end - t)
                crossed += gl.sum(met, axis=0)
            if KIND == NONE:
                r = warpgroup_mma_wait(0, deps=[r])
            else:
                r, _, _ = warpgroup_mma_wait(0, deps=[r, leading, rest_faded])
        async_copy.wait_group(0)
        if HAS_DSTART:
            if closing:
                gl.store(dstate + own + inside, r * scale)
    if not (SEGMENTED or DECAY_GRAD):
        await_earlier()
