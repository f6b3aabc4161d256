"""An engine whose slots read short prompts by the kernels of steps: texts are those of plain steps."""

import numpy as np

from linscale.data.tokenizer import load_tokenizer
from linscale.generate.continuation import Piece
from linscale.generate.engine import Engine
from linscale.generate.engine_config import EngineConfig
from linscale.generate.request import Finished, Progress, Request
from linscale.generate.sample import write
from linscale.generate.sampling import Sampling
from linscale.models import CONFIGS, build_model

BYTES = load_tokenizer("byte")


def test_texts_are_what_they_are_alone(device, monkeypatch):
    monkeypatch.setattr("linscale.generate.slots.READ_ROWS", 6)
    monkeypatch.setattr("linscale.generate.engine.FEED_MOST", 9)
    shape = {"vocab_size": 288, "d_model": 32, "n_layers": 2, "head_dim": 16, "d_ff": 32, "init_std": 0.4}
    model = build_model(CONFIGS["hgrn2"](**shape)).to(device)
    engine = Engine(model, BYTES, EngineConfig(slots=3, chunk=16, dtype="float32"))
    assert engine._slots.read_rows == 6
    rng = np.random.default_rng(0)
    requests = [
        Request(rng.integers(0, 256, length).tolist(), Sampling(max_tokens=3, seed=length, temperature=0.7), keep=True)
        for length in (1, 8, 3, 7, 25)
    ]
    heard = [[] for _ in requests]
    for request, events in zip(requests, heard, strict=True):
        engine.submit(request, events.append)
    while not engine.idle:
        engine.step()
    for request, events in zip(requests, heard, strict=True):
        expected = [piece.token for piece in write(model, BYTES, request.tokens, request.sampling)]
        assert [event.token for event in events if isinstance(event, Piece)] == expected
        assert isinstance(events[-1], Finished)
        read = [event for event in events if isinstance(event, Progress)]
        assert not read or read[-1] == (len(request.tokens) - 1, len(request.tokens))
    assert any(len([event for event in events if isinstance(event, Progress)]) > 1 for events in heard)
    kept = heard[1][-1].snapshot  # and one goes on, read behind its state
    more = []
    engine.submit(Request([5, 6, 7, 8], Sampling(max_tokens=3, temperature=0), state=kept), more.append)
    text = [*requests[1].tokens, *(event.token for event in heard[1] if isinstance(event, Piece)), 5, 6, 7, 8]
    while not engine.idle:
        engine.step()
    expected = [piece.token for piece in write(model, BYTES, text, Sampling(max_tokens=3, temperature=0))]
    assert [event.token for event in more if isinstance(event, Piece)] == expected
