"""The kernels of a decoding step against plain PyTorch, for every kind of layer, number of rows and odd width."""

import itertools

import numpy as np
import pytest
import torch

from linscale.generate.packing import pack
from linscale.generate.reading import Part, Reading
from linscale.generate.step import DecodingStep
from linscale.models import CONFIGS, build_model
from linscale.ops.backend import interpreting
from linscale.ops.decode import Mix, Projection, kernel, plain
from tests.linear_mixers import STEPPED, linearized

EPS = 1e-6


def close(found, expected, tolerance=2e-5):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(1, 32, 48), (1, 72, 21), (2, 32, 48), (17, 72, 21), (130, 72, 21)]
)
def test_projections(rows, inputs, outputs, device):
    torch.manual_seed(0)
    x, residual = torch.randn(rows, inputs, device=device), torch.randn(rows, outputs, device=device)
    squares = torch.rand(rows, 3, device=device) * inputs
    weight = torch.randn(2 * outputs, inputs, device=device) / inputs**0.5
    for part, extra in (
        (Projection(weight[:outputs]), {"residual": residual}),
        (Projection(weight[:outputs], normed=True), {}),
        (Projection(weight[:outputs], normed=True, silu_until=outputs // 2), {}),
        (Projection(weight[:outputs]), {"residual": residual, "squares": squares}),
        (Projection(weight, normed=True, paired=True), {}),
        (Projection(weight, paired=True, activation=True), {}),
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
            squares = torch.zeros(rows, heads * kernel.slices(width, rows, lrpe=False), device=device)
            ops.mix(projected, part, own, positions, active, out, squares)
            results.append((own, out[active > 0], squares.sum(1)[active > 0]))
        for found, expected in zip(results[1], results[0], strict=True):
            close(found, expected)
        assert torch.equal(results[1][0][active == 0], state[active == 0])


@pytest.mark.parametrize(("mixer", "rows"), [*((name, 3) for name in STEPPED), ("delta", 1)])
def test_linearized_layers_change_their_states_in_place(mixer, rows, device):
    torch.manual_seed(0)
    model = linearized(STEPPED[mixer], n_layers=1).to(device)
    part = pack(model, torch.float32).layers[0].mixer
    projected = torch.randn(rows, sum(part.widths), device=device)
    shape = rows, part.n_heads, part.key_width + part.tail_rows, part.columns
    state = torch.rand(shape, device=device)  # of sums too, by which is divided
    positions = torch.tensor([1_000_003, 5, 0], device=device)[:rows]
    active = torch.tensor([1, 0, 1], dtype=torch.int32, device=device)[:rows]
    results = []
    for ops in (plain, kernel):
        own, read, out = state.clone(), projected.clone(), torch.zeros(rows, 64, device=device)
        for _ in range(2):  # the second reads what the first has left of its inputs
            if part.filters is not None:
                ops.convolve(read, part, own, active)
            ops.linear_mix(read, part, own, positions, active, out)
            own += 0.0  # waits, as what begins a step does: states are read before earlier kernels have ended
        results.append((own, read, out))
    for found, expected in zip(results[1], results[0], strict=True):
        close(found, expected)
    rest = active == 0
    assert torch.equal(results[1][0][rest], state[rest])
    assert torch.equal(results[1][1][rest], projected[rest])


@pytest.mark.parametrize("mixer", ["delta", "supra", "averages"])
def test_linearized_layers_read_bf16_as_they_read_its_numbers_in_float32(mixer, device):
    torch.manual_seed(0)
    model = linearized(STEPPED[mixer], n_layers=1).to(device)
    part = pack(model, torch.bfloat16).layers[0].mixer
    projected = torch.randn(2, sum(part.widths), device=device).bfloat16()
    state = torch.rand(2, part.n_heads, part.key_width + part.tail_rows, part.columns, device=device)
    active, positions = torch.ones(2, dtype=torch.int32, device=device), torch.tensor([3, 9], device=device)
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        own, read = state.clone(), projected.to(dtype, copy=True)
        out = torch.zeros(2, 64, device=device, dtype=dtype)
        if part.filters is not None:
            kernel.convolve(read, part, own, active)
        kernel.linear_mix(read, part, own, positions, active, out)
        results.append((own, out.float()))
    for found, expected in zip(*results, strict=True):  # what convolutions give is rounded to bf16, and what is read
        assert (found - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize("groups", [2, 1])
def test_caches_are_appended_to_and_attended(groups, device):
    torch.manual_seed(0)
    rows, heads, width, capacity = 3, 2, 16, 2200  # 18 blocks, more than are put together at once
    frequencies = torch.rand(width // 2, device=device, dtype=torch.float64)
    projected = torch.randn(2, rows, (heads + 2 * groups) * width, device=device)
    caches = torch.randn(2, rows, capacity, groups, width, device=device)
    active = torch.tensor([1, 0, 1], dtype=torch.int32, device=device)
    results = []
    for ops in (plain, kernel):
        keys, values = caches.clone()
        positions = torch.tensor([127, 40, 2198], device=device)
        out = torch.zeros(2, rows, heads * width, device=device)
        extra = () if ops is plain else (kernel.attend_scratch(out[0], keys),)
        for step in range(2):
            ops.attend(projected[step], keys, values, positions + step, active, frequencies, out[step], *extra)
        results.append((keys, values, out))
    for found, expected in zip(results[1], results[0], strict=True):
        close(found, expected)


STATES = list(itertools.product(["tnl", "hgrn2", "cosformer2"], [torch.float32, torch.bfloat16]))


@pytest.mark.parametrize(("kind", "state_dtype"), STATES[::2] + STATES[3:4] if interpreting() else STATES)
def test_a_prompt_read_in_rows_leaves_the_state_of_its_steps(kind, state_dtype, device):
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "d_model": 32, "n_layers": 2, "head_dim": 16, "d_ff": 32, "init_std": 0.3}
    model = build_model(CONFIGS[kind](**shape)).to(device)
    steps, rows = (DecodingStep(model, 3, 1, dtype=torch.float32, state_dtype=state_dtype) for _ in range(2))
    texts = [np.random.default_rng(slot).integers(0, 50, length) for slot, length in enumerate((9, 4, 5))]
    for at in range(9):
        for slot, text in enumerate(texts):
            steps.active[slot] = int(at < len(text))
            steps.tokens[slot] = int(text[min(at, len(text) - 1)])
        steps.run()
    reading = Reading(rows, 10)
    for room in rows.states:
        room[0].fill_(7.0)  # a text that was there before
    rows.positions.fill_(3)
    for parts in (
        [Part(0, texts[0][:3], True), Part(2, texts[2], True)],
        [Part(1, texts[1][:1], True), Part(0, texts[0][3:], False)],
        [Part(1, texts[1][1:], False)],
    ):
        reading.give(parts)
        reading.run()
    assert rows.positions.tolist() == [9, 4, 5]
    for found, expected in zip(rows.states, steps.states, strict=True):
        close(found[0].float(), expected[0].float(), 2e-2 if state_dtype == torch.bfloat16 else 2e-5)
    if kind == "cosformer2":
        close(rows.encoder_state, steps.encoder_state)
