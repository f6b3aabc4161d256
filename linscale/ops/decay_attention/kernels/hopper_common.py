"""What the Hopper kernels share. They are written in Gluon, which leaves layouts, copies and barriers to their author.

Inputs are copied to shared memory while earlier chunks are worked on (`fetch`), and multiplied from there. Whatever a
warpgroup reads there must be published first; what it reads from registers is named where its product is waited for, or
the compiler would put other things in its place.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from linscale.ops.decay_attention.kernels import common

FLOOR = gl.constexpr(common.FLOOR.value)
LOG2E = gl.constexpr(common.LOG2E.value)
MILD = gl.constexpr(common.MILD.value)
NONE = gl.constexpr(common.NONE.value)
HEAD = gl.constexpr(common.HEAD.value)
TOKEN = gl.constexpr(common.TOKEN.value)
locate = gluon.jit(common.locate.fn)
await_earlier = gluon.jit(common.await_earlier.fn)
let_next_begin = gluon.jit(common.let_next_begin.fn)
# Numbers of matrices in ../masks.py.
UP_TO = gl.constexpr(0)
BEHIND = gl.constexpr(1)
ONWARDS = gl.constexpr(2)
BEFORE = gl.constexpr(3)
BETWEEN = gl.constexpr(4)


@gluon.jit
def add(x, y):
    return x + y


@gluon.jit
def anew(value, t):
    """`value`, in a form of which a compiler cannot know that it is the same in every chunk (t >= 0: its first token):
    what is made of it is made again, where otherwise it would be kept in registers through the loop."""
    return gl.where(t < 0, value + 1, value)


@gluon.jit
def fetch(buffer, base, t, end, stride, WIDTH: gl.constexpr, C: gl.constexpr, WARPS: gl.constexpr):
    """Start to copy tokens t .. t + C of one head, (C, WIDTH), into shared memory; zeros past `end`."""
    many: gl.constexpr = 128 // buffer.dtype.primitive_bitwidth  # entries in the 16 bytes that a thread copies
    across: gl.constexpr = WIDTH // many if 32 * many > WIDTH else 32
    layout: gl.constexpr = gl.BlockedLayout([1, many], [32 // across, across], [WARPS, 1], [1, 0])
    rows = gl.arange(0, C, layout=gl.SliceLayout(1, layout))
    columns = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, layout))
    live = (rows < end - t)[:, None] & (columns < WIDTH)[None, :]
    rows = rows + gl.where(t < 0, 1, 0)  # which it never is: so offsets are made anew, not kept in registers
    async_copy.async_copy_global_to_shared(
        buffer, base + t * stride + (rows[:, None] * stride + columns[None, :]), mask=live
    )


@gluon.jit
def chunk_number(first_chunk, document, row, place, span, T, C: gl.constexpr, PACKED: gl.constexpr):
    """Of the first chunk of a segment, among all of the call; places as `locate` has them."""
    first = row * ((T + C - 1) // C)
    if PACKED:
        first = gl.load(first_chunk + document).to(gl.int64)
    return first + place * (span // C)


@gluon.jit
def publish():
    """What was stored in shared memory can from here on be read by warpgroups."""
    fence_async_shared()
    gl.thread_barrier()


@gluon.jit
def write(out, t, end, stride, tile, C: gl.constexpr, WIDTH: gl.constexpr):
    """A tile (C, WIDTH) from shared memory to the tokens from t on."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // WIDTH, WIDTH // 8], [gl.num_warps(), 1], [1, 0])
    rows = gl.arange(0, C, layout=gl.SliceLayout(1, layout))
    columns = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, layout))
    live = (rows < end - t)[:, None] & (columns < WIDTH)[None, :]
    rows = anew(rows, t)
    gl.store(out + t * stride + (rows[:, None] * stride + columns[None, :]), tile.load(layout), mask=live)


@gluon.jit
def put(out, t, end, stride, x):
    """x (C, WIDTH) to the tokens from t on, from where it is."""
    rows = gl.arange(0, x.shape[0], layout=gl.SliceLayout(1, x.type.layout))
    columns = gl.arange(0, x.shape[1], layout=gl.SliceLayout(0, x.type.layout))
    live = (rows < end - t)[:, None] & (columns < x.shape[1])[None, :]
    rows = anew(rows, t)
    gl.store(out + t * stride + (rows[:, None] * stride + columns[None, :]), x.to(out.dtype.element_ty), mask=live)


@gluon.jit
def state_offsets(part, layout: gl.constexpr, A: gl.constexpr, X: gl.constexpr, BX: gl.constexpr, T: gl.constexpr):
    """Where Sᵀ (BX, A) of slice `part` lies in a state stored (A, X), or (X, A) if T."""
    across = part * BX + gl.arange(0, BX, layout=gl.SliceLayout(1, layout))
    wide = gl.arange(0, A, layout=gl.SliceLayout(0, layout))
    return across[:, None] * (A if T else 1) + wide[None, :] * (1 if T else X)


@gluon.jit
def finished(total, a):
    """`total` once no product is under way. a: a left operand, which in registers must not make way before."""
    if isinstance(a, gl.tensor):
        total, _ = warpgroup_mma_wait(0, deps=[total, a])
        return total
    return warpgroup_mma_wait(0, deps=[total])


@gluon.jit
def product(a, b, layout: gl.constexpr, M: gl.constexpr, N: gl.constexpr):
    """a b, float32 (M, N), now."""
    zero = gl.zeros([M, N], gl.float32, layout)
    return finished(warpgroup_mma(a, b, zero, use_acc=False, is_async=True), a)


@gluon.jit
def split(x):
    """float32 x as two bf16 numbers: itself rounded, by hand because converting one by one is slow, and the rest."""
    high = ((x.to(gl.int32, bitcast=True) + 32768) & -65536).to(gl.float32, bitcast=True)
    return high.to(gl.bfloat16), (x - high).to(gl.bfloat16)


@gluon.jit
def cut(x):
    """As `split`, where the first is never used without the second: it is cut off, not rounded."""
    high = (x.to(gl.int32, bitcast=True) & -65536).to(gl.float32, bitcast=True)
    return high.to(gl.bfloat16), (x - high).to(gl.bfloat16)
