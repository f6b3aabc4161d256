"""Recall tasks against models whose memory is known: one looks up what stood behind a token, one knows nothing."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from linscale.data.tokenizer import load_tokenizer
from linscale.evaluate import recall
from linscale.evaluate.recall import IGNORED, KINDS, Recall, recall_tasks

BYTES = load_tokenizer("byte")


class Lookup(nn.Module):
    """Sure of the token that stood behind the last earlier occurrence of the current one; knows no first ones."""

    def __init__(self, sure=True):
        super().__init__()
        self.weight, self.sure = nn.Parameter(torch.zeros(())), sure

    def forward(self, tokens):
        logits = torch.zeros(*tokens.shape, BYTES.vocab_size)
        for row, text in enumerate(tokens.tolist()):
            behind = {}
            for place, token in enumerate(text):
                if self.sure and token in behind:
                    logits[row, place, behind[token]] = 50.0
                if place + 1 < len(text):
                    behind[token] = text[place + 1]
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize(("kind", "expected"), [("mqar", 1.0), ("copy", 7 / 8), ("induction", 1.0)])
def test_a_lookup_recalls_all_that_stood_behind_a_token(kind, expected):
    found = {result.metric: result for result in Recall(kind, 8, examples=6).run(Lookup(), BYTES)}
    assert found["accuracy"].value == pytest.approx(expected)
    assert found["accuracy"].count == 6 * (1 if kind == "induction" else 8)
    if expected == 1.0:
        assert found["loss"].value < 1e-6
        assert found["loss"].se < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_knows_nothing_is_at_chance(kind):
    found = {result.metric: result.value for result in Recall(kind, 8, examples=6).run(Lookup(sure=False), BYTES)}
    assert found["loss"] == pytest.approx(math.log(BYTES.vocab_size))
    assert found["accuracy"] <= 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_scored_can_be_known_from_what_was_shown(kind):
    inputs, targets = Recall(kind, 5, examples=3).sequences(BYTES)
    assert (inputs[:, 0] == BYTES.eos_id).all()
    for text, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
        scored = [place for place, target in enumerate(wanted) if target != IGNORED]
        assert len(scored) == (1 if kind == "induction" else 5)
        assert all(wanted[place] in text[: place + 1] for place in scored)
        if kind in ("copy", "selective"):  # in the order in which they came
            shown = [text.index(wanted[place]) for place in scored]
            assert shown == sorted(shown)


def test_the_same_sequences_and_score_whatever_the_batch(monkeypatch):
    task = Recall("mqar", 8, examples=6)
    assert torch.equal(task.sequences(BYTES)[0], Recall("mqar", 8, examples=6).sequences(BYTES)[0])
    whole = task.run(Lookup(), BYTES)
    monkeypatch.setattr(recall, "MOST_LOGITS", 1)
    assert task.run(Lookup(), BYTES) == whole


def test_a_vocabulary_too_small_is_an_obstacle_and_names_are_unique():
    small = SimpleNamespace(vocab_size=17)
    assert Recall("mqar", 8).obstacle(None, small) == "recall-mqar-8 takes 18 tokens, the vocabulary has 17"
    assert Recall("mqar", 7).obstacle(None, small) is None
    names = [task.name for task in recall_tasks()]
    assert len(set(names)) == len(names) == 12
