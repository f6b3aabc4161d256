"""Loss on whole passages: one forward pass each, in every unit; and the tasks of the suite that they are part of."""

import math

import pytest
import torch

from linscale.cli.suite_options import Options, SetOptions, TextOptions
from linscale.cli.suites import build_tasks
from linscale.data.sets import find_set, read_set
from linscale.data.tokenizer import load_tokenizer
from linscale.evaluate import likelihood
from linscale.evaluate.passages import Passages
from linscale.models import CONFIGS, build_model
from tests.quick import quick

BYTES = load_tokenizer("byte")


@pytest.fixture(params=quick(["tnl", "llama"], "llama"))
def model(request):
    shape = {"vocab_size": 257, "d_model": 16, "n_layers": 2, "head_dim": 8, "d_ff": 16, "init_std": 0.3}
    return build_model(CONFIGS[request.param](**shape)).double().eval()


@torch.no_grad()
def test_every_passage_is_one_forward_pass_in_every_unit(model, sets, monkeypatch):
    path = find_set(sets, "lambada_openai_test")
    texts = [record["text"] for record in read_set(path)]
    nats, tokens = [], []
    for text in texts:
        ids = torch.tensor([[BYTES.eos_id, *text.encode()]])
        nats.append(model(ids[:, :-1], targets=ids[:, 1:]).loss.sum().item())
        tokens.append(len(text.encode()))
    first = Passages(path).run(model, BYTES)
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", 50)
    for results in (first, Passages(path).run(model, BYTES)):
        found = {result.metric: result for result in results}
        assert found["loss"].value == pytest.approx(sum(nats) / sum(tokens))
        assert found["loss"].count == sum(tokens)
        assert found["nats_per_word"].value == pytest.approx(sum(nats) / sum(len(text.split()) for text in texts))
        assert found["bits_per_byte"].value == pytest.approx(sum(nats) / math.log(2) / sum(tokens))
    # The standard error of a ratio, by leaving one passage out at a time.
    ratios = [(sum(nats) - n) / (sum(tokens) - t) for n, t in zip(nats, tokens, strict=True)]
    spread = sum((ratio - sum(ratios) / len(ratios)) ** 2 for ratio in ratios)
    assert found["loss"].se == pytest.approx(math.sqrt(spread * (len(nats) - 1) / len(nats)), rel=0.05)


def test_the_suite_is_wikitext_lambada_and_the_files_given(sets, tmp_path):
    (tmp_path / "story.txt").write_text("the cat sat")
    options = Options(sets=SetOptions(data=sets, limit=3), text=TextOptions(text=(tmp_path / "story.txt",)))
    names = [task.name for task in build_tasks(["ppl"], options)]
    assert names == ["text-wikitext2_raw_test", "lambada_openai", "text-story", "text-lambada_openai_test"]
    whole, part = Passages(find_set(sets, "lambada_openai_test")), Passages(find_set(sets, "lambada_openai_test"), 3)
    assert whole.version(BYTES) != part.version(BYTES)
    assert len(part.texts) == 3


def test_wikitext_is_the_text_that_words_are_counted_in():
    (task,) = build_tasks(["ppl"], Options())
    assert len(task.text.split()) == 241_211
    assert len(task.text.encode()) == 1_290_590
