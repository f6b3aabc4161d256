"""Prompts and metrics of the common sense tasks. The expected prompts were printed by lm-evaluation-harness 0.4.13."""

import json
import re
from pathlib import Path

import pytest
import torch
import zstandard

from linscale.cli import main
from linscale.config import UserError
from linscale.data.tokenizer import load_tokenizer
from linscale.evaluate import sets as sets_module
from linscale.evaluate.likelihood import Likelihood
from linscale.evaluate.multiple_choice import FORMS, Question, choice_metrics, csr_tasks, word_metrics
from linscale.evaluate.sets import find_set, read_set
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
    for task in csr_tasks(sets, limit=12):
        assert task.obstacle(model, BYTES) is None
        results = task.run(model, BYTES)
        assert [result.metric for result in results] == list(task.metrics)
        for result in results:
            assert result.count == 12
            if result.metric != "loss":
                spread = (result.value * (1 - result.value) / 11) ** 0.5
                assert result.se == pytest.approx(spread)


def test_what_makes_another_number_makes_another_version(sets, monkeypatch):
    (whole, *_), (part, *_) = csr_tasks(sets), csr_tasks(sets, limit=3)
    versions = {whole.version(BYTES), part.version(BYTES)}
    monkeypatch.setitem(sets_module.CHECKSUMS, "boolq_dev", "0" * 64)
    assert len(versions | {whole.version(BYTES)}) == 3


def test_files_may_be_compressed_but_neither_missing_nor_altered(sets):
    file = sets / "piqa_valid.jsonl"
    content = file.read_bytes()
    records = read_set(file)
    file.unlink()
    with pytest.raises(UserError, match=re.escape(f"{file}: no such file, nor compressed")):
        csr_tasks(sets)
    packed = sets / "piqa_valid.jsonl.zst"
    packed.write_bytes(zstandard.compress(content))
    assert find_set(sets, "piqa_valid") == packed
    assert read_set(packed) == records
    packed.write_bytes(zstandard.compress(content.replace(b"cat", b"dog")))
    with pytest.raises(UserError, match=r"piqa_valid.jsonl.zst: its lines have sha256 .* restore the original file"):
        read_set(packed)


@pytest.mark.parametrize(
    ("options", "message"),
    [((), "suite csr: no files; name their folder with --data"), (("--data", ".", "--limit", "0"), "limit = 0")],
)
def test_options_are_explained(options, message, tmp_path, capsys):
    assert main(["evaluate", str(tmp_path), "--suite", "csr", *options]) == 2
    assert message in capsys.readouterr().err
