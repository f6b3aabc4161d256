"""The emulator of Gluon: right kernels give what torch gives, and each way of breaking them is seen."""

import pytest
import torch

pytest.importorskip("triton.experimental.gluon", reason="Triton is made for Linux alone, Gluon from 3.4 on")

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import async_copy, fence_async_shared, warpgroup_mma

from .gluon_emulator import run
from .gluon_tiles import HazardError

HALF = gl.constexpr(0.5)
RIGHT = dict.fromkeys(("ARRIVE", "FENCE", "BARRIER", "WAIT", "LAST"), True)


@gluon.jit
def add(a, b):
    return a + b


@gluon.jit
def fetch(tile, base, row_stride, live, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    rows = gl.arange(0, ROWS, layout=gl.SliceLayout(1, layout))
    columns = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, layout))
    mask = (rows < live)[:, None] & (columns < COLUMNS)[None, :]
    async_copy.async_copy_global_to_shared(tile, base + rows[:, None] * row_stride + columns[None, :], mask=mask)


@gluon.jit
def matmul_kernel(
    a, b, out, rows, steps, M: gl.constexpr, N: gl.constexpr, K: gl.constexpr,
    ARRIVE: gl.constexpr, FENCE: gl.constexpr, BARRIER: gl.constexpr, WAIT: gl.constexpr, LAST: gl.constexpr,
):  # fmt: skip
    """out (rows, N) = a (rows, steps * K) b (N, steps * K)ᵀ: copies are a step ahead, products a step behind.
    The constants at the end say which of the things that it takes are done."""
    type: gl.constexpr = a.dtype.element_ty
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    a_tiles = gl.allocate_shared_memory(type, [3, M, K], gl.NVMMASharedLayout.get_default_for([M, K], type))
    b_tiles = gl.allocate_shared_memory(type, [3, N, K], gl.NVMMASharedLayout.get_default_for([N, K], type))
    first = gl.program_id(0) * M
    a += first.to(gl.int64) * steps * K
    fetch(a_tiles.index(0), a, steps * K, rows - first, M, K)
    fetch(b_tiles.index(0), b, steps * K, N, N, K)
    async_copy.commit_group()
    acc = gl.zeros([M, N], gl.float32, mma)
    for step in range(steps):
        slot = step % 3
        if ARRIVE:
            async_copy.wait_group(0)
        if FENCE:
            fence_async_shared()
        if BARRIER:
            gl.thread_barrier()
        if step + 1 < steps:
            fetch(a_tiles.index((step + 1) % 3), a + (step + 1) * K, steps * K, rows - first, M, K)
            fetch(b_tiles.index((step + 1) % 3), b + (step + 1) * K, steps * K, N, N, K)
        async_copy.commit_group()
        acc = warpgroup_mma(a_tiles.index(slot), b_tiles.index(slot).permute((1, 0)), acc, is_async=True)
        if WAIT:
            acc = hopper.warpgroup_mma_wait(1, deps=[acc])
    if LAST:
        acc = hopper.warpgroup_mma_wait(0, deps=[acc])
    m = first + gl.arange(0, M, layout=gl.SliceLayout(1, mma))
    n = gl.arange(0, N, layout=gl.SliceLayout(0, mma))
    gl.store(out + m[:, None] * N + n[None, :], acc, mask=(m < rows)[:, None] & (n < N)[None, :])


def multiply(steps=5, fences=True, releases=True, **broken):
    """The kernel's result and the right one, of 24 rows in two programs of 16."""
    torch.manual_seed(0)
    a, b = torch.randn(24, steps * 32).bfloat16(), torch.randn(8, steps * 32).bfloat16()
    out = torch.full((24, 8), torch.nan)
    constants = {"M": 16, "N": 8, "K": 32, **RIGHT, **broken}
    run(matmul_kernel, 2, [a, b, out], [24, steps], constants, fences=fences, releases=releases)
    return out, a.float() @ b.float().T


def test_a_pipelined_product():
    torch.testing.assert_close(*multiply(), rtol=1e-5, atol=1e-4)


def test_copies_that_nothing_waits_for_have_not_arrived():
    assert multiply(ARRIVE=False, fences=False)[0].isnan().all()


@pytest.mark.parametrize(("thing", "message"), [("FENCE", "no fence_async_shared"), ("BARRIER", "no thread_barrier")])
def test_what_makes_a_write_visible_is_required(thing, message):
    with pytest.raises(HazardError, match=message):
        multiply(**{thing: False})
    torch.testing.assert_close(*multiply(**{thing: False}, fences=False, releases=False), rtol=1e-5, atol=1e-4)


def test_an_accumulator_is_not_used_before_its_wait():
    with pytest.raises(HazardError, match="before a warpgroup_mma_wait"):
        multiply(LAST=False)


def test_operands_are_not_overwritten_while_they_are_read():
    with pytest.raises(HazardError, match="overwritten while warpgroup_mma 1"):
        multiply(WAIT=False)


@gluon.jit
def copy_kernel(x, out, live, N: gl.constexpr, COMMIT: gl.constexpr, OUTSTANDING: gl.constexpr, CLASH: gl.constexpr):
    """Copies `live` rows of x (N, N) by way of shared memory, in one group, after which an empty one follows."""
    line: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [4, 1], [1, 0])
    rows = gl.arange(0, N, layout=gl.SliceLayout(1, line))
    at = rows[:, None] * N + gl.arange(0, N, layout=gl.SliceLayout(0, line))[None, :]
    tile = gl.allocate_shared_memory(gl.float32, [N, N], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    async_copy.async_copy_global_to_shared(tile, x + at, mask=(rows < live)[:, None])
    if COMMIT:
        async_copy.commit_group()
        async_copy.commit_group()
    if CLASH:
        tile.slice(0, 1, 1).store(gl.zeros([N, 1], gl.float32, line))
    async_copy.wait_group(OUTSTANDING)
    gl.store(out + at, tile.load(line))


def test_copies_arrive_when_they_are_waited_for():
    x, out = torch.randn(4, 4), torch.zeros(4, 4)
    for commit, outstanding, arrived in ((True, 1, True), (True, 2, False), (False, 0, False)):
        run(copy_kernel, 1, [x, out], [3], {"N": 4, "COMMIT": commit, "OUTSTANDING": outstanding, "CLASH": False})
        if arrived:
            assert torch.equal(out, x * torch.tensor([1, 1, 1, 0])[:, None])
        else:
            assert out.isnan().all()
    with pytest.raises(HazardError, match="copy to it is on its way"):
        run(copy_kernel, 1, [x, out], [3], {"N": 4, "COMMIT": True, "OUTSTANDING": 0, "CLASH": True})


@gluon.jit
def overwrite_kernel(x, out, N: gl.constexpr, BETWEEN: gl.constexpr, AFTER: gl.constexpr):
    """x xᵀ by an asynchronous product, then other values to where x was read from."""
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    n = gl.arange(0, N, layout=gl.SliceLayout(0, mma))
    at = gl.arange(0, N, layout=gl.SliceLayout(1, mma))[:, None] * N + n[None, :]
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([N, N], gl.float16)
    tile = gl.allocate_shared_memory(gl.float16, [N, N], layout, gl.load(x + at))
    fence_async_shared()
    gl.thread_barrier()
    zeros = gl.zeros([N, N], gl.float32, mma)
    acc = warpgroup_mma(tile, tile.permute((1, 0)), zeros, use_acc=False, is_async=True)
    if BETWEEN:
        gl.thread_barrier()
    acc = hopper.warpgroup_mma_wait(0, deps=[acc])
    if AFTER:
        gl.thread_barrier()
    tile.store(acc.to(gl.float16))
    gl.store(out + at, tile.load(mma).to(gl.float32))


@pytest.mark.parametrize("between", [False, True])
def test_other_warps_have_read_what_is_overwritten(between):
    x, out = torch.randn(16, 16).half(), torch.empty(16, 16)
    run(overwrite_kernel, 1, [x, out], [], {"N": 16, "BETWEEN": between, "AFTER": True})
    torch.testing.assert_close(out, (x.float() @ x.float().T).half().float())
    with pytest.raises(HazardError, match="between the wait for warpgroup_mma 1"):
        run(overwrite_kernel, 1, [x, out], [], {"N": 16, "BETWEEN": between, "AFTER": False})
    run(overwrite_kernel, 1, [x, out], [], {"N": 16, "BETWEEN": between, "AFTER": False}, releases=False)


@gluon.jit
def views_kernel(out, N: gl.constexpr, CASE: gl.constexpr):
    """Writes a part of shared memory and reads the whole."""
    line: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [4, 1], [1, 0])
    swizzled: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
    at = (
        gl.arange(0, N, layout=gl.SliceLayout(1, line))[:, None] * N
        + gl.arange(0, N, layout=gl.SliceLayout(0, line))[None, :]
    )
    tiles = gl.allocate_shared_memory(gl.float32, [2, N, N], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    if CASE == "slice":
        half = gl.full([N, N // 2], 1.0, gl.float32, line)
        tiles.index(1).permute((1, 0)).slice(N // 2, N // 2, 1).store(half)
    if CASE == "form":
        tiles._reinterpret(gl.float32, [2, N, N], swizzled).index(1).store(at.to(gl.float32))
    if CASE == "type":
        tiles.index(1).store(at.to(gl.float32))
        tiles._reinterpret(gl.bfloat16, [4 * N, N], swizzled).slice(2 * N, N).store(
            gl.full([N, N], 1, gl.bfloat16, line)
        )
    if CASE == "outside":
        at += tiles.shape[0]
    gl.store(out + at, tiles.index(1).load(line))


@pytest.mark.parametrize(
    ("case", "written"),
    [
        ("none", [False] * 4),
        ("slice", [False, False, True, True]),
        ("form", [False] * 4),
        ("type", [False, False, True, True]),
    ],
)
def test_shared_memory_is_nan_until_written_in_the_form_it_is_read_in(case, written):
    out = torch.zeros(4, 4)
    run(views_kernel, 1, [out], [], {"N": 4, "CASE": case})
    assert out.isfinite().all(1).tolist() == written
    assert out.isfinite().any(1).tolist() == written


def test_global_memory_ends_with_its_storage():
    with pytest.raises(HazardError, match="elements 2 to 17 of a storage of 16"):
        run(views_kernel, 1, [torch.zeros(4, 4)], [], {"N": 4, "CASE": "outside"})


@gluon.jit
def arithmetic_kernel(x, out, count, scale, N: gl.constexpr):
    line: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    i = gl.arange(0, N, layout=line)
    values = gl.load(x + i * 2, mask=i < count, other=-1.0)
    total = gl.associative_scan(values.to(gl.float32), 0, add)
    left = gl.associative_scan(values.to(gl.float32), 0, add, reverse=True)
    whole = gl.sum(values.to(gl.float32), axis=0)
    gl.store(out + i, total)
    gl.store(out + N + i, left - whole * HALF)
    gl.store(out + 2 * N + i, (i - 3) // 2 + (i - 3) % 2 * scale)
    gl.store(out + 3 * N + i, gl.where(i < 2, gl.exp2(i.to(gl.float32)), values + 0.001))
    gl.store(out + 4 * N + i, gl.load(x + i * 2, mask=i < count))
    steps = 0
    while steps * steps < count:
        steps += 1
    for k in gl.static_range(2):
        steps += gl.cdiv(count, 2) * k
    gl.static_assert(N > 4)
    gl.store(out + 5 * N, steps.to(gl.float16))


def test_arithmetic_is_that_of_triton():
    x = torch.arange(16.0).bfloat16()[1:]
    out = torch.full((6, 8), 7.0)
    run(arithmetic_kernel, 1, [x, out], [5, 10.0], {"N": 8})
    values = torch.tensor([1.0, 3, 5, 7, 9, -1, -1, -1])
    assert out[0].tolist() == values.cumsum(0).tolist()
    assert out[1].tolist() == (values.flip(0).cumsum(0).flip(0) - 11).tolist()
    assert out[2].tolist() == [-11.0, -1.0, -10.0, 0.0, 10.0, 1.0, 11.0, 2.0]  # as in C: -3 // 2 = -1, -3 % 2 = -1
    assert out[3].tolist() == [1.0, 2.0, *(values[2:].bfloat16() + 0.001).tolist()]
    assert out[4, :5].tolist() == values[:5].tolist()
    assert out[4, 5:].isnan().all()
    assert out[5].tolist() == [6.0] + [7.0] * 7


@pytest.mark.slow
def test_gluon_compiles_for_hopper():
    pytest.importorskip("triton.backends.nvidia", reason="Triton was built for another maker's GPUs")
    from .hopper_target import compile_for_hopper

    a, b = torch.empty(64, 256, dtype=torch.bfloat16), torch.empty(128, 256, dtype=torch.bfloat16)
    constants = {"M": 64, "N": 128, "K": 64, **RIGHT}
    built = compile_for_hopper(matmul_kernel, [a, b, torch.empty(64, 128)], [64, 4], constants, warps=4)
    assert (built.stack, built.products) == (0, 4)
    assert built.shared == 3 * (64 + 128) * 64 * 2
