"""Tasks without a part of the mixers, against models whose output projections are zero."""

import copy

import pytest
import torch

from linscale.cli.suite_options import AblationOptions, Options, RecallOptions
from linscale.cli.suites import build_tasks
from linscale.data.tokenizer import load_tokenizer
from linscale.evaluate.recall import Recall
from linscale.evaluate.without import PARTS, Without, without
from linscale.layers import SoftmaxAttention
from linscale.models import CONFIGS, build_model

BYTES = load_tokenizer("byte")
SHAPE = {"vocab_size": 257, "d_model": 16, "n_layers": 4, "head_dim": 8, "d_ff": 16, "init_std": 0.3}
TASK = Recall("mqar", 4, examples=4)


@pytest.fixture(scope="module")
def hybrid():
    return build_model(CONFIGS["hgrn2"](**SHAPE, softmax_every=2)).double().eval()


def values(task, model):
    with torch.no_grad():
        return [result.value for result in task.run(model, BYTES)]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_left_out_adds_nothing(hybrid, part):
    cut = copy.deepcopy(hybrid)
    for block in cut.blocks:
        if part == "mixers" or isinstance(block.mixer, SoftmaxAttention) == (part == "softmax"):
            block.mixer.o_proj.weight.data.zero_()
    found = values(Without(TASK, part), hybrid)
    assert found == pytest.approx(values(TASK, cut), rel=1e-12)
    assert found != pytest.approx(values(TASK, hybrid), rel=1e-3)


def test_without_mixers_no_token_knows_of_another_one(hybrid):
    tokens = torch.randint(0, 257, (1, 9))
    other = torch.cat([(tokens[:, :-1] + 1) % 257, tokens[:, -1:]], dim=1)
    with torch.no_grad():
        whole = [hybrid(each).logits[0, -1] for each in (tokens, other)]
        assert not torch.allclose(*whole)
        with without(hybrid, "mixers"):
            assert torch.equal(*(hybrid(each).logits[0, -1] for each in (tokens, other)))
        assert torch.equal(hybrid(tokens).logits[0, -1], whole[0])  # and it is as it was


def test_a_model_without_such_a_layer_says_so():
    linear = build_model(CONFIGS["hgrn2"](**SHAPE)).eval()
    assert Without(TASK, "linear").obstacle(linear, BYTES) is None
    assert Without(TASK, "softmax").obstacle(linear, BYTES) == "the model has no softmax layer to leave out"
    recurrent = build_model(CONFIGS["recurrent_transformer"](**{**SHAPE, "n_layers": 1}, recurrence={"block": 4}))
    assert Without(TASK, "mixers").obstacle(recurrent, BYTES) is not None


def test_the_option_adds_every_task_once_more():
    options = Options(
        recall=RecallOptions(sizes=(4,), examples=2, passkey_lengths="256"),
        ablation=AblationOptions(without=("softmax", "mixers")),
    )
    names = [task.name for task in build_tasks(["recall"], options)]
    plain = names[:5]
    assert names == [*plain, *(f"without-{part}-{name}" for part in ("softmax", "mixers") for name in plain)]
