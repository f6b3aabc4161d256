"""The kernel of `linear_divergence` against torch."""

import pytest
import torch
from torch.nn.functional import kl_div


@pytest.mark.parametrize("vocabulary", [1, 50, 9001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.0, 0.7])
def test_rows(vocabulary, dtype, share, device):
    from linscale.ops.distillation.kernel import divergence_rows

    generator = torch.Generator().manual_seed(0)
    spread, given = (3 * torch.randn(2, 5, vocabulary + 3, generator=generator)).to(device, dtype)
    own, given = spread[:, :vocabulary], given[:, 1 : vocabulary + 1]
    own[1, vocabulary // 2 :] += 80
    given[2, 1:] = -float("inf")  # sure of one token
    given[4] = own[4]
    targets = torch.tensor([vocabulary - 1, 0, 0, -100, vocabulary // 2], device=device)
    wide = own.double().requires_grad_()
    logs = wide.log_softmax(1)
    expected = kl_div(logs, given.double().log_softmax(1).exp(), reduction="none").nan_to_num(0.0).sum(1)
    expected = (expected - share * logs.gather(1, targets.clamp(min=0)[:, None])[:, 0]) * (targets >= 0)
    (rows,) = torch.autograd.grad(expected.sum(), wide)
    before, theirs = spread.clone(), given.clone()
    for write in (False, True):
        found = divergence_rows(own, given, targets, share, write).double()
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=2e-5)
        assert write or torch.equal(spread, before)
    error = 1e-5 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(own.double(), rows, rtol=error, atol=error)
    assert torch.equal(spread[:, vocabulary:], before[:, vocabulary:])
    assert torch.equal(given, theirs)
