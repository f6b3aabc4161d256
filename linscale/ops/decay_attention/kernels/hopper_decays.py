"""Per-channel log decays on Hopper: their sums as exact products, inputs scaled by them, the scores of a chunk.

The names are those of hopper_channel.py.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

from linscale.ops.decay_attention.kernels.hopper_common import FLOOR, LOG2E, MILD, cut, finished, publish, split


@gluon.jit
def middle(i, block):
    """The step that row i's block is measured from: the last of its first half."""
    return i // block * block + gl.maximum(block // 2, 1) - 1


@gluon.jit
def from_middle(block, layout: gl.constexpr, C: gl.constexpr):
    """(C, C), the matrix that takes log decays to s for blocks of `block` rows."""
    i = gl.arange(0, C, layout=gl.SliceLayout(1, layout))[:, None]
    t = gl.arange(0, C, layout=gl.SliceLayout(0, layout))[None, :]
    m = middle(i, block)
    between = gl.where((t > m) & (t <= i), 1.0, 0.0) - gl.where((t > i) & (t <= m), 1.0, 0.0)
    return between.to(gl.bfloat16)


@gluon.jit
def steps_up_to(layout: gl.constexpr, C: gl.constexpr, BEHIND: gl.constexpr):
    """(C, C), the matrix that takes log decays to their sums up to and with each row, or over the rows behind it."""
    operand: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
    i = gl.arange(0, C, layout=gl.SliceLayout(1, operand))[:, None]
    t = gl.arange(0, C, layout=gl.SliceLayout(0, operand))[None, :]
    return gl.where(t > i if BEHIND else t <= i, 1.0, 0.0).to(gl.bfloat16)


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
def scale_both(q_tile, k_tile, x_tiles, s, layout: gl.constexpr):
    """q~ and k~ into x_tiles 0 to 3: two bf16 numbers each."""
    high, low = split(q_tile.load(layout).to(gl.float32) * gl.exp2(s))
    x_tiles.index(0).store(high)
    x_tiles.index(1).store(low)
    high, low = split(k_tile.load(layout).to(gl.float32) * gl.exp2(-s))
    x_tiles.index(2).store(high)
    x_tiles.index(3).store(low)


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
    x_tiles.index(0).store(high)
    x_tiles.index(1).store(low)
    return factor


@gluon.jit
def strong_scores(
    q_tile, k_tile, g_tiles, x_tiles, scores, s,
    LAYOUT: gl.constexpr, SCORES: gl.constexpr, C: gl.constexpr, K: gl.constexpr, PARTS: gl.constexpr,
):  # fmt: skip
    """scoresᵀ (of k, of q) of a chunk by halves, and the size of the blocks at the end; q~ and k~ of those blocks are in
    x_tiles."""
    j = gl.arange(0, C, layout=gl.SliceLayout(1, SCORES))[:, None]
    i = gl.arange(0, C, layout=gl.SliceLayout(0, SCORES))[None, :]
    block = gl.to_tensor(C)
    strongest = 2 * MILD
    while (strongest > MILD) & (block > 1):
        half_scaled(q_tile, k_tile, x_tiles, s, block, LAYOUT, C)
        publish()
        x, rest = x_tiles.index(0), x_tiles.index(1)
        pairs = fine(x, rest, x.permute((1, 0)), rest.permute((1, 0)), gl.zeros([C, C], gl.float32, SCORES))
        pairs = warpgroup_mma_wait(0, deps=[pairs])
        gl.thread_barrier()
        half = block // 2
        across = (i // block == j // block) & (i // half > j // half)
        scores = gl.where(across, pairs, scores)
        block = half
        s = sums(from_middle(block, gl.DotOperandLayout(0, LAYOUT, 2), C), g_tiles, LAYOUT, C, K, PARTS)
        strongest = largest(s)
    scale_both(q_tile, k_tile, x_tiles, s, LAYOUT)
    publish()
    pairs = fine(
        x_tiles.index(2), x_tiles.index(3), x_tiles.index(0).permute((1, 0)), x_tiles.index(1).permute((1, 0)),
        gl.zeros([C, C], gl.float32, SCORES),
    )  # fmt: skip
    pairs = warpgroup_mma_wait(0, deps=[pairs])
    gl.thread_barrier()
    scores = gl.where((i // block == j // block) & (i >= j), pairs, scores)
    return scores, s, block
