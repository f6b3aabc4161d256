"""The kernel that begins the next block of a state against its definition, in rows that are at the end of theirs."""

import numpy as np
import pytest
import torch

from linscale.data.tokenizer import load_tokenizer
from linscale.generate.continuation import Piece
from linscale.generate.engine import Engine
from linscale.generate.engine_config import EngineConfig
from linscale.generate.request import Request
from linscale.generate.sample import write
from linscale.generate.sampling import Sampling
from linscale.models import CONFIGS, Recurrence, build_model
from linscale.models.recurrent_state import CLOSES, FORGETS, TAKES_OVER
from linscale.models.recurrent_step import turn as plain
from linscale.ops.decode.turn import turn


@pytest.mark.parametrize("places", [FORGETS, TAKES_OVER, CLOSES])
@pytest.mark.parametrize("width", [8, 20, 700])
def test_a_full_block_is_turned(device, places, width):
    torch.manual_seed(0)
    state = torch.randn(5, places, 4, width, device=device)
    positions = torch.tensor([3, 2, 7, 11, 8], device=device)
    active = torch.tensor([1, 1, 0, 1, 1], dtype=torch.int32, device=device)
    wanted = state.clone()
    plain(wanted, positions, active)
    assert not torch.equal(wanted[0], state[0])
    before = state.clone()
    turn(state, positions, active)
    assert torch.equal(state, wanted)
    assert torch.equal(state[[1, 2, 4]], before[[1, 2, 4]])


def test_texts_of_an_engine_are_what_they_are_alone(device):
    shape = {"vocab_size": 288, "d_model": 32, "n_layers": 2, "head_dim": 16, "d_ff": 32, "init_std": 0.4}
    model = build_model(CONFIGS["recurrent_transformer"](**shape, recurrence=Recurrence(block=4))).to(device)
    engine = Engine(model, load_tokenizer("byte"), EngineConfig(slots=3, chunk=16, dtype="float32"))
    assert engine._slots.step.captures
    rng = np.random.default_rng(0)
    requests = [
        Request(rng.integers(0, 256, length).tolist(), Sampling(max_tokens=9, seed=length, temperature=0.7))
        for length in (1, 8, 3, 7, 25)
    ]
    heard = [[] for _ in requests]
    for request, events in zip(requests, heard, strict=True):
        engine.submit(request, events.append)
    while not engine.idle:
        engine.step()
    for request, events in zip(requests, heard, strict=True):
        expected = [piece.token for piece in write(model, load_tokenizer("byte"), request.tokens, request.sampling)]
        assert [event.token for event in events if isinstance(event, Piece)] == expected
