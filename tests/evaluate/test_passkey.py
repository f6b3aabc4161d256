"""Passkey: prompts of their length for any tokenizer, scored from shared filler as each would be alone."""

import math
import re
from types import SimpleNamespace

import pytest
import torch

from linscale.data.tokenizer import load_tokenizer, train_bpe
from linscale.evaluate.passkey import HAYSTACK, NEEDLE, QUESTION, Passkey, passkey_tasks
from linscale.generate import states
from linscale.generate.sample import stream
from linscale.models import CONFIGS, build_model
from tests.quick import quick

BYTES = load_tokenizer("byte")
BPE = train_bpe([HAYSTACK.text + NEEDLE + QUESTION], 300)
TOKENIZERS = pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
CASES = {"tnl": 0, "hgrn2": 0, "cosformer2": 0, "llama": 0, "hgrn2 in half": 2}


def tiny(case):
    shape = {"vocab_size": 300, "d_model": 16, "n_layers": 2, "head_dim": 8, "d_ff": 16, "init_std": 0.5}
    return build_model(CONFIGS[case.split()[0]](**shape, softmax_every=CASES[case])).double().eval()


def prompts(task, tokenizer):
    """Tokens and key of each."""
    filler = HAYSTACK.filler(tokenizer)
    for key, depth in task.draws():
        yield filler.whole(filler.prompt(task.length, depth, NEEDLE.format(key=key), QUESTION)), key


@TOKENIZERS
def test_a_prompt_has_its_length_and_says_its_key_twice_somewhere(tokenizer):
    task, places, keys = Passkey(300, examples=40), set(), set()
    for tokens, key in prompts(task, tokenizer):
        text = tokenizer.decode(tokens)
        assert (len(tokens), tokens[0]) == (300, tokenizer.eos_id)
        assert re.findall(r"\d+", text) == [key, key]
        assert text.endswith("\n\nWhat is the pass key? The pass key is")
        assert len(key) == 5
        places.add(text.index(key))
        keys.add(key)
    assert len(keys) > 38
    assert len(places) > 3


@pytest.mark.parametrize("case", quick(CASES, "cosformer2"))
@TOKENIZERS
@torch.no_grad()
def test_keys_are_scored_as_in_prompts_read_alone(case, tokenizer, monkeypatch):
    model, task = tiny(case), Passkey(180, examples=5)
    nats, right = [], []
    for tokens, key in prompts(task, tokenizer):
        wanted = tokenizer.encode(f" {key}")
        logits = model(torch.tensor([[*tokens, *wanted]])).logits[0, len(tokens) - 1 : -1]
        nats.append(-logits.log_softmax(-1).gather(1, torch.tensor(wanted)[:, None]).sum().item())
        right.append(list(stream(model, tokenizer, tokens, max_tokens=len(wanted), temperature=0)) == wanted)
    for most in (1 << 29, 1):
        monkeypatch.setattr(states, "MOST_STATE", most)
        accuracy, loss = task.run(model, tokenizer)
        assert (accuracy.value, accuracy.count, loss.count) == (sum(right) / 5, 5, 5)
        assert loss.value == pytest.approx(sum(nats) / 5)
        assert loss.se == pytest.approx(torch.tensor(nats).double().std().item() / math.sqrt(5))


@torch.no_grad()
def test_who_finds_the_key_is_right_and_who_says_another_is_not(finder):
    task = Passkey(300, examples=6)
    for answer, expected in (
        (lambda text: " " + re.findall(r"\d{5}", text)[0], 1.0),
        (lambda text: " " + re.findall(r"\d{5}", text)[0][:4], 0.0),
        (lambda text: " 54321", 0.0),
    ):
        accuracy, loss = task.run(finder(answer, "The pass key is"), BYTES)
        assert accuracy.value == expected
        said = 6 * (math.log(256 + math.e) - 1)  # of a logit of 1 among 256 of 0, at every byte
        assert (loss.value == pytest.approx(said)) == (expected == 1.0)


def test_lengths_too_short_and_names():
    assert Passkey(90).obstacle(SimpleNamespace(), BYTES) == (
        "length 90: key and question take 100 tokens; set longer lengths"
    )
    assert Passkey(256).obstacle(tiny("tnl"), BYTES) is None
    assert [task.name for task in passkey_tasks()] == [f"recall-passkey-{n}" for n in (256, 1024, 4096)]
    assert Passkey(256, 8).version(BYTES) != Passkey(256, 9).version(BYTES) != Passkey(256, 9).version(BPE)
