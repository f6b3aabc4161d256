"""An engine under random requests, cancellations and states: slots are never shared or lost, texts are those of a
session, and what is kept is the whole text read afresh. Also a step behind, as with CUDA graphs (`Slots.lag`)."""

import random

import pytest
import torch

from linscale.generate.request import Finished, Request
from linscale.generate.sampling import Sampling
from linscale.generate.session import Session
from tests.generate.test_engine import BYTES, Heard, engine_of, tiny

SLOTS, STEPS = 3, 250


CASES = [("hgrn2", 0), ("hgrn2", 1), ("cosformer2 in half", 0), ("cosformer2 in half", 1)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_whatever_comes(case):
    case, lag = case
    draw, model = random.Random(lag), tiny(case)
    with torch.no_grad():
        model.embedding.weight[BYTES.eos_id] *= 2  # a likely token
    engine = engine_of(model, slots=SLOTS, chunk=8, context=60 if lag else 512)
    engine._slots.lag = lag
    running, kept, ended = [], [], set()
    for _ in range(STEPS):
        what = draw.random()
        if what < 0.3 and len(running) < 8:
            request, before = asked(draw, kept)
            heard = Heard()
            running.append((engine.submit(request, heard.append), request, before, heard))
        elif what < 0.34 and running:
            text, *_, heard = running.pop(draw.randrange(len(running)))
            engine.cancel(text)
        else:
            engine.step()
        texts = (*engine._prompts, *engine._read, *engine._running.values())
        used = [text.slot for text in texts if text.slot is not None]
        assert sorted(used + engine._free) == list(range(SLOTS))
        for each in [each for each in running if each[-1] and isinstance(each[-1][-1], Finished)]:
            running.remove(each)
            kept += checked(model, *each[1:])
            ended.add(each[-1][-2].finish_reason if each[1].sampling else "read")
    assert ended == {"read", "stop", "length"}


def asked(draw, kept):
    """A request, and the tokens of the text that it goes on from."""
    snapshot, before = draw.choice(kept) if kept and draw.random() < 0.5 else (None, [])
    tokens = [draw.randrange(300) for _ in range(draw.choice([0, 1, 8, 9, 17]))]
    sampling = Sampling(
        max_tokens=draw.choice([1, 2, 12]), temperature=draw.choice([0, 1, 1.5]), top_p=draw.choice([1, 0.9]),
        repetition_penalty=draw.choice([1, 1.3]), seed=draw.choice([None, 3]), ignore_eos=draw.random() < 0.3,
        stop=draw.choice([(), ("e", "th")]), stop_tokens=draw.choice([(), (32, 256)]),
    )  # fmt: skip
    if snapshot is None or snapshot.length > 20:  # begin anew
        snapshot, before, tokens = None, [], [BYTES.bos_id, *tokens]
    return Request(tokens, None if draw.random() < 0.2 else sampling, snapshot, keep=draw.random() < 0.7), before


def checked(model, request, before, heard):
    """The kept snapshot, with the tokens of its text."""
    text, finished = [*before, *request.tokens], heard[-1]
    if request.sampling is not None:
        session = Session(model, BYTES, request.state)
        session.read(request.tokens)
        made = [piece.token for piece in session.stream(request.sampling)]
        assert heard.tokens == made
        if made[-1] == BYTES.eos_id and not request.sampling.ignore_eos:
            made.pop()
        text += made
    assert finished.length == len(text)
    if finished.snapshot is None:
        return []
    afresh, resumed = Session(model, BYTES), Session(model, BYTES, finished.snapshot)
    afresh.read(text)
    resumed.read([])  # what is left to read of it
    expected, found = afresh.snapshot(), resumed.snapshot()
    assert finished.snapshot.length == len(text)
    assert (found.last, found.seen.tolist()) == (expected.last, expected.seen.tolist())
    torch.testing.assert_close(found.state, expected.state, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-3, atol=1e-3)
    return [(finished.snapshot, text)]
