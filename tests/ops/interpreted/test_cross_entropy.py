"""The kernel of `linear_cross_entropy` against torch."""

import pytest
import torch


@pytest.mark.parametrize("vocabulary", [1, 50, 4096, 9001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows(vocabulary, dtype, device):
    from linscale.ops.cross_entropy.kernel import softmax_rows

    generator = torch.Generator().manual_seed(0)
    spread = (3 * torch.randn(5, vocabulary + 3, generator=generator)).to(device, dtype)
    logits = spread[:, :vocabulary]
    logits[1, vocabulary // 2 :] += 80
    logits[2, 1:] = -float("inf")
    targets = torch.tensor([vocabulary - 1, 0, 0, -100, vocabulary // 2], device=device)
    wide = logits.double()
    places = targets.clamp(min=0)[:, None]
    expected = (wide.logsumexp(1, keepdim=True) - wide.gather(1, places))[:, 0] * (targets >= 0)
    rows = (wide.softmax(1) - torch.zeros_like(wide).scatter(1, places, 1.0)) * (targets >= 0)[:, None]
    before = spread.clone()
    torch.testing.assert_close(softmax_rows(logits, targets, False).double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(spread, before)
    torch.testing.assert_close(softmax_rows(logits, targets, True).double(), expected, rtol=1e-5, atol=1e-5)
    error = 1e-5 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(logits.double(), rows, rtol=error, atol=error if vocabulary > 1 else 1e-5)
    assert torch.equal(spread[:, vocabulary:], before[:, vocabulary:])
