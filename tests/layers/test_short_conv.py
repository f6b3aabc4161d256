"""The short convolution against a loop over tokens, and what it leaves in a layer's state."""

import itertools

import pytest
import torch
from torch.autograd import gradcheck

from linscale.layers import Context
from linscale.layers.short_conv import ShortConv, convolved, with_tails
from linscale.models import LinearizedConfig, LinearMixer, build_model
from linscale.ops.pieces import Piece

CUTS = [0, 2, 3, 9, 10]  # documents shorter than the taps, and longer


def conv_of(channels=3, taps=4, seed=0):
    conv = ShortConv(channels, taps).double()
    with torch.no_grad():
        conv.weight.copy_(random(channels, taps, seed=seed))
    return conv


def random(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def context(cuts=None, piece=None):
    cu_seqlens = None if cuts is None else torch.tensor(cuts)
    return Context(torch.zeros(1), torch.zeros(1, 1), cu_seqlens, None, piece)


def walked(conv, x, tail=None):
    """One document (T, C), token by token."""
    channels, taps = conv.weight.shape
    seen = [*(torch.zeros(taps - 1, channels, dtype=x.dtype) if tail is None else tail), *x]
    y = [sum(conv.weight[:, j] * seen[t + j] for j in range(taps)) for t in range(len(x))]
    return torch.stack(y), torch.stack(seen[len(x) :])


@pytest.mark.parametrize("taps", [2, 4, 8])
@pytest.mark.parametrize("packed", [False, True])
def test_it_is_a_loop_over_the_tokens_of_each_document(taps, packed):
    convs, cuts = [conv_of(3, taps), conv_of(2, taps, seed=5)], CUTS if packed else None
    x = random(1, 10, 3) if packed else random(2, 10, 3)
    state, tails = None, [None] * 4
    for piece in (x, 2 * x, x[:, :1] if not packed else -x):  # what one leaves behind is before the next
        outputs, memory, found = convolved(convs, [piece, piece[..., :2]], state, 5, context(cuts))
        spans = [(0, slice(a, b)) for a, b in itertools.pairwise(CUTS)] if packed else [(0, ...), (1, ...)]
        for n, (row, span) in enumerate(spans):
            alone, left = walked(convs[0], piece[row, span], tails[n])
            torch.testing.assert_close(outputs[0][row, span], alone, rtol=0, atol=1e-14)
            assert torch.equal(found[0][n], left)
            tails[n] = left
        assert outputs[1].shape == (*piece.shape[:2], 2)
        assert memory is None if state is None else torch.equal(memory, state[:, :, :5])
        state = with_tails(random(len(spans), 2, 5, 7), found)
        assert state.shape == (len(spans), 2, 5 + -(-(taps - 1) * 5 // 14), 7)


@pytest.mark.parametrize("cuts", [None, CUTS])
def test_gradients_reach_inputs_filters_and_what_came_before(cuts):
    def run(x, weight, state):
        conv = conv_of(2)
        del conv.weight
        conv.weight = weight  # a tensor, for gradcheck to see
        (y,), memory, tails = convolved([conv], [x], state, 1, context(cuts))
        return y, with_tails(memory, tails)

    documents = 1 if cuts is None else len(cuts) - 1
    inputs = random(1, 10, 2), random(2, 4, seed=2), random(documents, 2, 3, 2, seed=3)
    assert gradcheck(run, [x.requires_grad_() for x in inputs])


def test_inputs_in_bf16_come_out_of_a_state_to_the_bit():
    conv, x = ShortConv(6, 3), random(2, 7, 6).bfloat16()
    conv.reset()
    y, tail = conv(x, None)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, x)  # it begins as the identity
    state = with_tails(torch.zeros(2, 2, 4, 5), [tail])
    _, _, (again,) = convolved([conv], [x[:, :0]], state, 4, context())
    assert state.dtype == torch.float32
    assert torch.equal(again.bfloat16(), x[:, -2:])


def test_a_piece_of_a_sequence_is_refused_and_decoding_is_the_forward_pass_to_the_bit():
    config = LinearizedConfig(
        vocab_size=20, d_model=32, n_layers=1, head_dim=8, d_ff=32, n_kv_heads=2,
        linear=LinearMixer(features="silu", rotary="none", conv=3),
    )  # fmt: skip
    mixer = build_model(config, seed=0).blocks[0].mixer
    with pytest.raises(ValueError, match="reads a sequence as one piece; expected sequence_parallel = 1"):
        mixer(torch.zeros(1, 4, 32), None, context(piece=Piece(0, 2, "")))
    conv, x = conv_of(16, 8).float(), random(3, 20, 16).float()
    with torch.no_grad():
        whole, tail = conv(x, None)[0], None
        for t in range(20):
            y, tail = conv(x[1:2, t : t + 1], tail)
            assert torch.equal(y[0, 0], whole[1, t])


@pytest.mark.slow
@pytest.mark.parametrize("cuts", [None, CUTS])
def test_the_compiler_makes_one_graph_of_it(cuts):
    conv, x, state = conv_of(), random(1, 10, 3), random(1 if cuts is None else 4, 2, 9, 3)
    whole = torch.compile(convolved, fullgraph=True, backend="aot_eager")  # as inductor, without its compiler
    for before in (None, state):
        found, expected = (run([conv], [x], before, 4, context(cuts)) for run in (whole, convolved))
        torch.testing.assert_close(found[0][0], expected[0][0], rtol=0, atol=1e-13)
        assert torch.equal(found[2][0], expected[2][0])
