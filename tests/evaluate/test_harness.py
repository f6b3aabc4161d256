"""Our scorer against lm-evaluation-harness on the same files, and the adapter; skipped where lm-eval is not there."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from linscale.config import UserError
from linscale.data.sets import find_set
from linscale.data.tokenizer import load_tokenizer, train_bpe
from linscale.evaluate import task as module
from linscale.evaluate.harness import harness_model
from linscale.evaluate.mmlu import AREAS, SUBJECTS
from linscale.evaluate.questions import FORMS
from linscale.evaluate.text import TextLoss
from linscale.evaluate.zero_shot import zero_shot_task
from linscale.generate.sample import sample
from linscale.models import CONFIGS, build_model

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
from lm_eval.tasks import TaskManager  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own

SHAPE = {"d_model": 32, "n_layers": 2, "head_dim": 16, "d_ff": 32, "init_std": 0.2}
BPE = train_bpe(["the cat sat on a warm mat and ran far away; Question: Answer: " * 30], 300)


def local_task(manager: Any, name: str, file: Path) -> dict[str, Any]:
    """The harness's own task, but reading a local file."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(manager.task_index[name].yaml_path)
    for key in ("dataset_name", "training_split", "validation_split", "tag", "fewshot_split", "fewshot_config"):
        config.pop(key, None)
    config |= {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(file.parent / "cache")},
        "test_split": "test",
    }
    if name == "boolq":  # the field that super_glue has for `answer`
        config["doc_to_target"] = "{{answer|int}}"
    return config


def one_by_one(model, pairs):
    """Likelihoods by a whole forward pass each."""
    for context, continuation in pairs:
        tokens = torch.tensor([[*context, *continuation]])
        logits = model(tokens).logits[0, len(context) - 1 : -1]
        nats = logits.log_softmax(-1).gather(1, torch.tensor(continuation)[:, None]).sum().item()
        yield nats, logits.argmax(-1).tolist() == list(continuation)


def run_harness(manager, adapter, tasks):
    adapter._loglikelihood_tokens = lambda requests, disable_tqdm: list(
        one_by_one(adapter.model, [request[1:] for request in requests])
    )
    return lm_eval.simple_evaluate(
        model=adapter, tasks=tasks, task_manager=manager, log_samples=True, bootstrap_iters=2
    )


def require_same_samples(samples, answers, questions):
    """The same prompts, and the same log-likelihood of every choice."""
    ordered = sorted(samples, key=lambda each: each["doc_id"])
    for theirs, found, question in zip(ordered, answers, questions, strict=True):
        assert [tuple(pair) for pair in theirs["arguments"]] == list(question.pairs)
        for ((nats, greedy),), answer in zip(theirs["resps"], found, strict=True):
            assert nats == pytest.approx(answer.nats, abs=1e-3)
            assert greedy == answer.greedy


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["hgrn2", "llama"])
def test_every_choice_and_every_accuracy_is_the_harness_s(arch: str, sets: Path) -> None:
    tokenizer = BPE if arch == "hgrn2" else load_tokenizer("byte")
    model = build_model(CONFIGS[arch](vocab_size=tokenizer.vocab_size, **SHAPE)).eval()
    manager = TaskManager()
    names = [name for name in FORMS if name != "mmlu"]
    tasks = [local_task(manager, name, find_set(sets, FORMS[name].file)) for name in names]
    with torch.no_grad():
        theirs = run_harness(manager, harness_model(model, tokenizer), tasks)
        for name in names:
            task = zero_shot_task(name, sets)
            require_same_samples(theirs["samples"][name], task.answers(model, tokenizer), task.questions)
            results = theirs["results"][name]
            for result in task.run(model, tokenizer):
                if result.metric == "loss":
                    assert math.exp(result.value) == pytest.approx(results["perplexity,none"], rel=1e-4)
                    continue
                assert result.value == results[f"{result.metric},none"], (name, result.metric)
                assert result.se == pytest.approx(results[f"{result.metric}_stderr,none"])
                assert result.count == len(theirs["samples"][name])


@pytest.mark.slow
@torch.no_grad()
def test_every_subject_and_every_mean_of_mmlu_is_the_harness_s(sets: Path) -> None:
    from lm_eval.api.metrics import aggregate_subtask_metrics, pooled_sample_stderr

    model = build_model(CONFIGS["tnl"](vocab_size=BPE.vocab_size, **SHAPE)).eval()
    task, manager = zero_shot_task("mmlu", sets), TaskManager()
    answers, tasks, start = task.answers(model, BPE), [], 0
    for subject in SUBJECTS:
        records = [record for record in task.records if record["subject"] == subject]
        (file := sets / f"{subject}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        tasks.append(local_task(manager, f"mmlu_{subject}", file))
    theirs = run_harness(manager, harness_model(model, BPE), tasks)
    for subject in SUBJECTS:
        samples = theirs["samples"][f"mmlu_{subject}"]
        end = start + len(samples)
        require_same_samples(samples, answers[start:end], task.questions[start:end])
        start = end
    found = {result.metric: result for result in task.run(model, BPE)}
    for metric, subjects in {"acc": SUBJECTS, **{f"acc_{area}": names for area, names in AREAS.items()}}.items():
        parts = [theirs["results"][f"mmlu_{subject}"] for subject in subjects]
        sizes = [found[f"acc_{subject}"].count for subject in subjects]
        mean = aggregate_subtask_metrics([part["acc,none"] for part in parts], sizes)
        assert found[metric].value == pytest.approx(mean)
        assert found[metric].se == pytest.approx(
            pooled_sample_stderr([part["acc_stderr,none"] for part in parts], sizes)
        )
        for subject, part in zip(subjects, parts, strict=True):
            assert found[f"acc_{subject}"].value == part["acc,none"]
    assert manager.task_index["mmlu"].cfg["aggregate_metric_list"] == [{"metric": "acc", "weight_by_size": True}]
    for area, subjects in AREAS.items():
        assert manager.task_index[f"mmlu_{area}_tasks"].tags == {f"mmlu_{name}" for name in subjects}


@pytest.fixture
def adapter():
    model = build_model(CONFIGS["hgrn2"](vocab_size=BPE.vocab_size, **SHAPE)).eval()
    return harness_model(model, BPE)


def test_whole_texts_and_generation_run_in_the_harness(adapter, tmp_path: Path) -> None:
    text = "the cat sat on a warm mat"
    (file := tmp_path / "texts.jsonl").write_text(json.dumps({"text": text}) + "\n")
    (answer,) = adapter.generate_until([request(text, {"until": ["\n"], "max_gen_toks": 6})])
    files = {"data_files": {"test": str(file)}, "cache_dir": str(tmp_path / "cache")}
    local = {"dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}
    rolling = {"task": "whole", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    greedy = {"task": "greedy", "output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": answer}
    greedy["generation_kwargs"] = {"until": ["\n"], "max_gen_toks": 6, "do_sample": False}
    metrics = (rolling, "bits_per_byte"), (greedy, "exact_match")
    tasks = [{**local, **task, "metric_list": [{"metric": metric}]} for task, metric in metrics]
    results = lm_eval.simple_evaluate(model=adapter, tasks=tasks, bootstrap_iters=0)["results"]
    (nats,) = adapter.loglikelihood_rolling([request(text)])
    assert results["whole"]["bits_per_byte,none"] == pytest.approx(-nats / math.log(2) / len(text))
    assert results["greedy"]["exact_match,none"] == 1.0


def test_wikitext_in_the_harness_is_our_loss_on_the_pages_as_it_writes_them(adapter, tmp_path: Path) -> None:
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    pages = [" \n = The cat = \n \n The cat sat on a warm @-@ mat , and ran 1 @,@ 000 ( far ) away . \n",
             " \n = Mats = \n \n A \" mat \" is warm . \n"]  # fmt: skip
    (file := tmp_path / "pages.jsonl").write_text("".join(json.dumps({"page": page}) + "\n" for page in pages))
    task = local_task(TaskManager(), "wikitext", file)
    theirs = lm_eval.simple_evaluate(model=adapter, tasks=[task], bootstrap_iters=0)["results"]["wikitext"]
    nats = 0.0
    for number, page in enumerate(pages):
        (path := tmp_path / f"{number}.txt").write_text(wikitext_detokenizer({"page": page}))
        with torch.no_grad():
            loss, *_ = TextLoss(path, window=10_000).run(adapter.model, BPE)
        nats += loss.value * loss.count
    words = sum(len(re.split(r"\s+", page)) for page in pages)
    size = sum(len(page.encode()) for page in pages)
    assert theirs["word_perplexity,none"] == pytest.approx(math.exp(nats / words), rel=1e-5)
    assert theirs["bits_per_byte,none"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def request(*arguments: Any) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


def test_the_adapter_scores_as_one_forward_pass_a_request_does(adapter) -> None:
    texts = [("the cat", " sat"), ("the cat ", "sat"), ("", "the cat"), ("the cat", " ran"), (" ", "mat")]
    found = adapter.loglikelihood([request(*text) for text in texts], disable_tqdm=True)
    eos, encode = BPE.eos_id, BPE.encode
    cat = encode("the cat")
    pairs = [(cat, encode("the cat sat")[len(cat) :])] * 2
    pairs += [([eos], cat), (cat, encode("the cat ran")[len(cat) :]), ([eos], encode(" mat"))]
    for (nats, greedy), (expected, best) in zip(found, one_by_one(adapter.model, pairs), strict=True):
        assert (nats, greedy) == (pytest.approx(expected, abs=1e-4), best)


def test_a_whole_text_is_scored_in_pieces_as_in_one(adapter, monkeypatch) -> None:
    text = "the cat sat on a warm mat and ran far away"
    ((expected, _),) = one_by_one(adapter.model, [([BPE.eos_id], BPE.encode(text))])
    for piece in (8192, 5):
        monkeypatch.setattr(module, "PIECE", piece)
        assert adapter.loglikelihood_rolling([request(text)]) == [pytest.approx(expected, abs=1e-3)]


def test_generation_is_greedy_and_ends_before_a_stop_string(adapter) -> None:
    prompts = [request("the cat", {"until": [], "max_gen_toks": 12})]
    (whole,) = adapter.generate_until(prompts)
    assert len(whole) > 3
    stop = whole[2:4]
    (cut,) = adapter.generate_until([request("the cat", {"until": [stop], "max_gen_toks": 12, "do_sample": False})])
    assert cut == whole[: whole.index(stop)]
    assert (
        sample(adapter.model, BPE, "", max_tokens=12, temperature=0)
        == adapter.generate_until([request("", {"until": "\0", "max_gen_toks": 12})])[0]
    )
    with pytest.raises(UserError, match="do_sample = True: expected greedy"):
        adapter.generate_until([request("a", {"do_sample": True, "temperature": 1.0})])
