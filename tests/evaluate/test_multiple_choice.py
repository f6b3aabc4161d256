"""Prompts and metrics of the common sense tasks. The expected prompts were printed by lm-evaluation-harness 0.4.13."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from linscale.config import UserError
from linscale.data.sets import SETS
from linscale.data.tokenizer import load_tokenizer
from linscale.evaluate.likelihood import Likelihood
from linscale.evaluate.mmlu import SUBJECTS
from linscale.evaluate.multiple_choice import choice_metrics, word_metrics
from linscale.evaluate.questions import FORMS, Question
from linscale.evaluate.zero_shot import zero_shot_task
from linscale.models import CONFIGS, build_model

BYTES = load_tokenizer("byte")
PROMPTS = json.loads((Path(__file__).parent / "harness_prompts.json").read_text(encoding="utf-8"))


@pytest.fixture
def model():
    shape = {"vocab_size": 257, "d_model": 16, "n_layers": 1, "head_dim": 8, "d_ff": 16, "init_std": 0.3}
    return build_model(CONFIGS["tnl"](**shape)).eval()


def test_every_task_has_its_prompt_here():
    assert {case["task"] for case in PROMPTS} == set(FORMS)


@pytest.mark.parametrize("case", PROMPTS, ids=lambda case: case["task"])
def test_prompts_are_the_harness_s(case):
    question = FORMS[case["task"]].question(case["record"])
    assert [list(pair) for pair in question.pairs] == case["pairs"]
    assert question.answer == case["answer"]
    if case["task"] not in ("winogrande", "lambada_openai"):
        assert question.lengths == tuple(len(continuation) - 1 for _, continuation in case["pairs"])


def test_metrics_take_the_first_of_the_best_choices():
    pairs = (("a", " b"),) * 3
    questions = [Question(pairs, (1, 2, 4), answer) for answer in (0, 2, 1)]
    answers = [[Likelihood(nats, False) for nats in total] for total in ((-2, -2, -4), (-1, -4, -2), (-3, -2, -4))]
    assert choice_metrics(questions, answers) == {"acc": [1.0, 0.0, 1.0], "acc_norm": [0.0, 1.0, 1.0]}
    words = [[Likelihood(-2.0, True)], [Likelihood(-4.0, False)]]
    assert word_metrics(words) == {"acc": [1.0, 0.0], "loss": [2.0, 4.0]}


@torch.no_grad()
def test_values_come_with_counts_and_standard_errors(model, sets):
    for name in sorted(set(FORMS) - {"mmlu"}):
        task = zero_shot_task(name, sets, limit=12)
        assert task.obstacle(model, BYTES) is None
        results = task.run(model, BYTES)
        assert [result.metric for result in results] == list(task.metrics)
        for result in results:
            assert result.count == 12
            if result.metric != "loss":
                spread = (result.value * (1 - result.value) / 11) ** 0.5
                assert result.se == pytest.approx(spread)


@torch.no_grad()
def test_mmlu_has_every_subject_and_means_of_questions(model, sets):
    task = zero_shot_task("mmlu", sets)
    results = {result.metric: result for result in task.run(model, BYTES)}
    assert list(results) == list(task.metrics)
    assert len(results) == 57 + 4 + 1
    count = len((sets / "mmlu_test.jsonl").read_text().splitlines())
    assert results["acc"].count == count == sum(results[f"acc_{name}"].count for name in SUBJECTS)
    right = sum(results[f"acc_{name}"].value * results[f"acc_{name}"].count for name in SUBJECTS)
    assert results["acc"].value == pytest.approx(right / count)
    one_each = {r.metric: r for r in zero_shot_task("mmlu", sets, limit=1).run(model, BYTES)}
    assert (one_each["acc"].count, one_each["acc"].se, one_each["acc_stem"].count) == (57, None, 19)


@torch.no_grad()
def test_texts_are_encoded_once_for_all_checkpoints(model, sets, monkeypatch):
    task = zero_shot_task("piqa", sets)
    first = task.run(model, BYTES)
    monkeypatch.setattr("linscale.evaluate.multiple_choice.encode_pairs", None)
    assert task.run(model, BYTES) == first


def test_what_makes_another_number_makes_another_version(sets, monkeypatch):
    whole, part = zero_shot_task("boolq", sets), zero_shot_task("boolq", sets, limit=3)
    versions = {whole.version(BYTES), part.version(BYTES)}
    monkeypatch.setitem(SETS, "boolq_dev", replace(SETS["boolq_dev"], sha256="0" * 64))
    assert len(versions | {whole.version(BYTES)}) == 3


def test_a_file_is_read_before_a_model_is_there(sets):
    file = sets / "sciq_validation.jsonl"
    file.write_bytes(file.read_bytes() + b"{}\n")
    with pytest.raises(UserError, match=r"41 lines, not 40, expected .* restore the original file"):
        zero_shot_task("sciq", sets)
    file.unlink()
    with pytest.raises(UserError, match=f"sciq_validation.jsonl: not in {re.escape(str(sets))} nor shipped"):
        zero_shot_task("sciq", sets)
