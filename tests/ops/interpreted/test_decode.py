"""The kernels of a decoding step against plain PyTorch, for every kind of layer, number of rows and odd width."""

import pytest
import torch

from linscale.ops.decode import Mix, Projection, kernel, plain

EPS = 1e-6


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("rows", [1, 2, 17, 130])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 48), (72, 21)])
def test_projections(rows, inputs, outputs, device):
    torch.manual_seed(0)
    x, residual = torch.randn(rows, inputs, device=device), torch.randn(rows, outputs, device=device)
    squares = torch.rand(rows, 3, device=device) * inputs
    for part, extra in (
        (Projection(torch.randn(outputs, inputs, device=device)), {"residual": residual}),
        (Projection(torch.randn(outputs, inputs, device=device), normed=True, silu_until=outputs // 2), {}),
        (Projection(torch.randn(outputs, inputs, device=device)), {"residual": residual, "squares": squares}),
        (Projection(torch.randn(2 * outputs, inputs, device=device), normed=True, paired=True), {}),
        (Projection(torch.randn(2 * outputs, inputs, device=device), paired=True, activation=True), {}),
    ):
        found, expected = (torch.full((rows, outputs), torch.nan, device=device) for _ in range(2))
        plain.project(x, part, expected, EPS, **extra)
        kernel.project(x, part, found, EPS, **extra)
        close(found, expected)


def mixes(heads, width, rank, device):
    head = -torch.rand(heads, device=device)
    bounds = torch.rand(heads * width, device=device) * 0.9
    theta = torch.rand(heads, width, device=device)
    gate = torch.randn(heads * width, rank, device=device)
    yield Mix("head", heads, width, head, None, gate)
    yield Mix("head", heads, width, head, theta, gate)
    yield Mix("plain", heads, width, None, theta, gate)
    yield Mix("gated", heads, width, bounds)
    yield Mix("gated", heads, width, None)  # the first layer


@pytest.mark.parametrize("rows", [1, 3])
def test_states_are_mixed_in_place(rows, device):
    torch.manual_seed(0)
    heads, width, rank = 2, 32, 16
    for part in mixes(heads, width, rank, device):
        columns = 3 * heads * width + (rank if part.gate is not None else 0)
        projected = torch.randn(rows, columns, device=device)
        state = torch.randn(rows, heads, part.key_width, width, device=device)
        positions = torch.tensor([1_000_003, 5, 0], device=device)[:rows]  # where float32 angles would be 0.06 off
        active = torch.tensor([1, 0, 1], dtype=torch.int32, device=device)[:rows]
        results = []
        for ops in (plain, kernel):
            own = state.clone()
            out = torch.zeros(rows, heads * width, device=device)
            squares = torch.zeros(rows, heads * kernel.slices(width), device=device)
            ops.mix(projected, part, own, positions, active, out, squares)
            results.append((own, out[active > 0], squares.sum(1)[active > 0]))
        for found, expected in zip(results[1], results[0], strict=True):
            close(found, expected)
        assert torch.equal(results[1][0][active == 0], state[active == 0])


@pytest.mark.parametrize("groups", [4, 2])
def test_caches_are_appended_to_and_attended(groups, device):
    torch.manual_seed(0)
    rows, heads, width, capacity = 4, 4, 16, 1200  # 19 blocks, more than are put together at once
    frequencies = torch.rand(width // 2, device=device, dtype=torch.float64)
    projected = torch.randn(2, rows, (heads + 2 * groups) * width, device=device)
    caches = torch.randn(2, rows, capacity, groups, width, device=device)
    active = torch.tensor([1, 1, 0, 1], dtype=torch.int32, device=device)
    results = []
    for ops in (plain, kernel):
        keys, values = caches.clone()
        positions = torch.tensor([0, 130, 40, 1198], device=device)
        out = torch.zeros(2, rows, heads * width, device=device)
        extra = () if ops is plain else (kernel.attend_scratch(out[0], keys),)
        for step in range(2):
            ops.attend(projected[step], keys, values, positions + step, active, frequencies, out[step], *extra)
        results.append((keys, values, out))
    for found, expected in zip(results[1], results[0], strict=True):
        close(found, expected)
