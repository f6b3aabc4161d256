"""Generation in batches: every row is what it would be alone, whatever is read and made beside it."""

import random
from itertools import takewhile

import pytest
import torch

from linscale.config import UserError
from linscale.data.tokenizer import load_tokenizer, train_bpe
from linscale.generate import batch as module
from linscale.generate import states
from linscale.generate.batch import continue_greedily, greedy, read_documents, text_before
from linscale.generate.sample import stream
from linscale.generate.states import fork, join
from linscale.models import CONFIGS, build_model
from tests.quick import quick

BYTES = load_tokenizer("byte")
CASES = {"tnl": 0, "hgrn2": 0, "cosformer2": 0, "llama": 0, "hgrn2 in half": 2, "recurrent_transformer": 0}
MOST = 12


@pytest.fixture(scope="module", params=quick(CASES, "hgrn2 in half"))
def model(request):
    shape = {"vocab_size": 300, "d_model": 16, "n_layers": 2, "head_dim": 8, "d_ff": 16, "init_std": 0.5}
    config = CONFIGS[request.param.split()[0]](**shape, softmax_every=CASES[request.param])
    return build_model(config).double().eval()


@pytest.fixture(scope="module")
def prompts():
    """Of 1 to 90 tokens, in no order, two of them alike."""
    generator = random.Random(0)
    prompts = [[generator.randrange(257) for _ in range(length)] for length in (7, 1, 33, 90, 2, 7, 40, 1)]
    return [*prompts, prompts[2]]


@pytest.fixture(scope="module")
def alone(model, prompts):
    """What `stream` gives for each prompt, `MOST` tokens."""
    return [list(stream(model, BYTES, prompt, max_tokens=MOST, temperature=0)) for prompt in prompts]


def ended(tokens, eos):
    return list(takewhile(lambda token: token != eos, tokens))


def test_each_row_is_what_it_is_alone_in_any_batch_and_order(model, prompts, alone, monkeypatch):
    expected = [ended(tokens, BYTES.eos_id) for tokens in alone]
    assert len({tuple(tokens) for tokens in expected}) > 4
    for count in (1, 5, len(prompts)):
        assert greedy(model, BYTES, prompts[:count], max_tokens=MOST) == expected[:count]
    order = random.Random(1).sample(range(len(prompts)), len(prompts))
    for most in (5, 50):
        found = greedy(model, BYTES, [prompts[number] for number in order], max_tokens=MOST, batch_tokens=most)
        assert found == [expected[number] for number in order]
    for limit in ("MOST_LOGITS", "MOST_STATE"):
        monkeypatch.setattr(module if limit == "MOST_LOGITS" else states, limit, 900)
        assert greedy(model, BYTES, prompts, max_tokens=MOST) == expected


def test_rows_that_are_done_leave_the_batch(model, prompts, alone, monkeypatch):
    """The end of text is, in turn, every third token that the rows make: rows end at different steps, some never."""
    steps, read = [], model.read

    def counted(tokens, state=None, cu_seqlens=None):
        if cu_seqlens is None:
            steps.append(tokens.numel())
        return read(tokens, state, cu_seqlens)

    monkeypatch.setattr(model, "read", counted)
    for eos in sorted({token for tokens in alone for token in tokens})[::3]:
        monkeypatch.setattr(type(BYTES), "eos_id", eos)
        steps.clear()
        expected = [ended(tokens, eos) for tokens in alone]
        assert greedy(model, BYTES, prompts, max_tokens=MOST) == expected
        assert sum(steps) == sum(min(len(tokens), MOST - 1) for tokens in expected)  # the last one made is not read


def test_a_stop_string_ends_its_rows_and_its_text_is_cut_before_it(model, prompts, alone):
    texts = [BYTES.decode(ended(tokens, BYTES.eos_id)) for tokens in alone]
    stops = sorted({text[k : k + n] for text in texts for k in range(3) for n in (1, 2)} - {""})[::5]
    for stop in stops:
        found = greedy(model, BYTES, prompts, max_tokens=MOST, stop=["never", stop])
        for tokens, text, whole in zip(found, texts, alone, strict=True):
            made = ended(whole, BYTES.eos_id)
            ends = [n for n in range(1, len(made) + 1) if stop in BYTES.decode(made[:n])]
            assert tokens == made[: ends[0] if ends else None]
            if "\ufffd" not in stop:  # half a character reads otherwise when its other half has come
                assert text_before(BYTES, tokens, ["never", stop]) == text.split(stop)[0]


def test_a_stop_string_is_seen_across_tokens_and_far_into_a_text():
    tokenizer = train_bpe(["the cat sat on a mat. " * 20], 280)
    made = tokenizer.encode("the cat sat on a mat. " * 9 + "über alles")
    for stop in ("über", "r a", "s"):
        seen = [n for n in range(1, len(made) + 1) if module._stopped(tokenizer, made[:n], [stop])]
        first = next(n for n in range(1, len(made) + 1) if stop in tokenizer.decode(made[:n]))
        assert seen[0] == first
    assert not module._stopped(tokenizer, made, ["xyz"])
    assert not module._stopped(tokenizer, made, [])


@pytest.mark.slow
@torch.no_grad()
def test_documents_go_on_from_forked_states(model, prompts, alone):
    """Every prompt is cut in two, the second halves are read behind copies of states of the first."""
    chosen = [prompts[n] for n in (2, 0, 3, 8)]
    heads, tails = [prompt[:5] for prompt in chosen[:3]], [prompt[5:] for prompt in chosen]
    _, state = read_documents(model, heads, batch_tokens=7)
    rows = torch.tensor([0, 1, 2, 0])
    expected = [ended(alone[n], BYTES.eos_id) for n in (2, 0, 3, 8)]
    for most in (1, 30, 500):
        forked = fork(state, rows)
        found = continue_greedily(model, BYTES, forked, tails, max_tokens=MOST, batch_tokens=most)
        assert found == expected
    x, behind = read_documents(model, tails, fork(state, rows), batch_tokens=30)
    parts = [read_documents(model, [prompt]) for prompt in chosen]
    torch.testing.assert_close(x, torch.cat([part for part, _ in parts]))
    assert behind.position.tolist() == [len(prompt) for prompt in chosen]
    whole = join([part for _, part in parts])
    torch.testing.assert_close(whole, behind)
    torch.testing.assert_close(fork(whole, torch.tensor([1])), parts[1][1])


def test_a_padded_vocabulary_is_never_drawn(model, prompts):
    tokens = greedy(model, BYTES, prompts * 3, max_tokens=MOST)
    assert all(token < BYTES.vocab_size for row in tokens for token in row)
    free = list(stream(model, BYTES, prompts[0], max_tokens=1, temperature=0))
    assert free == greedy(model, BYTES, prompts[:1], max_tokens=1)[0]


def test_values_out_of_range_are_refused(model):
    assert greedy(model, BYTES, [], max_tokens=3) == []
    with pytest.raises(UserError, match="prompt 1: no tokens; expected at least one"):
        greedy(model, BYTES, [[1], []], max_tokens=3)
    with pytest.raises(UserError, match="max_tokens = 0: expected at least 1"):
        greedy(model, BYTES, [[1]], max_tokens=0)
