"""Products of a loop, whose weights get their gradients at its end: against autograd, which takes them step by step."""

import pytest
import torch
from torch.nn.functional import linear

from linscale.layers import Products, products


def loop(product, x, steps=5):
    """A recurrence through two products that everything of it depends on."""
    state, outputs = torch.zeros_like(x[:, 0]), []
    for t in range(steps):
        inner = product(0, x[:, t] + state).tanh()
        state = product(1, inner)
        outputs.append(state)
    return torch.stack(outputs, 1)


def weights(*trained):
    generator = torch.Generator().manual_seed(1)
    shapes = [(7, 4), (4, 7)]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) / 2 for shape in shapes]
    return [weight.requires_grad_(which) for weight, which in zip(made, trained, strict=True)]


@pytest.mark.parametrize("rows", [1, 4, 1 << 15])  # summed in every step, on the way, at the end
def test_gradients_are_those_of_the_steps(rows, monkeypatch):
    monkeypatch.setattr(products, "ROWS", rows)
    x = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    own = weights(True, True)
    expected = loop(lambda which, z: linear(z, own[which]), x)
    gradients = torch.autograd.grad(expected.square().sum(), [x, *own])
    kept = Products(own, torch.float64)
    for again in range(2):  # the sums begin anew
        found = loop(kept, kept.enter(x))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        inputs = own if again else [x, *own]  # the loop's inputs need no gradient of their own
        torch.testing.assert_close(
            torch.autograd.grad(found.square().sum(), inputs), gradients[again:], rtol=1e-12, atol=1e-12
        )


def test_frozen_weights_and_no_gradients_at_all():
    x = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, other = weights(False, True)
    kept = Products([one, other], torch.float64)
    loop(kept, kept.enter(x)).sum().backward()
    assert one.grad is None
    assert other.grad is not None
    with torch.no_grad():
        assert not loop(kept, kept.enter(x)).requires_grad


def test_many_small_gradients_are_not_lost_in_bf16():
    """512 steps each give 1 to a sum that bf16 would end at 256."""
    weight = torch.ones(1, 1, requires_grad=True)
    kept = Products([weight], torch.bfloat16)
    x = kept.enter(torch.ones(512, 1, dtype=torch.bfloat16, requires_grad=True))
    sum(kept(0, part) for part in x.split(1)).float().backward()
    assert weight.grad.item() == 512


def test_a_pass_that_does_not_reach_the_weights_leaves_nothing_behind():
    """What enters on the way needs no gradients of weights; those of a whole pass later count nothing twice."""
    x = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    own, gain = weights(True, True), torch.ones((), dtype=torch.float64, requires_grad=True)
    kept = Products(own, torch.float64)
    found = loop(lambda which, z: gain * kept(which, z), kept.enter(x)).square().sum()
    expected = torch.autograd.grad(found, own, retain_graph=True)
    torch.autograd.grad(found, gain, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(found, own, retain_graph=True), expected, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="leave create_graph out"):
        torch.autograd.grad(found, own, create_graph=True)
