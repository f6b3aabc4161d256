"""The divergence from a teacher's logits that never exist whole, against torch's own on logits that do."""

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from linscale.ops import distillation
from linscale.ops.distillation import Teacher, linear_divergence

TOKENS, VOCABULARY = (2, 7), 37


@pytest.fixture
def given():
    """x, weight, teacher, targets of which some do not count, what reaches each loss."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    targets = torch.randint(VOCABULARY, TOKENS, generator=generator)
    targets[0, 3] = targets[1, 0] = -100
    teacher = Teacher(draw(*TOKENS, 8), draw(VOCABULARY, 8))
    x, weight = draw(*TOKENS, 5).requires_grad_(), draw(VOCABULARY, 5).requires_grad_()
    return x, weight, teacher, targets, draw(*TOKENS)


def whole(x, weight, teacher, targets, text_weight):
    """The definition, on all logits."""
    logits, theirs = x @ weight.mT, teacher.x @ teacher.weight.mT
    divergence = kl_div(logits.log_softmax(-1), theirs.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    text = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    return torch.where(targets >= 0, divergence, 0.0) + text_weight * text


@pytest.mark.parametrize("text_weight", [0.0, 0.7])
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("block", [1, 3, 100])
def test_it_is_torchs_and_so_are_its_gradients(given, text_weight, kept, block, monkeypatch):
    x, weight, teacher, targets, dloss = given
    monkeypatch.setattr(distillation, "BLOCK_BYTES", 2 * 8 * VOCABULARY * block)
    if not kept:
        monkeypatch.setattr(distillation, "KEPT_BYTES", 0)
    found = linear_divergence(x, weight, teacher, targets, text_weight)
    expected = whole(x, weight, teacher, targets, text_weight)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    pairs = (torch.autograd.grad(loss, (x, weight), dloss) for loss in (found, expected))
    for own, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-11, atol=1e-12)


def test_only_a_block_of_logits_exists(given, monkeypatch):
    """Of 14 tokens 3 at a time, twice: without gradients nothing of the vocabulary's width is kept."""
    x, weight, teacher, targets, _ = given
    monkeypatch.setattr(distillation, "BLOCK_BYTES", 2 * 8 * VOCABULARY * 3)
    sizes = []
    logits = distillation._logits
    monkeypatch.setattr(distillation, "_logits", lambda x, *others: sizes.append(len(x)) or logits(x, *others))
    linear_divergence(x, weight, teacher, targets)
    assert sizes == [3, 3, 3, 3, 2]


def test_a_model_is_no_distance_from_itself(given):
    x, weight, _, targets, _ = given
    loss = linear_divergence(x, weight, Teacher(x.detach(), weight.detach()), targets)
    assert loss.abs().max() < 1e-15
    gradients = torch.autograd.grad(loss.sum(), (x, weight))
    assert all(gradient.abs().max() < 1e-14 for gradient in gradients)


def test_under_autocast_products_are_in_bfloat16(given):
    x, weight, teacher, targets, _ = given
    expected = whole(x, weight, teacher, targets, 0.0)
    half = Teacher(teacher.x.bfloat16(), teacher.weight.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_divergence(x.float(), weight.float(), half, targets)
    assert found.dtype == torch.float32
    assert 1e-4 < (found - expected).norm() / expected.norm() < 3e-2
