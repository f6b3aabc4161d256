"""Tasks of lm-evaluation-harness as ours: local files, one value for every metric, offline; skipped where it is not."""

import json
import sys
from pathlib import Path

import pytest
import torch

from linscale.cli import main
from linscale.cli.suite_options import HarnessOptions, Options, SetOptions
from linscale.cli.suites import build_tasks
from linscale.config import UserError
from linscale.data.tokenizer import load_tokenizer
from linscale.evaluate.harness_task import HarnessTask
from linscale.evaluate.zero_shot import zero_shot_task
from linscale.models import CONFIGS, build_model

BYTES = load_tokenizer("byte")


def test_without_the_harness_it_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    assert main(["evaluate", str(tmp_path), "--suite", "lm-eval:piqa"]) == 2
    assert capsys.readouterr().err == (
        "linscale: lm-eval:piqa: lm-eval is not installed: pip install 'linscale[eval]'\n"
    )


@pytest.fixture
def model():
    shape = {"vocab_size": 257, "d_model": 16, "n_layers": 1, "head_dim": 8, "d_ff": 16, "init_std": 0.3}
    return build_model(CONFIGS["tnl"](**shape)).eval()


@pytest.fixture
def folder(sets: Path, tmp_path: Path) -> Path:
    """Task files on local data: PIQA as the harness has it, one that generates, with two filters, both as a group."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    files = {"data_files": {"test": str(sets / "piqa_valid.jsonl")}, "cache_dir": str(tmp_path / "cache")}
    local = {"dataset_path": "json", "dataset_kwargs": files, "test_split": "test", "metadata": {"version": 3.0}}
    choice = {
        "task": "my_piqa", "output_type": "multiple_choice", "doc_to_text": "Question: {{goal}}\nAnswer:",
        "doc_to_target": "label", "doc_to_choice": "{{[sol1, sol2]}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean"}, {"metric": "acc_norm", "aggregation": "mean"}],
    }  # fmt: skip
    words = {
        "task": "my_words", "output_type": "generate_until", "doc_to_text": "{{goal}}", "doc_to_target": "{{sol1}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 2, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [{"name": "strict", "filter": [{"function": "take_first"}]},
                        {"name": "lower", "filter": [{"function": "lowercase"}, {"function": "take_first"}]}],
    }  # fmt: skip
    group = {"group": "mine", "task": ["my_piqa", "my_words"],
             "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]}  # fmt: skip
    (tasks := tmp_path / "tasks").mkdir()
    for name, content in (("a", {**local, **choice}), ("b", {**local, **words}), ("c", group)):
        (tasks / f"{name}.yaml").write_text(json.dumps(content))
    return tasks


def values(task, model):
    with torch.no_grad():
        return {result.metric: result for result in task.run(model, BYTES)}


@pytest.mark.filterwarnings("ignore")  # the harness's own
def test_a_task_gives_its_metrics_and_again_for_the_next_checkpoint(folder, sets, model):
    options = Options(harness=HarnessOptions(include=(folder,)))
    (task,) = build_tasks(["lm-eval:my_piqa"], options)
    ours = values(zero_shot_task("piqa", sets), model)
    for _ in range(2):
        found = values(task, model)
        assert list(found) == ["acc", "acc_norm", "samples"]
        assert found["samples"].value == found["samples"].count == 40
        for metric in ("acc", "acc_norm"):
            assert (found[metric].value, found[metric].count) == (ours[metric].value, 40)
            assert found[metric].se == pytest.approx(ours[metric].se)


@pytest.mark.filterwarnings("ignore")
def test_groups_have_their_means_and_their_subtasks(folder, model):
    options = Options(harness=HarnessOptions(include=(folder,)), sets=SetOptions(limit=6))
    (task,) = build_tasks(["lm-eval:mine"], options)
    found = values(task, model)
    assert set(found) == {
        "acc", "my_piqa/acc", "my_piqa/acc_norm", "my_words/exact_match,strict", "my_words/exact_match,lower",
        "samples",
    }  # fmt: skip
    assert found["my_piqa/acc"].count == found["my_words/exact_match,strict"].count == 6
    assert (found["acc"].value, found["samples"].value) == (found["my_piqa/acc"].value, 12)


@pytest.mark.filterwarnings("ignore")
def test_a_version_has_everything_that_makes_another_number(folder, sets):
    def version(**options):
        return HarnessTask("my_piqa", (folder,), **options).version(BYTES)

    import lm_eval

    first = version()
    assert first == version()
    assert f"lm_eval{lm_eval.__version__}-v3.0" in first
    versions = {first, version(limit=3), version(shots=0)}
    file = folder / "a.yaml"
    file.write_text(file.read_text().replace("Question", "Riddle"))
    versions.add(version())
    data = sets / "piqa_valid.jsonl"
    data.write_text(data.read_text().replace("cat", "dog"))
    versions.add(version())
    assert len(versions) == 5


@pytest.mark.filterwarnings("ignore")
def test_what_keeps_a_task_from_running_is_said_without_a_model(folder, tmp_path, capsys, monkeypatch):
    def refuse(*arguments, **named):
        raise AssertionError("the network was asked")

    def few_tasks(include):
        """Of all of the harness's, which take seconds to list, those of PIQA."""
        folders = [Path(lm_eval.__file__).parent / "tasks" / "piqa", *include]
        return TaskManager(include_path=folders, include_defaults=False)

    import lm_eval
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("linscale.evaluate.harness_task._all_tasks", few_tasks)
    with pytest.raises(UserError, match="lm-eval:my_pipa: the harness has no such task; did you mean my_piqa"):
        HarnessTask("my_pipa", (folder,)).prepare()
    with pytest.raises(UserError, match=r"include = .*none: no such folder"):
        HarnessTask("piqa", (tmp_path / "none",)).prepare()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(
        UserError, match=r"lm-eval:piqa: cannot be loaded \(.*\); if its data are not on this machine, --hub"
    ):
        HarnessTask("piqa").prepare()
    for words in (["--suite", "lm-eval:"], ["--suite", "lm-eval"]):
        assert main(["evaluate", str(tmp_path), *words]) == 2
        assert "no such suite; there are ppl" in capsys.readouterr().err
