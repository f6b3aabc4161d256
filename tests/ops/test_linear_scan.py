"""`linear_scan` against its definition, with all gradients, packed and in a closed form."""

import pytest
import torch

from linscale.ops import linear_scan

CU_SEQLENS = torch.tensor([0, 3, 4, 17], dtype=torch.int32)


def gradients(x, decay, state, **options):
    h, final = linear_scan(x, decay, state=state, **options)
    weights = [torch.linspace(-1, 2, y.numel(), dtype=y.dtype).cos().view_as(y) for y in (h, final)]
    total = (h * weights[0]).sum() + (final * weights[1]).sum()
    return [h, final, *torch.autograd.grad(total, (x, decay, state))]


@pytest.mark.parametrize("decay_shape", [(2, 17, 4, 3), (1, 1, 4, 1), (2, 17, 1, 1), (1, 17, 4, 3)])
def test_scan_equals_reference(decay_shape):
    torch.manual_seed(0)
    x = torch.randn(2, 17, 4, 3, dtype=torch.float64, requires_grad=True)
    decay = torch.rand(decay_shape, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    for fast, exact in zip(gradients(x, decay, state), gradients(x, decay, state, backend="reference"), strict=True):
        torch.testing.assert_close(fast, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["chunk", "reference"])
def test_packed_documents_equal_separate_ones(backend):
    torch.manual_seed(1)
    x, decay = torch.randn(1, 17, 3, dtype=torch.float64), torch.rand(1, 17, 3, dtype=torch.float64)
    state = torch.randn(3, 3, dtype=torch.float64)
    h, final = linear_scan(x, decay, state=state, cu_seqlens=CU_SEQLENS, backend=backend)
    for document, (start, end) in enumerate(zip(CU_SEQLENS[:-1].tolist(), CU_SEQLENS[1:].tolist(), strict=True)):
        alone, last = linear_scan(x[:, start:end], decay[:, start:end], state=state[document : document + 1])
        torch.testing.assert_close(h[:, start:end], alone)
        torch.testing.assert_close(final[document], last[0])


def test_constant_decay_is_a_geometric_sum():
    h, final = linear_scan(torch.ones(1, 50, 1), torch.full((1, 1, 1), 0.5))
    torch.testing.assert_close(h[0, :, 0], 2 - 0.5 ** torch.arange(50.0))
    torch.testing.assert_close(final, h[:, -1])


@pytest.mark.parametrize("backend", ["chunk", "reference"])
def test_low_precision_is_summed_in_float32(backend):
    """In bfloat16 256 + 1 is 256."""
    h, final = linear_scan(torch.ones(1, 1000, 1, dtype=torch.bfloat16), torch.ones(1, 1, 1), backend=backend)
    assert h.dtype == torch.bfloat16
    assert float(h[0, -1, 0]) == float(final) == 1000


def test_no_tokens_leave_the_state_and_a_final_state_holds_no_history():
    state = torch.randn(2, 3)
    h, final = linear_scan(torch.ones(2, 0, 3), torch.ones(1, 1, 3), state=state)
    assert h.shape == (2, 0, 3)
    assert torch.equal(final, state)
    _, final = linear_scan(torch.ones(2, 500, 3), torch.ones(1, 1, 3), state=state)
    assert final.untyped_storage().nbytes() == final.nbytes


def test_bad_shapes_are_named():
    for shape in [(2,), (2, 5, 2), (1, 4, 2), (1, 5, 3)]:
        with pytest.raises(ValueError, match=r"expected \(1, 5, 2\) or 1 in place of any"):
            linear_scan(torch.ones(1, 5, 2), torch.ones(shape))
    with pytest.raises(ValueError, match="state is"):
        linear_scan(torch.ones(1, 5, 2), torch.ones(1, 1, 2), state=torch.ones(2))
