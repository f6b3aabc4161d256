"""Per-channel log decays on Hopper: their sums as exact products, inputs scaled by them, the scores of a chunk.

The names are those of hopper_channel.py.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

from linscale.ops.decay_attention.kernels.hopper_common import (
    BETWEEN,
    FLOOR,
    LOG2E,
    MILD,
    anew,
    cut,
    finished,
    publish,
    split,
)


@gluon.jit
def mask(masks, number, layout: gl.constexpr, C: gl.constexpr):
    """0/1 matrix `number` of ../masks.py, (C, C), as a left operand for products laid out as `layout`.

    Read, not computed: where entries are constants, ptxas (CUDA 12.8, 13.0) puts them in their registers after the
    product has read those.
    """
    operand: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
    r = gl.arange(0, C, layout=gl.SliceLayout(1, operand))[:, None]
    c = gl.arange(0, C, layout=gl.SliceLayout(0, operand))[None, :]
    return gl.load(masks + number * (C * C) + (r * C + c))


@gluon.jit
def from_middle(masks, level, t, g_tiles, layout: gl.constexpr, C: gl.constexpr, K: gl.constexpr, PARTS: gl.constexpr):
    """s for blocks of C / 2^level rows (C, K): log2 of the decay from the middle of its block, positive before it."""
    between = sums(mask(masks, BETWEEN + level, layout, C), g_tiles, layout, C, K, PARTS)
    rows = anew(gl.arange(0, C, layout=gl.SliceLayout(1, layout)), t)
    return gl.where(((rows & (C >> (level + 1))) != 0)[:, None], between, -between)


@gluon.jit
def sums(matrix, g_tiles, layout: gl.constexpr, C: gl.constexpr, K: gl.constexpr, PARTS: gl.constexpr):
    """matrix · log decays, log2 (C, K): exact up to float32 sums."""
    total = warpgroup_mma(matrix, g_tiles.index(0), gl.zeros([C, K], gl.float32, layout), use_acc=False, is_async=True)
    if PARTS > 1:
        total = warpgroup_mma(matrix, g_tiles.index(1), total, is_async=True)
    return finished(total, matrix) * LOG2E


@gluon.jit
def take_decays(g_tile, g_tiles, halves, layout: gl.constexpr, C: gl.constexpr, PARTS: gl.constexpr):
    """Log decays of a chunk, floored, into g_tiles as PARTS bf16 numbers; the decay up to the middle and behind it into
    halves (2, K): registers would be too dear. Returns log2 of the strongest decay of a half."""
    K: gl.constexpr = g_tile.shape[1]
    g = gl.maximum(g_tile.load(layout).to(gl.float32), FLOOR)
    gl.thread_barrier()
    if PARTS == 1:
        g_tiles.index(0).store(g.to(gl.bfloat16))
    else:
        high, low = cut(g)
        g_tiles.index(0).store(high)
        g_tiles.index(1).store(low)
    # A thread adds up half a channel.
    columns: gl.constexpr = gl.BlockedLayout([C // 2, 1], [1, 32], [2, gl.num_warps() // 2], [1, 0])
    g = g_tiles.index(0).load(columns).to(gl.float32)
    if PARTS > 1:
        g += g_tiles.index(1).load(columns).to(gl.float32)
    total = gl.sum(gl.reshape(g, [2, C // 2, K]), axis=1) * LOG2E
    halves.store(gl.exp2(total))
    return gl.min(gl.min(total, axis=1), axis=0)


@gluon.jit
def half(halves, number: gl.constexpr, layout: gl.constexpr):
    """The decay over half a chunk, (1, K)."""
    return halves.slice(number, 1, dim=0).load(layout)


@gluon.jit
def largest(x):
    return gl.max(gl.max(gl.abs(x), axis=1), axis=0)


@gluon.jit
def four(type: gl.constexpr, M: gl.constexpr, N: gl.constexpr, layout: gl.constexpr):
    """Four tiles (M, N) in shared memory, by themselves: between stores into one, Triton puts barriers."""
    first = gl.allocate_shared_memory(type, [M, N], layout)
    second = gl.allocate_shared_memory(type, [M, N], layout)
    third = gl.allocate_shared_memory(type, [M, N], layout)
    fourth = gl.allocate_shared_memory(type, [M, N], layout)
    return first, second, third, fourth


@gluon.jit
def scale_both(q_tile, k_tile, x_tiles, s, layout: gl.constexpr):
    """q~ and k~ into x_tiles 0 to 3: two bf16 numbers each."""
    high, low = split(q_tile.load(layout).to(gl.float32) * gl.exp2(s))
    x_tiles[0].store(high)
    x_tiles[1].store(low)
    high, low = split(k_tile.load(layout).to(gl.float32) * gl.exp2(-s))
    x_tiles[2].store(high)
    x_tiles[3].store(low)


@gluon.jit
def fine(a, a_rest, b, b_rest, total):
    """total + (a + a_rest)(b + b_rest), not waited for."""
    total = warpgroup_mma(a, b, total, is_async=True)
    total = warpgroup_mma(a, b_rest, total, is_async=True)
    return warpgroup_mma(a_rest, b, total, is_async=True)


@gluon.jit
def half_scaled(q_tile, k_tile, x_tiles, s, block, layout: gl.constexpr, C: gl.constexpr):
    """Rows of the later half of each block as q · 2^s, of the earlier as k · 2^-s, none larger than its input, into
    x_tiles 0 and 1. Returns the factors."""
    rows = gl.arange(0, C, layout=gl.SliceLayout(1, layout))
    later = ((rows // (block // 2)) % 2 == 1)[:, None]
    factor = gl.exp2(-gl.abs(s))
    x = gl.where(later, q_tile.load(layout).to(gl.float32), k_tile.load(layout).to(gl.float32)) * factor
    high, low = split(x)
    x_tiles[0].store(high)
    x_tiles[1].store(low)
    return factor


@gluon.jit
def strong_scores(
    q_tile, k_tile, g_tiles, x_tiles, scores, s, masks, t,
    LAYOUT: gl.constexpr, SCORES: gl.constexpr, C: gl.constexpr, K: gl.constexpr, PARTS: gl.constexpr,
):  # fmt: skip
    """scoresᵀ (of k, of q) of a chunk by halves, and the level of their blocks at the end, C / 2^level rows; q~ and k~
    of those blocks are in x_tiles."""
    j = gl.arange(0, C, layout=gl.SliceLayout(1, SCORES))[:, None]
    i = gl.arange(0, C, layout=gl.SliceLayout(0, SCORES))[None, :]
    level = gl.to_tensor(0)
    strongest = 2 * MILD
    while strongest > MILD:
        block = C >> level
        half_scaled(q_tile, k_tile, x_tiles, s, block, LAYOUT, C)
        publish()
        x, rest = x_tiles[0], x_tiles[1]
        pairs = fine(x, rest, x.permute((1, 0)), rest.permute((1, 0)), gl.zeros([C, C], gl.float32, SCORES))
        pairs = warpgroup_mma_wait(0, deps=[pairs])
        gl.thread_barrier()
        half = block // 2
        across = (i // block == j // block) & (i // half > j // half)
        scores = gl.where(across, pairs, scores)
        level += 1
        s = from_middle(masks, level, t, g_tiles, LAYOUT, C, K, PARTS)
        strongest = largest(s)
    scale_both(q_tile, k_tile, x_tiles, s, LAYOUT)
    publish()
    pairs = fine(
        x_tiles[2], x_tiles[3], x_tiles[0].permute((1, 0)), x_tiles[1].permute((1, 0)),
        gl.zeros([C, C], gl.float32, SCORES),
    )  # fmt: skip
    pairs = warpgroup_mma_wait(0, deps=[pairs])
    gl.thread_barrier()
    block = C >> level
    scores = gl.where((i // block == j // block) & (i >= j), pairs, scores)
    return scores, s, level
