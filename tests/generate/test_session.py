"""A session: the same numbers wherever it is interrupted, in memory that does not grow with what it reads."""

from itertools import islice

import numpy as np
import pytest
import torch

from linscale.config import UserError
from linscale.data.tokenizer import load_tokenizer, train_bpe
from linscale.generate import session as module
from linscale.generate.sample import stream
from linscale.generate.session import Session
from linscale.generate.text_stream import TextStream
from linscale.models import CONFIGS, build_model

BYTES = load_tokenizer("byte")
CASES = {"tnl": 0, "hgrn2": 0, "cosformer2": 0, "llama": 0, "hgrn2 in half": 2, "cosformer2 in half": 2}
PROMPT = list(np.random.default_rng(0).integers(0, 256, 50))


def tiny(case, seed=0):
    shape = {"vocab_size": 300, "d_model": 16, "n_layers": 2, "head_dim": 8, "d_ff": 16, "init_std": 0.5}
    return build_model(CONFIGS[case.split()[0]](**shape, softmax_every=CASES[case]), seed=seed)


@pytest.fixture(params=CASES)
def model(request):
    return tiny(request.param)


def begun(model, tokens=PROMPT, **options):
    session = Session(model, BYTES, **options)
    session.read(tokens)
    return session


def test_it_makes_what_stream_makes(model):
    for options in ({"temperature": 0}, {"temperature": 1.3, "top_k": 20, "seed": 5}):
        expected = list(stream(model, BYTES, PROMPT, max_tokens=20, **options))
        expected = expected[: expected.index(256)] if 256 in expected else expected
        session = begun(model)
        assert list(session.stream(max_tokens=20, **options)) == expected
        assert session.length == len(PROMPT) + len(expected)
        assert session.last == tuple([*PROMPT, *expected][-64:])


def test_an_interruption_anywhere_changes_no_bit(model):
    whole = begun(model)
    expected = list(whole.stream(max_tokens=16, temperature=0.9, seed=3))
    for stop in (1, 2, 9, 16):
        first = begun(model, keep_tokens=True)
        head = list(islice(first.stream(max_tokens=16, temperature=0.9, seed=3), stop))
        second = Session(model, BYTES, first.snapshot())
        tail = list(second.stream(max_tokens=16 - stop, temperature=0.9)) if stop < 16 else []
        assert head + tail == expected
        more = [5, 6, 7]
        for session in (second, other := whole.fork()):
            session.read(more)
        assert torch.equal(second.snapshot().logits, other.snapshot().logits)
        assert second.snapshot().tokens.tolist() == [*PROMPT, *expected, *more]


def test_forks_do_not_see_each_other(model):
    session = begun(model)
    fork, before = session.fork(), session.snapshot()
    expected = list(session.fork().stream(max_tokens=8, temperature=0))
    fork.read([1] * 30)
    list(fork.stream(max_tokens=5, temperature=1, seed=1))
    assert torch.equal(session.snapshot().logits, before.logits)
    assert list(session.stream(max_tokens=8, temperature=0)) == expected
    assert before.length == len(PROMPT)


def test_chunks_are_bounded_and_change_nothing_beyond_rounding(model, monkeypatch):
    one = begun(model).snapshot()
    lengths, read = [], model.read
    monkeypatch.setattr(model, "read", lambda tokens, state: lengths.append(tokens.shape[1]) or read(tokens, state))
    for name in ("CHUNK", "SOFTMAX_CHUNK"):
        monkeypatch.setattr(module, name, 7)
    chunked = begun(model).snapshot()
    assert lengths == [7] * 7 + [1]
    torch.testing.assert_close(chunked.logits, one.logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(chunked.state, one.state, rtol=1e-3, atol=1e-3)


def test_an_interrupted_read_leaves_the_session_where_it_was(monkeypatch):
    model = tiny("hgrn2")
    session = begun(model)
    before, session.chunk, read = session.snapshot(), 5, model.read

    def broken(tokens, state):
        if int(state.position) > 60:
            raise KeyboardInterrupt
        return read(tokens, state)

    monkeypatch.setattr(model, "read", broken)
    with pytest.raises(KeyboardInterrupt):
        session.read([9] * 40)
    assert (session.length, session.last) == (before.length, before.last)
    assert torch.equal(session.snapshot().logits, before.logits)


def test_values_out_of_range_are_refused():
    model = tiny("hgrn2")
    with pytest.raises(UserError, match="no tokens were read"):
        Session(model, BYTES).snapshot()
    with pytest.raises(UserError, match="prompt: no tokens"):
        Session(model, BYTES).stream(max_tokens=1)
    with pytest.raises(UserError, match="max_tokens = 0"):
        begun(model).stream(max_tokens=0)
    with pytest.raises(UserError, match="saved without its tokens"):
        Session(model, BYTES, begun(model).snapshot(), keep_tokens=True)


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_text_comes_in_whole_characters_and_as_decoded_at_once(kind):
    text = "Über 日本語, 🙂🙂 and the rest of it, " * 6
    tokenizer = BYTES if kind == "byte" else train_bpe(["the rest of it " * 9], 270)
    tokens = tokenizer.encode(text)
    for given in (tokens, [*tokens, *tokens[:1]], [*tokens[3:9], 200, 200, *tokens]):
        shown = TextStream(tokenizer)
        pieces = [shown.add(token) for token in given]
        assert "".join(pieces) + shown.end() == tokenizer.decode(given)
    shown = TextStream(tokenizer)
    assert not any("\ufffd" in shown.add(token) for token in tokens)
    after = TextStream(tokenizer, before=tokens[:7])
    rest = "".join(after.add(token) for token in tokens[7:]) + after.end()
    assert text.endswith(rest)
    assert len(rest) >= len(tokenizer.decode(tokens[7:]).strip("\ufffd"))


@pytest.mark.parametrize("stop", ["\nUser:", "it", "日本", "absent"])
def test_text_ends_before_a_stop_string_and_shows_none_of_it(stop):
    text = "The rest of\n\nUse 日本 of it.\nUser: more"
    shown, pieces, places = TextStream(BYTES, stop=["", stop]), [], []
    for place, token in enumerate(BYTES.encode(text)):
        pieces.append(shown.add(token))
        if shown.stopped and not places:
            places.append(place)
    assert "".join(pieces) + shown.end() == text.split(stop)[0]
    if stop in text:
        assert places == [len(text[: text.index(stop) + len(stop)].encode()) - 1]
