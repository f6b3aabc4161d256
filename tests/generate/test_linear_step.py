"""Decoding steps of linearized models from packed matrices: as the forward pass, row by row, for every mixer."""

import pytest
import torch

from linscale.config import UserError
from linscale.generate.engine_config import EngineConfig, Setup
from linscale.generate.packing import can_pack
from linscale.generate.read_step import ReadStep
from linscale.generate.step import DecodingStep
from linscale.generate.steps import decoding_step
from linscale.models.linear_mixer import LinearMixer
from linscale.models.linearized import MIXERS
from tests.decoding import steps
from tests.linear_mixers import STEPPED, linearized
from tests.quick import quick

LENGTH, PROMPT, SLOTS = 12, 4, 3
CASES = quick(STEPPED, "delta", "supra", "averages")


def step_of(model, dtype=torch.float32):
    step = decoding_step(model, SLOTS, 32, dtype=dtype, state_dtype=torch.float32)
    assert type(step) is DecodingStep
    return step


@pytest.mark.parametrize("mixer", CASES)
def test_a_prompt_read_by_the_model_goes_on_in_slots_and_back_in_the_model(mixer):
    torch.manual_seed(0)
    model = linearized(STEPPED[mixer], 1)
    tokens, more = torch.randint(61, (SLOTS, LENGTH)), torch.randint(61, (1, 2))
    step = step_of(model)
    step.active.fill_(1)
    with torch.no_grad():
        whole = model(tokens).logits
        for slot in range(SLOTS):
            step.put(slot, model.read(tokens[slot : slot + 1, :PROMPT])[1], PROMPT)
        torch.testing.assert_close(steps(step, tokens[:, PROMPT:]), whole[:, PROMPT:], rtol=1e-4, atol=1e-4)
        found = model(more, state=step.take(1, LENGTH)).logits
        expected = model(torch.cat([tokens[1:2], more], 1)).logits[:, LENGTH:]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mixer", CASES)
def test_a_row_is_the_same_whatever_else_is_in_the_batch_and_rests_where_it_is_not_active(mixer):
    torch.manual_seed(0)
    model, tokens = linearized(STEPPED[mixer], n_layers=1), torch.randint(61, (SLOTS, LENGTH))
    together, alone = step_of(model), step_of(model)
    together.active.fill_(1)
    alone.active[1] = 1
    both = [steps(each, tokens) for each in (together, alone)]
    assert torch.equal(both[0][1], both[1][1])
    assert alone.positions.tolist() == [0, LENGTH, 0]
    (room,) = alone.states[0]
    assert not room[[0, 2]].any()
    assert room[1].any()
    before = room.clone()
    alone.active.zero_()
    steps(alone, tokens)
    assert torch.equal(before, room)


@pytest.mark.parametrize("mixer", [name for name in MIXERS if name != "t2r"])
def test_an_empty_slot_is_an_empty_state(mixer):
    torch.manual_seed(0)
    model, tokens = linearized(MIXERS[mixer], n_layers=1), torch.randint(61, (SLOTS, 5))
    step = step_of(model)
    step.active.fill_(1)
    steps(step, tokens)
    for slot in range(SLOTS):
        step.put(slot, None, 0)
    with torch.no_grad():
        torch.testing.assert_close(steps(step, tokens), model(tokens).logits, rtol=1e-4, atol=1e-4)


def test_matrices_in_bf16_change_logits_by_their_rounding_alone():
    torch.manual_seed(0)
    model, tokens = linearized(MIXERS["delta"], 1), torch.randint(61, (SLOTS, LENGTH))
    found = step_of(model, torch.bfloat16)
    found.active.fill_(1)
    with torch.no_grad():
        expected = model(tokens).logits
    assert 0 < (steps(found, tokens) - expected).norm() < 5e-2 * expected.norm()


@pytest.mark.parametrize("mixer", ["delta", "gated", "folded"])
def test_a_float64_model_is_stepped_in_float64(mixer):
    torch.manual_seed(0)
    model, tokens = linearized(STEPPED[mixer], 1).double(), torch.randint(61, (SLOTS, LENGTH))
    found = step_of(model, torch.float64)
    found.active.fill_(1)
    with torch.no_grad():
        torch.testing.assert_close(steps(found, tokens), model(tokens).logits.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("mixer", STEPPED)
def test_kernels_step_as_the_forward_pass_does(mixer):
    torch.manual_seed(0)
    model = linearized(STEPPED[mixer], 1).cuda()
    tokens = torch.randint(61, (SLOTS, LENGTH), device="cuda")
    with torch.no_grad():
        expected = model.float()(tokens).logits
        for dtype, most in ((torch.float32, 1e-3), (torch.bfloat16, 3e-2)):
            found = step_of(model, dtype)
            assert found.captures
            found.active.fill_(1)
            assert (steps(found, tokens) - expected).norm() < most * expected.norm()


def test_what_mixes_all_heads_behind_a_rotation_is_stepped_by_the_forward_pass():
    for linear in (
        MIXERS["t2r"],
        LinearMixer(features="relu", conv=4),
        LinearMixer(features="exp"),
        LinearMixer(features="softmax"),
    ):
        model = linearized(linear)
        assert not can_pack(model)
        assert type(decoding_step(model, 1, 8, dtype=torch.float32, state_dtype=torch.float32)) is ReadStep
    assert can_pack(linearized(MIXERS["t2r"], 0, 1))  # no layer is linear
    with pytest.raises(UserError, match="Linearized has no such steps"):
        Setup.of(EngineConfig(dtype="float16"), linearized(MIXERS["t2r"]))
