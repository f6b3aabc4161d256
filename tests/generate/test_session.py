"""A session: the same numbers wherever it is interrupted, in memory that does not grow with what it reads."""

from itertools import islice

import numpy as np
import pytest
import torch

from linscale.config import UserError
from linscale.data.tokenizer import load_tokenizer
from linscale.generate import session as module
from linscale.generate import solo
from linscale.generate.packing import can_pack
from linscale.generate.sample import stream
from linscale.generate.sampling import Sampling
from linscale.generate.session import Session
from linscale.generate.solo import Solo
from linscale.models import CONFIGS, MIXERS, build_model
from linscale.ops.decode import plain
from tests.quick import quick

BYTES = load_tokenizer("byte")
CASES = {"tnl": 0, "hgrn2": 0, "cosformer2": 0, "llama": 0, "hgrn2 in half": 2, "cosformer2 in half": 2}
CASES |= {"recurrent_transformer": 0, "linearized": 0, "linearized with delta": 0, "linearized with t2r": 0}
PROMPT = list(np.random.default_rng(0).integers(0, 256, 50))


def tiny(case, seed=0):
    shape = {"vocab_size": 300, "d_model": 16, "n_layers": 2, "head_dim": 8, "d_ff": 16, "init_std": 0.5}
    _, _, mixer = case.partition(" with ")
    linear = {"linear": MIXERS[mixer]} if mixer else {}
    return build_model(CONFIGS[case.split()[0]](**shape, **linear, softmax_every=CASES[case]), seed=seed)


@pytest.fixture(params=quick(CASES, "recurrent_transformer", "linearized with delta"))
def model(request):
    return tiny(request.param)


def begun(model, tokens=PROMPT, **options):
    session = Session(model, BYTES, **options)
    session.read(tokens)
    return session


def tokens(session, count=None, **options):
    """What `stream` adds to the text: `count` tokens, or as many as it makes."""
    sampling = Sampling(**options)
    made = [piece.token for piece in islice(session.stream(sampling), count)]
    return made[:-1] if made[-1] == BYTES.eos_id and not sampling.ignore_eos else made


def test_it_makes_what_stream_makes(model):
    for options in ({"temperature": 0}, {"temperature": 1.3, "top_k": 20, "seed": 5}):
        expected = list(stream(model, BYTES, PROMPT, max_tokens=20, **options))
        expected = expected[: expected.index(256)] if 256 in expected else expected
        session = begun(model)
        assert tokens(session, max_tokens=20, **options) == expected
        assert session.length == len(PROMPT) + len(expected)
        assert session.last == tuple([*PROMPT, *expected][-64:])


def test_an_interruption_anywhere_changes_no_bit(model):
    whole = begun(model)
    options = {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.3, "ignore_eos": True}
    expected = tokens(whole, max_tokens=16, seed=3, **options)
    for stop in (1, 2, 9, 16):
        first = begun(model, keep_tokens=True)
        head = tokens(first, stop, max_tokens=16, seed=3, **options)
        second = Session(model, BYTES, first.snapshot())
        tail = tokens(second, max_tokens=16 - stop, **options) if stop < 16 else []
        assert head + tail == expected
        more = [5, 6, 7]
        for session in (second, other := whole.fork()):
            session.read(more)
        assert torch.equal(second.snapshot().logits, other.snapshot().logits)
        assert second.snapshot().tokens.tolist() == [*PROMPT, *expected, *more]


def test_forks_do_not_see_each_other(model):
    session = begun(model)
    fork, before = session.fork(), session.snapshot()
    expected = tokens(session.fork(), max_tokens=8, temperature=0)
    fork.read([1] * 30)
    tokens(fork, max_tokens=5, seed=1)
    assert torch.equal(session.snapshot().logits, before.logits)
    assert tokens(session, max_tokens=8, temperature=0) == expected
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


def test_a_step_that_is_interrupted_anywhere_is_taken_again(model, monkeypatch):
    if not can_pack(model):
        pytest.skip("its steps are forward passes, which leave what they were given as it was")
    options = {"temperature": 0.9, "seed": 3, "ignore_eos": True}
    expected = tokens(begun(model), max_tokens=12, **options)
    project, calls = plain.project, iter(range(10**6))

    def broken(*given, **named):
        if next(calls) == stop:
            raise KeyboardInterrupt
        project(*given, **named)

    monkeypatch.setattr(plain, "project", broken)
    for stop in (0, 13, 24, 26):  # nine products a step: two layers of four, and the head
        calls, made, session = iter(range(10**6)), [], begun(model)
        stream = session.stream(Sampling(max_tokens=12, **options))
        with pytest.raises(KeyboardInterrupt):
            made.extend(piece.token for piece in stream)
        assert session.length == len(PROMPT) + len(made)
        made += tokens(session.fork(), max_tokens=12 - len(made), **{**options, "seed": None})
        assert made == expected
        assert tokens(session, max_tokens=1, **{**options, "seed": None}) == [expected[1 + stop // 9]]


def test_a_step_whose_end_was_not_heard_of_is_taken_again(monkeypatch):
    model = tiny("hgrn2 in half")
    expected = tokens(begun(model), max_tokens=6, temperature=0)
    session, step = begun(model), Solo.step

    def unheard(solo, needs):
        step(solo, needs)
        raise KeyboardInterrupt

    made = tokens(session, 3, temperature=0)
    monkeypatch.setattr(Solo, "step", unheard)
    with pytest.raises(KeyboardInterrupt):
        tokens(session, 1, temperature=0)
    monkeypatch.setattr(Solo, "step", step)
    assert made + tokens(session, max_tokens=3, temperature=0) == expected


def test_streams_that_take_turns_in_the_slot_do_not_disturb_each_other(model):
    session = begun(model)
    options = [{"temperature": 0.8, "seed": seed, "repetition_penalty": 1.2, "ignore_eos": True} for seed in (1, 2)]
    alone = [tokens(session.fork(), max_tokens=9, **each) for each in options]
    streams = [
        fork.stream(Sampling(max_tokens=9, **each))
        for fork, each in zip([session.fork(), session.fork()], options, strict=True)
    ]
    turns = [[next(stream).token for stream in streams] for _ in range(9)]
    assert [list(made) for made in zip(*turns, strict=True)] == alone


def test_tokens_that_were_not_read_are_read_one_by_one(model):
    session = begun(model)
    made = tokens(session, 4, temperature=0, ignore_eos=True)
    expected = tokens(session, 3, temperature=0, ignore_eos=True)
    snapshot = begun(model).snapshot()._replace(logits=None, unread=tuple(made), last=(*PROMPT, *made))
    resumed = Session(model, BYTES, snapshot)
    assert resumed.length == len(PROMPT) + 4
    assert tokens(resumed, 3, temperature=0, ignore_eos=True) == expected


@pytest.mark.parametrize("case", ["llama", "hgrn2 in half"])
def test_softmax_layers_get_more_room_as_the_text_grows(case, monkeypatch):
    model = tiny(case)
    expected = tokens(begun(model), max_tokens=100, temperature=0.9, seed=1, ignore_eos=True)
    monkeypatch.setattr(solo, "LEAST_ROOM", 1)
    session = begun(model)
    assert tokens(session, max_tokens=100, temperature=0.9, seed=1, ignore_eos=True) == expected
    assert session._solo._slots.step.capacity == 256  # 64 at first, which hold the prompt


def test_a_session_that_only_reads_makes_nothing_for_steps():
    session = begun(tiny("llama"))
    session.read([1, 2])
    next(session.stream(Sampling()))
    assert session._solo._slots is None
    tokens(session, 2)
    assert session._solo._slots is not None
    assert session.fork()._solo is session._solo


def test_values_out_of_range_are_refused():
    model = tiny("hgrn2")
    with pytest.raises(UserError, match="no tokens were read"):
        Session(model, BYTES).snapshot()
    with pytest.raises(UserError, match="prompt: no tokens"):
        Session(model, BYTES).stream(Sampling())
    with pytest.raises(UserError, match="saved without its tokens"):
        Session(model, BYTES, begun(model).snapshot(), keep_tokens=True)


def test_a_penalty_counts_the_whole_text_however_it_is_resumed():
    """Tokens from before the last 64 too."""
    model = tiny("hgrn2")
    prompt = [7, 8, 9, *[int(token) for token in np.random.default_rng(1).integers(20, 250, 90)]]
    sampling = {"max_tokens": 6, "temperature": 0, "repetition_penalty": 1.5, "logprobs": 0}
    snapshot = begun(model, prompt, keep_tokens=True).snapshot()
    assert np.flatnonzero(snapshot.seen).tolist() == sorted(set(prompt))
    expected = tokens(Session(model, BYTES, snapshot), **sampling)
    assert tokens(Session(model, BYTES, snapshot._replace(seen=None)), **sampling) == expected
    forgetful = Session(model, BYTES, snapshot._replace(seen=None, tokens=None))
    assert np.flatnonzero(forgetful.snapshot().seen).tolist() == sorted(set(prompt[-64:]))


def test_draws_go_on_where_they_stopped_and_begin_anew_with_a_seed():
    session = begun(tiny("hgrn2"))
    assert session.snapshot().draws is None
    tokens(session, 3, seed=9)
    assert session.snapshot().draws == (9, 3)
    tokens(session, 2)
    assert session.snapshot().draws == (9, 5)
    tokens(session, 1, seed=9)
    assert session.snapshot().draws == (9, 1)


def test_the_end_of_text_token_is_not_part_of_the_text_but_where_it_is_ignored():
    model = tiny("hgrn2")
    logits = torch.full((300,), -1e4)
    logits[256] = 0
    snapshot = begun(model).snapshot()._replace(logits=logits)
    session = Session(model, BYTES, snapshot)
    pieces = list(session.stream(Sampling()))
    assert [(piece.token, piece.finish_reason) for piece in pieces] == [(256, "stop")]
    assert (session.length, session.last) == (len(PROMPT), tuple(PROMPT))
    next(session.stream(Sampling(ignore_eos=True)))
    assert (session.length, session.last) == (len(PROMPT) + 1, (*PROMPT, 256))


def test_a_stop_string_is_part_of_the_text_and_is_not_shown():
    model = tiny("hgrn2")
    free = BYTES.decode(tokens(begun(model), max_tokens=40, seed=2))
    session = begun(model)
    pieces = list(session.stream(Sampling(max_tokens=40, seed=2, stop=free[5:7])))
    assert "".join(piece.text for piece in pieces) == free[: free.index(free[5:7])]
    assert session.length == len(PROMPT) + len(pieces)
