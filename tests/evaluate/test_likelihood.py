"""The scorer: a forked state is one forward pass over both texts, whatever is scored beside it."""

import pytest
import torch

from linscale.data.tokenizer import load_tokenizer, train_bpe
from linscale.evaluate import likelihood as module
from linscale.evaluate.likelihood import encode_pair, score
from linscale.generate import states
from linscale.models import CONFIGS, build_model
from tests.quick import quick

VOCAB = 50
CASES = {"tnl": 0, "hgrn2": 0, "cosformer2": 0, "llama": 0, "hgrn2 in half": 2}


@pytest.fixture(params=quick(CASES, "hgrn2 in half"))
def model(request):
    shape = {"vocab_size": VOCAB, "d_model": 16, "n_layers": 2, "head_dim": 8, "d_ff": 16, "init_std": 0.3}
    config = CONFIGS[request.param.split()[0]](**shape, softmax_every=CASES[request.param])
    return build_model(config).double().eval()


@pytest.fixture
def pairs():
    """Contexts of 1 to 90 tokens with several continuations each, some of them none, in no order."""
    generator = torch.Generator().manual_seed(0)

    def tokens(count):
        return torch.randint(VOCAB, (count,), generator=generator).tolist()

    contexts = [tokens(count) for count in (1, 1, 2, 7, 33, 7, 90)]
    pairs = [(context, tokens(count)) for count in (1, 5, 0, 70, 3) for context in contexts]
    return [*pairs, pairs[5]]


def expected(model, context, continuation):
    """From one forward pass over the whole."""
    logits = model(torch.tensor([[*context, *continuation]])).logits[0, len(context) - 1 : -1]
    targets = torch.tensor(continuation, dtype=torch.int64)
    nats = logits.log_softmax(-1).gather(1, targets[:, None]).sum().item()
    return nats, bool((logits.argmax(-1) == targets).all())


@torch.no_grad()
def test_a_forked_state_is_one_forward_pass(model, pairs):
    for (context, continuation), found in zip(pairs, score(model, pairs), strict=True):
        nats, greedy = expected(model, context, continuation) if continuation else (0.0, True)
        assert (found.nats, found.greedy) == (pytest.approx(nats, abs=1e-6), greedy)


@torch.no_grad()
@pytest.mark.parametrize("limit", ["tokens", "states", "logits"])
def test_no_limit_of_a_batch_changes_anything(model, pairs, limit, monkeypatch):
    whole = score(model, pairs)
    for most in (1, 60, 200):
        if limit == "states":
            monkeypatch.setattr(states, "MOST_STATE", most * 128)
        elif limit == "logits":
            monkeypatch.setattr(module, "MOST_LOGITS", most)
        found = score(model, pairs, batch_tokens=most if limit == "tokens" else 500)
        assert [one.greedy for one in found] == [one.greedy for one in whole]
        assert [one.nats for one in found] == pytest.approx([one.nats for one in whole], abs=1e-6)


@torch.no_grad()
def test_what_is_most_probable_is_greedy(model):
    context, made = [3, 1, 4], []
    for _ in range(4):
        made.append(int(model(torch.tensor([context + made])).logits[0, -1].argmax()))
    other = [*made[:-1], (made[-1] + 1) % VOCAB]
    assert [one.greedy for one in score(model, [(context, made), (context, other)])] == [True, False]


def count_reads(model, monkeypatch):
    """The tokens of every call of `read`, and the forks it was given."""
    read, counts, forks = model.read, [], []

    def counted(tokens, state=None, cu_seqlens=None):
        counts.append(tokens.numel())
        forks.append(0 if state is None else len(cu_seqlens) - 1)
        return read(tokens, state, cu_seqlens)

    monkeypatch.setattr(model, "read", counted)
    return counts, forks


@torch.no_grad()
def test_what_texts_begin_with_is_read_once_and_nothing_is_padded(model, monkeypatch):
    context = list(range(20))
    counts, forks = count_reads(model, monkeypatch)
    # Choices of one token take no fork; their logits are those of the last token of the context.
    score(model, [(context, [1]), (context, [2]), (context, [3])])
    assert (counts, forks) == ([20], [0])
    # Two contexts that differ behind the 20 tokens, two continuations that begin alike, and one text by itself.
    pairs = [([*context, 7], [8, 9]), ([*context, 8], [8, 9]), ([5] * 30, [1, 2]), ([5] * 30, [1, 3, 4])]
    expected_reads = [20 + 31, 2 + 2 + 1]
    counts.clear()
    score(model, [*pairs, ([9, 9], [9, 9])])
    assert counts == [expected_reads[0] + 3, expected_reads[1]]
    assert forks[1:] == [0, 3]


@torch.no_grad()
def test_likelihoods_of_texts_that_begin_alike(model):
    """Trunks that end inside a context, at its end, and inside a continuation; a text that is the start of another."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randint(VOCAB, (40,), generator=generator).tolist()
    pairs = [(base[:first], [*base[first:end], *other])
             for first in (1, 12, 20) for end in (20, 21, 40) for other in ([], [3], [4, 5, 6])]  # fmt: skip
    pairs += [(base[:12], base[12:14]), (base[:12], base[12:14]), ([*base[:12], 9], [9, 9])]
    for (context, continuation), found in zip(pairs, score(model, pairs), strict=True):
        nats, greedy = expected(model, context, continuation) if continuation else (0.0, True)
        assert (found.nats, found.greedy) == (pytest.approx(nats, abs=1e-6), greedy)


def test_texts_are_cut_as_the_harness_cuts_them():
    tokenizer = train_bpe(["the cat sat. the cat ran. " * 20], 270)
    cat, sat = tokenizer.encode("the cat"), tokenizer.encode(" sat")
    assert encode_pair(tokenizer, "the cat", " sat") == (cat, sat)
    assert encode_pair(tokenizer, "the cat ", "sat") == (cat, sat)
    assert encode_pair(tokenizer, "", "the cat") == ([tokenizer.eos_id], cat)
    # Where the tokens of both together run over the border, as many are the context's as it has alone.
    alone, whole = tokenizer.encode("the ca"), tokenizer.encode("the cat")
    assert len(whole) <= len(alone)
    assert encode_pair(tokenizer, "the ca", "t") == (alone, whole[len(alone) :])
    assert encode_pair(load_tokenizer("byte"), "ab \n", "c") == ([97, 98], [32, 10, 99])
