"""Head and cross-entropy in blocks against the plain computation."""

import importlib

import pytest
import torch
from torch.nn.functional import cross_entropy

from linscale.ops import linear_cross_entropy

module = importlib.import_module("linscale.ops.cross_entropy")


def plain_loss(x, weight, targets):
    return cross_entropy((x @ weight.mT).flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


@pytest.mark.parametrize("kept", [0, 1 << 30])
@pytest.mark.parametrize("block", [1 << 28, 11 * 4 * 8])  # one piece, and pieces of four tokens
def test_blocks_equal_one_piece_with_gradients(monkeypatch, block, kept):
    monkeypatch.setattr(module, "BLOCK_BYTES", block)
    monkeypatch.setattr(module, "KEPT_BYTES", kept)
    torch.manual_seed(0)
    x = torch.randn(2, 9, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(11, (2, 9))
    targets[0, 3] = -100
    plain = plain_loss(x, weight, targets)
    expected = torch.autograd.grad((plain * plain.detach()).sum(), (x, weight))
    loss = linear_cross_entropy(x, weight, targets)
    torch.testing.assert_close(loss, plain)
    assert loss[0, 3] == 0
    for got, want in zip(torch.autograd.grad((loss * plain.detach()).sum(), (x, weight)), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_nothing_as_wide_as_the_vocabulary_is_kept_without_gradients(monkeypatch):
    x, weight, targets = torch.randn(1, 9, 4), torch.randn(11, 4, requires_grad=True), torch.randint(11, (1, 9))
    with torch.no_grad():
        loss, rows = torch.ops.linscale.linear_cross_entropy(x[0], weight, targets[0], False)
    assert rows.shape == (0, 11)
    torch.testing.assert_close(loss[None], plain_loss(x, weight.detach(), targets))


def test_autocast_makes_products_in_bf16_and_sums_in_fp32():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 40, 64, requires_grad=True), torch.randn(300, 64, requires_grad=True)
    targets = torch.randint(300, (2, 40))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(x, weight, targets)
    exact = plain_loss(x, weight, targets)
    assert loss.dtype == torch.float32
    found, expected = (torch.autograd.grad(y.mean(), (x, weight)) for y in (loss, exact))
    for a, b in ((loss, exact), *zip(found, expected, strict=True)):
        assert a.dtype == torch.float32
        assert 0 < (a - b).norm() < 1e-2 * b.norm()


@pytest.mark.slow
def test_the_operator_is_sound_for_the_compiler():
    x, weight = torch.randn(9, 4, requires_grad=True), torch.randn(11, 4, requires_grad=True)
    torch.library.opcheck(torch.ops.linscale.linear_cross_entropy, (x, weight, torch.randint(11, (9,)), True))
