"""Layers against their definitions: rotations, TPE, softmax attention as a walk through a book."""

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from linscale.layers import LRPE, SRMSNorm, ToeplitzEncoding, going_through_a_book
from linscale.models import CONFIGS, build_model
from linscale.ops import angles, linear_scan


def test_lrpe_scores_depend_on_distance_alone_as_a_sum_of_cosines():
    torch.manual_seed(0)
    lrpe = LRPE(2, 4).double()
    q, k = torch.randn(2, 1, 9, 2, 4, dtype=torch.float64)
    scores = []
    for shift in (0, 1000):
        rotated_q, rotated_k = lrpe(q, k, torch.arange(shift, shift + 9)[None])
        scores.append(torch.einsum("bthk,bshk->bhts", rotated_q, rotated_k))
    distance = torch.arange(9)[:, None] - torch.arange(9)
    cosines = (distance[..., None, None] * lrpe.theta).cos()  # (T, S, H, K)
    expected = torch.einsum("bthk,bshk,tshk->bhts", q, k, cosines)
    torch.testing.assert_close(scores[0], expected)
    torch.testing.assert_close(scores[1], expected)


def test_angles_keep_their_precision_at_a_million_tokens():
    frequency = torch.tensor([0.731], dtype=torch.float32)
    cos, _ = angles(torch.tensor([[1_000_003]]), frequency, torch.float32)
    exact = torch.cos(torch.tensor(1_000_003, dtype=torch.float64) * frequency.double())
    assert abs(float(cos) - float(exact)) < 1e-6


@pytest.mark.parametrize("length", [1, 7, 32, 50, 97])
def test_tpe_equals_its_recurrence(length):
    torch.manual_seed(0)
    tpe = ToeplitzEncoding(6, 4).double()
    tpe.reset_parameters(0.5, torch.Generator().manual_seed(1))
    x, state = torch.randn(2, length, 6, dtype=torch.float64), torch.randn(2, 6, 4, dtype=torch.float64)
    rate = tpe.log_rate.exp().view(1, 1, 1, -1)
    h, last = linear_scan(x[..., None].expand(-1, -1, -1, 4), rate, state=state, backend="reference")
    y, final = tpe(x, state, None)
    torch.testing.assert_close(y, (h * tpe.weight).sum(-1))
    torch.testing.assert_close(final, last)


def test_tpe_packed_equals_separate_and_starts_with_unit_weight():
    tpe = ToeplitzEncoding(6, 4).double()
    tpe.reset_parameters(0.5, torch.Generator().manual_seed(1))
    torch.testing.assert_close(tpe.weight.sum(1), torch.ones(6, dtype=torch.float64))
    x, state = torch.randn(1, 60, 6, dtype=torch.float64), torch.randn(3, 6, 4, dtype=torch.float64)
    y, final = tpe(x, state, torch.tensor([0, 1, 40, 60]))
    for document, (start, end) in enumerate(((0, 1), (1, 40), (40, 60))):
        alone, last = tpe(x[:, start:end], state[document : document + 1], None)
        torch.testing.assert_close(y[:, start:end], alone)
        torch.testing.assert_close(final[document], last[0])


def test_going_through_a_book_is_causal_softmax_attention():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 30, 3, 8, dtype=torch.float64) * 4
    expected = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True).transpose(1, 2)
    torch.testing.assert_close(going_through_a_book(q, k, v), expected, rtol=0, atol=1e-10)


def test_srms_norm_computes_in_float32():
    x = torch.full((1, 4), 300.0, dtype=torch.bfloat16)
    torch.testing.assert_close(SRMSNorm(4, 1e-6)(x), torch.ones(1, 4, dtype=torch.bfloat16))


@pytest.mark.parametrize("lengths", [(5, 3, 5), (1, 9, 2), (40, 1, 20, 1, 70)])
def test_packed_softmax_attention_is_the_same_however_documents_are_put_together(lengths, monkeypatch):
    torch.manual_seed(0)
    config = CONFIGS["llama"](vocab_size=50, d_model=16, n_layers=2, head_dim=8, d_ff=16, init_std=0.3)
    model = build_model(config).double()
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    more_bounds = torch.tensor([0, *(1 + 7 * n % 40 for n in lengths)]).cumsum(0)
    text, more = (torch.randint(50, (1, int(each[-1]))) for each in (bounds, more_bounds))

    def outputs(together):
        if together is not None:
            monkeypatch.setattr("linscale.layers.rows.together", together)
        first = model(text, cu_seqlens=bounds)
        second = model(more, state=first.state, cu_seqlens=more_bounds)
        grads = torch.autograd.grad(second.logits.square().sum(), list(model.parameters()))
        return first.logits, second.logits, *(x for state in second.state.layers for x in state), *grads

    alone = outputs(lambda lengths, starts: np.arange(len(lengths))[::-1])
    monkeypatch.undo()
    for other in (None, lambda lengths, starts: np.zeros(len(lengths))):
        for one, same in zip(alone, outputs(other), strict=True):
            torch.testing.assert_close(one, same, rtol=0, atol=1e-10)
