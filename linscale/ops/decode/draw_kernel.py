"""The next token of every row by its own rules, in one kernel: what `generate.choice.choose` computes.

A program has one row, and passes over its V scores: the best; weights floor(2^32 p / p_best), whose sums are exact; for
top-k and top-p the least weight that they let in, by bisection between weights that occur; the place of the draw.
"""

import triton
import triton.language as tl

UNIT = tl.constexpr(4294967296)  # 2^32, the weight of the best
ALL = tl.constexpr(1 << 62)  # as top_k


@triton.jit
def draw_kernel(
    logits, seen, temperature, top_k, top_p, min_p, penalty, seed, step, ends, active, tokens, weights, ring, turns,
    V: tl.constexpr, WIDTH: tl.constexpr, SEEN: tl.constexpr, EOS: tl.constexpr, S: tl.constexpr, RING: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """logits (S, WIDTH) float32, of which the first V count; seen (S, SEEN) bool; weights (S, V) int64 is scratch.

    Writes the row's token into `tokens` (S,) and into ring (RING, S), which the host may read, at the turn of `turns`
    (S,); counts `step` and `turns` up; a row that draws EOS where `ends` (S,) says so is no longer `active`.
    """
    row = tl.program_id(0).to(tl.int64)
    scores = logits + row * WIDTH
    marks = seen + row * SEEN
    own = weights + row * V
    factor = tl.load(penalty + row).to(tl.float32)
    best, token = _best(scores, marks, factor, V, BLOCK)
    heat = tl.load(temperature + row)
    if heat > 0:
        total = _weigh(scores, marks, factor, best, heat, own, V, BLOCK)
        least = tl.full((), 0, tl.int64)
        most = tl.load(top_k + row)
        if most < V:
            least = _least(own, most, least, 0, V, BLOCK)
            total = _sum(own, least, 1, V, BLOCK)
        share = tl.load(top_p + row)
        if share < 1:
            # The least t whose weights from t on have asked: a float64, compared with whole numbers.
            asked = share * total.to(tl.float64)
            goal = asked.to(tl.int64)
            goal += tl.where(goal.to(tl.float64) < asked, 1, 0)
            if goal > 0:
                least = _least(own, goal, least, 1, V, BLOCK)
            if goal <= 0:
                least = tl.full((), UNIT, tl.int64)
        floor = tl.load(min_p + row) * 4294967296.0
        bound = floor.to(tl.int64)
        bound += tl.where(bound.to(tl.float64) < floor, 1, 0)
        least = tl.maximum(least, bound)
        total = _sum(own, least, 1, V, BLOCK)
        noise = _uniform(tl.load(seed + row), tl.load(step + row))
        token = _at(own, least, (noise * total.to(tl.float64)).to(tl.int64), V, BLOCK)
    if SEEN > 0:
        tl.store(marks + token, tl.full((), 1, tl.int1), mask=token < SEEN)
    turn = tl.load(turns + row)
    tl.store(turns + row, turn + 1)
    tl.store(ring + (turn % RING) * S + row, token)
    tl.store(tokens + row, token)
    tl.store(step + row, tl.load(step + row) + 1)
    if (token == EOS) & (tl.load(ends + row) != 0):
        tl.store(active + row, tl.full((), 0, tl.int32))


@triton.jit
def _scores(scores, marks, factor, columns, V: tl.constexpr):
    """Logits with the repetition penalty; -inf beyond V."""
    known = columns < V
    x = tl.load(scores + columns, mask=known, other=float("-inf"))
    if factor != 1:
        marked = tl.load(marks + columns, mask=known, other=0) != 0
        x = tl.where(marked, tl.where(x < 0, x * factor, tl.div_rn(x, factor + tl.zeros_like(x))), x)
    return x


@triton.jit
def _best(scores, marks, factor, V: tl.constexpr, BLOCK: tl.constexpr):
    """The highest score, and the first token that has it."""
    some = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    where = tl.zeros((BLOCK,), tl.int32)
    for first in tl.range(0, V, BLOCK):
        x = _scores(scores, marks, factor, first + some, V)
        better = x > best
        where = tl.where(better, first + some, where)
        best = tl.where(better, x, best)
    top = tl.max(best, axis=0)
    return top, tl.min(tl.where(best == top, where, V), axis=0).to(tl.int64)


@triton.jit
def _weigh(scores, marks, factor, best, heat, own, V: tl.constexpr, BLOCK: tl.constexpr):
    """Write all weights; returns their sum."""
    some = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.int64)
    for first in tl.range(0, V, BLOCK):
        x = _scores(scores, marks, factor, first + some, V).to(tl.float64)
        w = (tl.exp((x - best.to(tl.float64)) / heat) * 4294967296.0).to(tl.int64)
        tl.store(own + first + some, w, mask=first + some < V)
        total += w
    tl.debug_barrier()
    return tl.sum(total, axis=0)


@triton.jit
def _sum(own, least, POWER: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of weights from `least` on, or with POWER 0 their number."""
    some = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.int64)
    for first in tl.range(0, V, BLOCK):
        w = tl.load(own + first + some, mask=first + some < V, other=-1)
        total += tl.where(w >= least, w if POWER == 1 else 1, 0)
    return tl.sum(total, axis=0)


@triton.jit
def _least(own, goal, floor, POWER: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr):
    """The greatest weight t for which those from t on sum up to at least `goal`, in number with POWER 0; `floor` where
    there is none above it. Weights below `floor` do not count."""
    some = tl.arange(0, BLOCK)
    low, high = floor, tl.full((), UNIT, tl.int64)  # t is among them: what is from low on is enough
    while low < high:
        middle = tl.sqrt((low.to(tl.float64) + 1) * high.to(tl.float64)).to(tl.int64)
        middle = tl.minimum(tl.maximum(middle, low + 1), high)
        total = tl.zeros((BLOCK,), tl.int64)
        above = tl.full((BLOCK,), UNIT, tl.int64)
        below = tl.full((BLOCK,), -1, tl.int64)
        for first in tl.range(0, V, BLOCK):
            w = tl.load(own + first + some, mask=first + some < V, other=-1)
            total += tl.where(w >= middle, w if POWER == 1 else 1, 0)
            above = tl.minimum(above, tl.where(w >= middle, w, UNIT))
            below = tl.maximum(below, tl.where(w < middle, w, -1))
        if tl.sum(total, axis=0) >= goal:
            low = tl.min(above, axis=0)
        else:
            high = tl.maximum(tl.max(below, axis=0), low)
    return low


@triton.jit
def _at(own, least, place, V: tl.constexpr, BLOCK: tl.constexpr):
    """The first token at which the sum of weights from `least` on passes `place`."""
    some = tl.arange(0, BLOCK)
    before = tl.zeros((), tl.int64)
    token = tl.full((), V - 1, tl.int64)
    found = tl.full((), 0, tl.int32)
    for first in tl.range(0, V, BLOCK):
        if found == 0:
            w = tl.load(own + first + some, mask=first + some < V, other=-1)
            w = tl.where(w >= least, w, 0)
            w = tl.maximum(w, 0)
            sum_here = tl.sum(w, axis=0)
            if before + sum_here > place:
                passed = tl.cumsum(w, axis=0) + before > place
                token = tl.min(tl.where(passed, first + some, V), axis=0).to(tl.int64)
                found = tl.full((), 1, tl.int32)
            before += sum_here
    return token


@triton.jit
def _uniform(seed, step):
    """See generate/noise.py: float64 in [0, 1)."""
    golden = tl.full((), 0x9E3779B97F4A7C15, tl.uint64)
    start = _mix(seed.to(tl.uint64, bitcast=True) + golden)
    bits = _mix(start + (step.to(tl.uint64, bitcast=True) + 1) * golden)
    return (bits >> 11).to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def _mix(x):
    first = tl.full((), 0xBF58476D1CE4E5B9, tl.uint64)
    second = tl.full((), 0x94D049BB133111EB, tl.uint64)
    x = (x ^ (x >> 30)) * first
    x = (x ^ (x >> 27)) * second
    return x ^ (x >> 31)
