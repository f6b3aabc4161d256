"""Head and cross-entropy in blocks against the plain computation."""

import importlib

import torch
from torch.nn.functional import cross_entropy

from linscale.ops import linear_cross_entropy

module = importlib.import_module("linscale.ops.cross_entropy")


def test_blocks_equal_one_piece_with_gradients(monkeypatch):
    torch.manual_seed(0)
    x = torch.randn(2, 9, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(11, (2, 9))
    targets[0, 3] = -100
    plain = cross_entropy((x @ weight.mT).flatten(0, 1), targets.flatten(), reduction="none").view(2, 9)
    expected = torch.autograd.grad((plain * plain.detach()).sum(), (x, weight))
    for block in (1 << 25, 11 * 4):  # one piece, and pieces of four tokens
        monkeypatch.setattr(module, "BLOCK_LOGITS", block)
        loss = linear_cross_entropy(x, weight, targets)
        torch.testing.assert_close(loss, plain)
        assert loss[0, 3] == 0
        for got, want in zip(torch.autograd.grad((loss * plain.detach()).sum(), (x, weight)), expected, strict=True):
            torch.testing.assert_close(got, want)
