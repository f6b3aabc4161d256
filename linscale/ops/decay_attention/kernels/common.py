"""What the kernels share: where a piece of the sequence lies, and sums of log decays as exact matrix products.

A sequence (a row of the batch, or one packed document) is cut into stretches of SPAN tokens: chunks, or segments of
many chunks. Stretches of all sequences are numbered through; those of packed documents are found in a table.

Constants of a kernel, by name everywhere:
    KIND      decay: NONE, HEAD, TOKEN or CHANNEL
    PACKED    cu_seqlens is given
    REVERSE   time runs backwards: gradients of what a state feeds
    DOT       dtype of the operands of matrix products
    PRECISION input_precision of products of float32 operands
"""

import triton
import triton.language as tl

from linscale.ops.backend import interpreting

NONE = tl.constexpr(0)
HEAD = tl.constexpr(1)
TOKEN = tl.constexpr(2)
CHANNEL = tl.constexpr(3)

LOG2E = tl.constexpr(1.4426950408889634)
FLOOR = tl.constexpr(-80.0)  # one step's log decay counts for this at most: exp(-80) = 2e-35, see scores.py
MILD = tl.constexpr(86.0)  # log2: factors down to 2^-86 and their inverses are far from where float32 and bf16 end
# Triton's interpreter cannot multiply bf16 matrices: there, the same bf16 numbers are multiplied as float32.
BF16 = tl.constexpr(tl.float32 if interpreting() else tl.bfloat16)


@triton.jit
def locate(stretch, cu, document_of, first_of, T, per_row, SPAN, PACKED: tl.constexpr):
    """Where stretch number `stretch` lies: (document, row, begin, end, place, count).

    document    index of its sequence, negative if there is no such stretch
    row         row of the batch (0 when packed);  begin, end: its tokens in that row; all int64
    place       0 for the first stretch of its sequence;  count: stretches of its sequence
    """
    if PACKED:
        document = tl.load(document_of + stretch).to(tl.int64)
        row = document * 0
        begin = row
        end = row
        place = stretch
        count = stretch
        if document >= 0:
            first = tl.load(first_of + document)
            place = stretch - first
            count = tl.load(first_of + document + 1) - first
            begin = tl.load(cu + document).to(tl.int64) + place.to(tl.int64) * SPAN
            end = tl.minimum(begin + SPAN, tl.load(cu + document + 1).to(tl.int64))
    else:
        document = tl.cast(stretch // per_row, tl.int64)
        row = document
        place = stretch % per_row
        count = per_row
        begin = tl.cast(place, tl.int64) * SPAN
        end = tl.minimum(begin + SPAN, tl.cast(T, tl.int64))
    return document, row, begin, end, place, count


@triton.jit
def borders_of(document, row, place, count, segment_of, per_segment, PACKED: tl.constexpr):
    """(number of the border before a chunk's segment, that segment opens its sequence, it closes it). The border behind
    has the next number. place, count: of the chunk, as `locate` gives them; per_segment: chunks."""
    own = place // per_segment
    if PACKED:
        segment = tl.load(segment_of + document) + own
    else:
        segment = tl.cast(row, tl.int32) * tl.cdiv(count, per_segment) + own
    return segment - document - 1, own == 0, own == (count - 1) // per_segment


@triton.jit
def tile(base, begin, rows, columns, stride):
    """Pointers (rows, columns) into a tensor whose tokens are `stride` apart, from token `begin` (int64) on."""
    return base + begin * stride + rows[:, None] * stride + columns[None, :]


@triton.jit
def table(masks, number, rows):
    """0/1 matrix `number` of ../masks.py, (C, C), BF16. Read, not computed: masks kept in registers crowd them."""
    size: tl.constexpr = rows.shape[0]
    return tl.load(masks + number * (size * size) + rows[:, None] * size + rows[None, :])


@triton.jit
def exact_sums(zeros_and_ones, x, PARTS: tl.constexpr):
    """A 0/1 matrix (BF16) times float32 x on the matrix units: exact up to float32 sums if x is PARTS bf16 numbers."""
    high = x.to(tl.bfloat16)
    total = tl.dot(zeros_and_ones, high.to(BF16))
    if PARTS > 1:
        rest = x - high.to(tl.float32)
        high = rest.to(tl.bfloat16)
        total = tl.dot(zeros_and_ones, high.to(BF16), total)
        if PARTS > 2:
            total = tl.dot(zeros_and_ones, (rest - high.to(tl.float32)).to(tl.bfloat16).to(BF16), total)
    return total


@triton.jit
def await_earlier():
    """On Hopper: from here on, what earlier kernels wrote is there. A kernel launched to begin before they have ended
    (`early` of a Launch) reads nothing of theirs before, writes nothing, and does not end before."""
    tl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def let_next_begin():
    """On Hopper: a kernel that is launched to begin early may, as soon as there is room."""
    tl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def split(x, DOT: tl.constexpr):
    """float32 x as two operands: its leading digits, and the rest where DOT cannot hold them all in one."""
    high = x.to(DOT)
    return high, (x - high.to(tl.float32)).to(DOT)


@triton.jit
def fine_product(a, a_rest, b, b_rest, total, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """total + (a + a_rest)(b + b_rest) of operands from `split`, to about 16 binary digits if they are bf16."""
    total = tl.dot(a, b, total, input_precision=PRECISION)
    if tl.bfloat16 == DOT:
        total = tl.dot(a, b_rest, total)
        total = tl.dot(a_rest, b, total)
    return total


@triton.jit
def product(a, b, b_rest, total, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """total + a (b + b_rest), where a is an input, exact in DOT, and b comes from `split`."""
    total = tl.dot(a, b, total, input_precision=PRECISION)
    if tl.bfloat16 == DOT:
        total = tl.dot(a, b_rest, total)
    return total


@triton.jit
def pack(x, type):
    """x (rows, columns) to be stored as `type`, and log2 of a scale for each row. float16 holds 11 binary digits, three
    more than bf16; what it lacks in range the rows' scales give, down to 2^-100: the inverse of a scale is finite, and
    log2 sees no subnormal number, which some devices take for 0."""
    if type == tl.float16:
        scale = tl.floor(tl.log2(tl.maximum(tl.max(tl.abs(x), axis=1), 2.0**-100)))
        return (x * tl.exp2(-scale)[:, None]).to(type), scale
    return x.to(type), tl.zeros((x.shape[0],), dtype=tl.float32)


@triton.jit
def chunk_decays(g, begin, rows, count, stride, KIND: tl.constexpr):
    """log2 of one head's decay over parts of a chunk, for HEAD and TOKEN: (past (C,), future (C,), total).

    past    over the steps up to each row and with it;  future: over those behind it, summed by itself: a difference
            of large sums would round away what matters
    g       pointer to the head's decay: one number (HEAD), or one a token, `stride` apart (TOKEN)
    count   tokens of the chunk that exist; the others decay nothing
    """
    if KIND == HEAD:
        step = tl.maximum(tl.load(g).to(tl.float32), FLOOR) * LOG2E
        past = step * tl.minimum(rows + 1, count).to(tl.float32)
        future = step * tl.maximum(tl.minimum(rows.shape[0], count) - 1 - rows, 0).to(tl.float32)
        total = step * tl.minimum(rows.shape[0], count).to(tl.float32)
    else:
        steps = tl.load(g + (begin + rows) * stride, mask=rows < count, other=0.0).to(tl.float32)
        steps = tl.maximum(steps, FLOOR) * LOG2E
        behind = (rows + 1 < rows.shape[0]) & (rows + 1 < count)
        later = tl.load(g + (begin + rows + 1) * stride, mask=behind, other=0.0).to(tl.float32)
        past = tl.cumsum(steps, axis=0)
        future = tl.cumsum(tl.maximum(later, FLOOR) * LOG2E, axis=0, reverse=True)
        total = tl.sum(steps, axis=0)
    return past, future, total
