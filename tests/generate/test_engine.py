"""An engine: many texts at once, each as if it were alone, whatever comes, goes or fails beside it."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from linscale.config import UserError
from linscale.data.tokenizer import load_tokenizer
from linscale.generate import engine_config
from linscale.generate.continuation import Piece
from linscale.generate.engine import Engine
from linscale.generate.engine_config import EngineConfig
from linscale.generate.identity import identify
from linscale.generate.request import Failed, Finished, Progress, Request
from linscale.generate.sample import write
from linscale.generate.sampling import Sampling
from linscale.generate.saved_state import read_state, write_state
from linscale.generate.session import Session
from linscale.generate.states import fork, join
from linscale.generate.worker import Worker
from linscale.models import CONFIGS, MIXERS, LinearizedConfig, build_model
from tests.quick import quick

BYTES = load_tokenizer("byte")
CASES = {"tnl": 0, "hgrn2": 0, "cosformer2": 0, "llama": 0, "hgrn2 in half": 2, "cosformer2 in half": 2}
CASES |= {"recurrent_transformer": 0, "recurrent_transformer in half": 2, "linearized in half": 2}
QUICK = quick(CASES, "recurrent_transformer", "linearized in half")
PROMPT = np.random.default_rng(0).integers(0, 256, 60).tolist()
SAMPLINGS = [
    Sampling(max_tokens=12, temperature=0),
    Sampling(max_tokens=9, seed=3, logprobs=2),
    Sampling(max_tokens=15, temperature=1.4, top_p=0.8, min_p=0.01, seed=4),
    Sampling(max_tokens=7, temperature=0.7, top_k=9, repetition_penalty=1.4, ignore_eos=True),
]


def tiny(case="hgrn2"):
    # Widths are multiples of 32, where rows are independent to the last bit on a CPU too.
    shape = {"vocab_size": 300, "d_model": 32, "n_layers": 2, "head_dim": 16, "d_ff": 32, "init_std": 0.4}
    return build_model(CONFIGS[case.split()[0]](**shape, softmax_every=CASES[case]), seed=0)


def engine_of(model, slots=3, chunk=16, context=512):
    return Engine(model, BYTES, EngineConfig(slots=slots, chunk=chunk, context=context))


class Heard(list):
    """The events of one request."""

    def __init__(self, engine=None, request=None):
        if engine is not None:
            engine.submit(request, self.append)

    @property
    def tokens(self):
        return [event.token for event in self if isinstance(event, Piece)]


def finish(engine):
    steps = 0
    while not engine.idle:
        engine.step()
        steps += 1
    return steps


def tokens_of(engine, request):
    heard = Heard(engine, request)
    finish(engine)
    return heard.tokens


@pytest.mark.parametrize("case", QUICK)
def test_every_text_is_what_it_is_alone(case):
    model = tiny(case)
    engine = engine_of(model)
    requests = [Request(PROMPT[: 1 + 7 * i], SAMPLINGS[i % 4]) for i in range(8)]
    heard = [Heard(engine, request) for request in requests]
    finish(engine)
    for events, request in zip(heard, requests, strict=True):
        expected = list(write(model, BYTES, request.tokens, request.sampling))
        pieces = [event for event in events if isinstance(event, Piece)]
        assert [piece[:3] for piece in pieces] == [piece[:3] for piece in expected]
        assert pieces[-1].finish_reason == expected[-1].finish_reason
        assert isinstance(events[-1], Finished)
        alone = Heard(fresh := engine_of(model), request)
        finish(fresh)
        assert [event for event in alone if isinstance(event, Piece)] == pieces  # log-probabilities to the last bit
    assert engine.stats()[1:4] == (0, 0, 0)


@pytest.mark.parametrize("case", QUICK)
@pytest.mark.parametrize("sampling", [SAMPLINGS[0], SAMPLINGS[3]], ids=["stops", "goes on"])
def test_a_kept_text_goes_on_from_its_state(case, sampling):
    model = tiny(case)
    engine = engine_of(model)
    kept = Heard(engine, Request(PROMPT, sampling, keep=True, keep_tokens=True))
    Heard(engine, Request(PROMPT[:5], SAMPLINGS[2]))
    finish(engine)
    snapshot, text = kept[-1].snapshot, [*PROMPT, *kept.tokens]
    if not sampling.ignore_eos and text[-1] == BYTES.eos_id:
        text.pop()
    assert snapshot.tokens.tolist() == text
    assert snapshot.length == kept[-1].length == len(text)
    whole = Session(model, BYTES)
    whole.read(text)
    more = Sampling(max_tokens=6, temperature=0, repetition_penalty=1.2)
    expected = [piece.token for piece in whole.stream(more)]
    for tokens, begun in (((), whole), ((7, 8), None)):
        if begun is None:
            whole = Session(model, BYTES)
            whole.read([*text, *tokens])
            expected = [piece.token for piece in whole.stream(more)]
        assert tokens_of(engine, Request(tokens, more, state=snapshot)) == expected
    found = tokens_of(engine, Request((), more, state=snapshot))
    assert found == [piece.token for piece in Session(model, BYTES, snapshot).stream(more)]


@pytest.mark.slow
def test_what_short_convolutions_saw_moves_with_a_state(tmp_path):
    """Through slots, files and rows of a batch; prompts shorter than the filters too."""
    shape = {"vocab_size": 300, "d_model": 32, "n_layers": 2, "head_dim": 16, "d_ff": 32, "init_std": 0.4}
    model = build_model(LinearizedConfig(**shape, n_kv_heads=1, linear=MIXERS["delta"]), seed=0)
    for name, weight in model.named_parameters():
        if "_conv" in name:
            torch.nn.init.normal_(weight.data, generator=torch.Generator().manual_seed(len(name)))

    def greedy(tokens, count=6):
        text = list(tokens)
        for _ in range(count):
            with torch.no_grad():
                text.append(int(model(torch.tensor([text])).logits[0, -1, : BYTES.vocab_size].argmax()))
        return text

    engine, more = engine_of(model), Sampling(max_tokens=6, temperature=0, ignore_eos=True)
    heard = [Heard(engine, Request(PROMPT[:length], more, keep=True)) for length in (1, 2, 3, 40)]
    finish(engine)
    for events, length in zip(heard, (1, 2, 3, 40), strict=True):
        expected = greedy(PROMPT[:length], 12)[length:]
        assert events.tokens == expected[:6]
        write_state(tmp_path / "state", events[-1].snapshot, identify(model, BYTES))
        snapshot = read_state(tmp_path / "state", model, identify(model, BYTES))
        with torch.no_grad():
            both = join([model(torch.tensor([[9]])).state, snapshot.state])
        snapshot = snapshot._replace(state=fork(both, torch.tensor([1])))
        assert tokens_of(engine, Request((), more, state=snapshot)) == expected[6:]


def test_a_state_that_ended_at_the_end_of_text_has_not_read_it():
    model = tiny()
    with torch.no_grad():
        model.embedding.weight[BYTES.eos_id] *= 3  # a likely token
    engine = engine_of(model)
    sampling = Sampling(max_tokens=200, seed=1)
    heard = Heard(engine, Request(PROMPT, sampling, keep=True))
    finish(engine)
    assert heard.tokens[-1] == BYTES.eos_id
    whole = Session(model, BYTES)
    whole.read([*PROMPT, *heard.tokens[:-1]])
    expected = whole.snapshot()
    torch.testing.assert_close(heard[-1].snapshot.logits, expected.logits, rtol=1e-4, atol=1e-5)
    assert heard[-1].snapshot.draws == (1, len(heard.tokens))


def test_a_text_that_is_only_read_gives_a_state_and_tells_how_far_it_is():
    model = tiny()
    engine = engine_of(model)
    heard = Heard(engine, Request(PROMPT, None))
    finish(engine)
    assert heard[:-1] == [Progress(16, 60), Progress(32, 60), Progress(48, 60), Progress(60, 60)]
    assert heard[-1].snapshot.length == 60
    sampling = SAMPLINGS[1]
    assert tokens_of(engine, Request((), sampling, state=heard[-1].snapshot)) == [
        piece.token for piece in write(model, BYTES, PROMPT, sampling)
    ]


def test_a_long_prompt_holds_no_running_text_up_for_longer_than_a_chunk():
    engine = engine_of(tiny(), slots=3, chunk=8)
    running = Heard(engine, Request(PROMPT[:3], Sampling(max_tokens=60, ignore_eos=True)))
    engine.step()
    long = Heard(engine, Request(np.resize(PROMPT, 161), Sampling(max_tokens=2)))
    short = Heard(engine, Request(PROMPT[:5], Sampling(max_tokens=2, ignore_eos=True)))
    for _ in range(20):
        before, read = len(running.tokens), engine.stats().tokens_read
        engine.step()
        assert len(running.tokens) == before + 1
        assert engine.stats().tokens_read - read <= 8
    assert isinstance(short[-1], Finished)
    assert not long.tokens
    finish(engine)
    assert isinstance(long[-1], Finished)


@pytest.mark.slow
def test_long_prompts_keep_no_short_one_out():
    engine = engine_of(tiny(), slots=2, chunk=8)
    for _ in range(5):
        engine.submit(Request(np.resize(PROMPT, 201), Sampling(max_tokens=2)), lambda event: None)
    engine.step()
    short = Heard(engine, Request(PROMPT[:1], Sampling(max_tokens=3, ignore_eos=True)))
    for _ in range(6):
        engine.step()
    assert isinstance(short[-1], Finished)
    assert engine.stats().tokens_read < 100
    finish(engine)
    assert len(engine._free) == 2


def test_a_cancelled_text_frees_its_slot_at_once_wherever_it_is():
    engine = engine_of(tiny(), slots=1, chunk=8)
    heard = [Heard(), Heard(), Heard()]
    endless = Sampling(max_tokens=10_000, ignore_eos=True)
    texts = [engine.submit(Request(PROMPT, endless), each.append) for each in heard]
    engine.step()  # the first is being read
    engine.cancel(texts[0])
    for _ in range(20):
        engine.step()
    assert engine.stats()[1:4] == (1, 0, 1)
    made = len(heard[1].tokens)
    assert made > 0
    engine.cancel(texts[1])
    engine.cancel(texts[1])
    engine.cancel(texts[2])
    assert engine.idle
    assert tokens_of(engine, Request(PROMPT, SAMPLINGS[0]))
    assert len(heard[1].tokens) == made
    assert not heard[0].tokens
    assert not heard[2].tokens


def test_the_time_of_a_step_is_not_that_of_waiting_for_texts(monkeypatch):
    engine, waited = engine_of(tiny()), [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + waited[0])
    monkeypatch.setattr("linscale.generate.engine.time", clock)
    for _ in range(2):
        tokens_of(engine, Request(PROMPT[:3], SAMPLINGS[3]))
        waited[0] += 1000
    tokens_of(engine, Request(PROMPT[:3], Sampling(max_tokens=1)))
    assert 0 < engine.stats().step_s < 100


@pytest.mark.parametrize("when", [0, 8, 12])
def test_a_listener_may_cancel_its_own_text(when):
    engine, heard = engine_of(tiny(), slots=1, chunk=8), []

    def listen(event):
        heard.append(event)
        if len(heard) > when:
            engine.cancel(text)

    text = engine.submit(Request(PROMPT, Sampling(max_tokens=5, ignore_eos=True), keep=True), listen)
    other = Heard(engine, Request(PROMPT, SAMPLINGS[0]))
    finish(engine)
    assert len(heard) == when + 1
    assert isinstance(other[-1], Finished)


def test_what_cannot_be_served_is_refused_in_one_line():
    engine = engine_of(tiny("llama"), context=64)
    for request, words in (
        (Request((), SAMPLINGS[0]), "prompt: no tokens"),
        (Request([5, 300], SAMPLINGS[0]), "token 300 is not one of the model's; expected 0 to 299"),
        (Request([-1], SAMPLINGS[0]), "token -1"),
        (Request(PROMPT, SAMPLINGS[0]), r"60 tokens and max_tokens = 12 are more than the 64"),
    ):
        with pytest.raises(UserError, match=words):
            engine.submit(request, print)
    assert engine.idle
    assert engine_of(tiny()).limit is None
    for case, words in (("cosformer2", "states do not decay"), ("linearized in half", "states are float32")):
        with pytest.raises(UserError, match=words):
            Engine(tiny(case), BYTES, EngineConfig(state_dtype="bfloat16"))
    assert len(tokens_of(engine, Request(PROMPT[:52], Sampling(max_tokens=12, ignore_eos=True)))) == 12


def test_float16_is_refused_where_there_are_no_products_for_it(monkeypatch):
    monkeypatch.setattr(engine_config, "can_halve", lambda: False)
    with pytest.raises(UserError, match=r"dtype = float16: .* expected float32 or bfloat16"):
        Engine(tiny(), BYTES, EngineConfig(dtype="float16"))


def test_memory_that_runs_out_fails_one_text_and_listeners_that_fail_none(monkeypatch, caplog):
    model = tiny()
    engine = engine_of(model)
    expected = [piece.token for piece in write(model, BYTES, PROMPT[:9], SAMPLINGS[1])]
    read = model.read

    def short_of_memory(tokens, state=None, cu_seqlens=None):
        if tokens.shape[1] > 9:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(tokens, state, cu_seqlens)

    monkeypatch.setattr(model, "read", short_of_memory)
    fails, works = Heard(engine, Request(PROMPT, SAMPLINGS[0])), Heard(engine, Request(PROMPT[:9], SAMPLINGS[1]))
    engine.submit(Request(PROMPT[:9], SAMPLINGS[0]), lambda event: 1 / 0)
    finish(engine)
    assert isinstance(fails[-1], Failed)
    assert "out of memory" in fails[-1].message
    assert works.tokens == expected
    assert "a listener failed" in caplog.text
    assert len(engine._free) == 3


def test_a_worker_serves_threads_drains_and_closes():
    model = tiny()
    worker = Worker(engine_of(model)).start()
    worker.wait_warm()
    requests = [Request(PROMPT[: 3 + i], SAMPLINGS[i % 4]) for i in range(12)]
    heard = [Heard() for _ in requests]

    def ask(numbers):
        for number in numbers:
            worker.submit(requests[number], heard[number].append)

    threads = [threading.Thread(target=ask, args=(range(first, 12, 3),)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    endless = Heard()
    ticket = worker.submit(Request(PROMPT, Sampling(max_tokens=10**6, ignore_eos=True)), endless.append)
    assert not worker.drain(0.05)
    with pytest.raises(UserError, match="stopping"):
        worker.submit(requests[0], print)
    ticket.cancel()
    assert worker.drain(60)
    assert not worker.alive
    for events, request in zip(heard, requests, strict=True):
        assert events.tokens == [piece.token for piece in write(model, BYTES, request.tokens, request.sampling)]
    assert not any(isinstance(event, Finished) for event in endless)
    worker.close()
    worker.close()


def test_a_worker_whose_engine_fails_says_so_to_all(monkeypatch, caplog):
    engine = engine_of(tiny())
    heard, late = Heard(), Heard()

    def fails(*needs, keep):
        worker.submit(Request(PROMPT, SAMPLINGS[0]), late.append)  # as another thread does just now
        return 1 / 0

    with Worker(engine) as worker:
        monkeypatch.setattr(engine._slots, "launch", fails)
        worker.submit(Request(PROMPT, SAMPLINGS[0]), heard.append)
        worker._thread.join(60)
        assert isinstance(worker.failure, ZeroDivisionError)
        with pytest.raises(UserError, match="no more requests"):
            worker.submit(Request(PROMPT, SAMPLINGS[0]), heard.append)
        assert not worker.drain()
    for events in (heard, late):
        assert isinstance(events[-1], Failed)
        assert "division by zero" in events[-1].message
