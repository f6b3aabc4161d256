"""Attention inside windows: the kernels against PyTorch's own, forward and backward, and what dropout does."""

import pytest
import torch

from linscale.layers.rope import rope_frequencies
from linscale.ops import angles
from linscale.ops.window_attention import plain, window_attention

from .test_decay_attention import compiled


def problem(shape, device, dtype=torch.float32, turned=True):
    """qkv, turns and the gradient of o for shape (B, M, H, K)."""
    batch, tokens, heads, width = shape
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(batch, tokens, 3 * heads * width, generator=generator)
    do = torch.randn(batch, tokens, heads * width, generator=generator)
    frequencies = rope_frequencies(width, 10_000.0, None, torch.device("cpu"))
    turns = torch.stack(angles(torch.arange(tokens), frequencies, torch.float32)) if turned else None
    qkv, do = (x.to(device, dtype) for x in (qkv, do))
    return qkv.requires_grad_(), None if turns is None else turns.to(device), do


# Windows of two tokens share a tile; lengths and widths that fill none; more windows than tiles.
@pytest.mark.parametrize("shape", [(19, 2, 2, 16), (3, 24, 1, 20), (2, 32, 3, 64), (1, 1, 2, 8), (5, 5, 2, 32)])
@pytest.mark.parametrize("turned", [True, False])
def test_kernels_give_what_attention_gives(shape, turned, device):
    qkv, turns, do = problem(shape, device, turned=turned)
    found = window_attention(qkv, shape[2], turns, backend="triton")
    expected = plain(qkv, shape[2], turns)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    (dqkv,), (wanted,) = (torch.autograd.grad(o, qkv, do) for o in (found, expected))
    torch.testing.assert_close(dqkv, wanted, rtol=1e-4, atol=1e-5)


@compiled
@pytest.mark.parametrize("shape", [(128, 64, 6, 64), (8, 128, 8, 128), (128, 2, 6, 64)])
def test_in_bf16(shape, device):
    qkv, turns, do = problem(shape, device, torch.bfloat16)
    found = window_attention(qkv, shape[2], turns, backend="triton")
    exact = qkv.detach().float().requires_grad_()
    expected = plain(exact, shape[2], turns)
    assert (found - expected).norm() < 5e-3 * expected.norm()
    (dqkv,), (wanted,) = torch.autograd.grad(found, qkv, do), torch.autograd.grad(expected, exact, do.float())
    assert (dqkv - wanted).norm() < 1e-2 * wanted.norm()


def test_dropout(device):
    """Values that say which weights came through: each window's o is its rows of weights, dropped out."""
    batch, tokens = 24, 16
    qkv, _, _ = problem((batch, tokens, 1, 16), device, turned=False)
    with torch.no_grad():
        qkv[..., :32] = 0  # weights of row i are 1 / (i + 1)
        qkv[..., 32:] = torch.eye(tokens, device=device)
    seeds = torch.tensor([3, 4], device=device)
    found = window_attention(qkv, 1, None, dropout=0.25, seed=seeds[:1], backend="triton")
    assert torch.equal(found, window_attention(qkv, 1, None, dropout=0.25, seed=seeds[:1], backend="triton"))
    assert not torch.equal(found, window_attention(qkv, 1, None, dropout=0.25, seed=seeds[1:], backend="triton"))
    rows = torch.arange(1, tokens + 1, device=device)[:, None]
    shares = (found * rows).tril()  # 0 or 4 / 3
    possible = torch.tril(torch.ones(batch, tokens, tokens, device=device)).bool()
    torch.testing.assert_close(shares[shares > 0], torch.full_like(shares[shares > 0], 4 / 3))
    assert abs(float((shares[possible] > 0).float().mean()) - 0.75) < 0.03  # of 3,264 weights: three errors are 0.023
    assert not torch.equal(shares[0], shares[1])
    # Gradients drop what the forward pass dropped: dv of a constant do is the sum of a column of weights.
    (dqkv,) = torch.autograd.grad(found.sum(), qkv)
    torch.testing.assert_close(dqkv[..., 32], found.sum(1), rtol=1e-5, atol=1e-5)


def test_what_the_kernels_do_not_take(device):
    qkv, turns, _ = problem((1, 130, 1, 8), device)
    with pytest.raises(ValueError, match="windows of 130 tokens: the kernels take up to 128"):
        window_attention(qkv, 1, turns, backend="triton")
    assert window_attention(qkv, 1, turns).shape == (1, 130, 8)
    with pytest.raises(ValueError, match="seed = None"):
        window_attention(qkv[:, :8], 1, turns[:, :8], dropout=0.1, backend="triton")
