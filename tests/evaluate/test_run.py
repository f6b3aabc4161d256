"""The evaluation job: only what is missing, by several processes, and nothing lost."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from linscale.cli import main
from linscale.config import UserError, parse
from linscale.data.prepare import PrepareOptions, prepare
from linscale.data.tokenizer import train_bpe
from linscale.evaluate.recall import Recall
from linscale.evaluate.records import Evaluations
from linscale.evaluate.run import evaluate, find_runs
from linscale.evaluate.task import Result
from linscale.run_folder import latest_records, read_json, read_records
from linscale.study.query import query
from linscale.train.config import RunConfig
from linscale.train.trainer import train

CLAIM = """
import sys, linscale.evaluate.records as records
from pathlib import Path
from linscale.run_folder import read_json
run = Path(sys.argv[1])
with records.Evaluations(run, read_json(run / "config.json")).claimed(2) as mine:
    assert mine
    print("claimed", flush=True)
    sys.stdin.read()
"""
SHARE = """
import sys, time
from pathlib import Path
from linscale.evaluate.run import evaluate, find_runs
from linscale.evaluate.task import Result

class Slow:
    metrics = ("value",)
    def __init__(self, number): self.name = f"slow-{number}"
    def version(self, tokenizer): return "1"
    def obstacle(self, model, tokenizer): return None
    def run(self, model, tokenizer):
        time.sleep(0.1)
        return [Result("value", 1.0, None, 1)]

evaluate(find_runs(Path(sys.argv[1])), [Slow(number) for number in range(5)])
"""
TASKS = [Recall("mqar", 4, examples=4), Recall("induction", 4, examples=4)]


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs with checkpoints at 1 and 2."""
    (tmp_path / "text.txt").write_text("".join(f"the cat sat on mat {k}\n" for k in range(200)))
    options = PrepareOptions(document_bytes=300, val_fraction=0.2, workers=1)
    prepare([str(tmp_path / "text.txt")], tokenizer="byte", out=tmp_path / "data", options=options)
    model = {"arch": "tnl", "vocab_size": 257, "d_model": 16, "n_layers": 1, "head_dim": 8, "d_ff": 16}
    recipe = {"tokens": 256, "batch_tokens": 128, "length": 32, "checkpoints": 2, "validation_tokens": 64}
    for name in ("a", "b"):
        values = {"name": name, "model": model, "data": {"path": str(tmp_path / "data")}}
        train(tmp_path / "study" / name, parse(RunConfig, {**values, "train": {**recipe, "device": "cpu"}}))
    return find_runs(tmp_path / "study")


def test_what_is_recorded_is_not_measured_again_and_what_is_missing_is(runs: list[Path]) -> None:
    told: list[tuple[str, int, int]] = []
    first = evaluate(runs, TASKS[:1], progress=lambda *words: told.append(words))
    assert (first.done, first.known, first.left_out) == (4, 0, {})
    assert told[0] == ("a  step 1  recall-mqar-4", 0, 4)
    again = evaluate(runs, TASKS)
    assert (again.done, again.known) == (4, 4)
    assert evaluate(runs, TASKS).done == 0
    assert evaluate(runs, [Recall("mqar", 4, examples=5)], last=True).done == 2  # another version
    records = [r for r in latest_records(runs[0] / "evaluations.jsonl") if r["task"] == "recall-mqar-4"]
    assert {(r["run"], r["step"], r["metric"], r["tokens"]) for r in records} >= {("a", 1, "accuracy", 128)}


def test_a_record_cut_by_a_kill_is_made_again(runs: list[Path]) -> None:
    evaluate(runs, TASKS)
    file = runs[0] / "evaluations.jsonl"
    whole = latest_records(file)
    file.write_bytes(file.read_bytes()[:-20])
    assert evaluate(runs, TASKS).done == 1
    assert latest_records(file) == whole
    assert sum(r["task"].startswith("recall") for r in read_records(file)) == 2 * 2 * 2 + 1


def test_values_of_parts_are_recorded_where_there_are_some(runs: list[Path]) -> None:
    class Parts:
        name, metrics = "parts", ("whole", "parted")

        def version(self, tokenizer: object) -> str:
            return "1"

        def obstacle(self, model: object, tokenizer: object) -> None:
            return None

        def run(self, model: object, tokenizer: object) -> list[Result]:
            return [Result("whole", 1.0, None, 1), Result("parted", 0.5, None, 2, cells=(0.0, 1.0))]

    evaluate(runs[:1], [Parts()], last=True)
    found = {r["metric"]: r.get("cells") for r in latest_records(runs[0] / "evaluations.jsonl") if r["task"] == "parts"}
    assert found == {"whole": None, "parted": [0.0, 1.0]}
    assert '"cells": null' not in (runs[0] / "evaluations.jsonl").read_text()
    asked = query(runs[0], "select metric, cells from evaluations where task = 'parts' order by metric").fetchall()
    assert asked == [("parted", [0.0, 1.0]), ("whole", None)]


@pytest.mark.slow
def test_a_checkpoint_that_another_process_measures_is_waited_for_and_not_measured_twice(runs: list[Path]) -> None:
    settings = read_json(runs[0] / "config.json")
    told: list[str] = []
    with subprocess.Popen([sys.executable, "-c", CLAIM, str(runs[0])], stdin=PIPE, stdout=PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "claimed\n"
        with Evaluations(runs[0], settings).claimed(2) as mine:
            assert not mine

        def tell(text: str, done: int, total: int) -> None:
            told.append(text)
            if text == "waiting for 1 checkpoints that other processes measure":
                assert done == 2 * 4 - 2
                other.kill()

        outcome = evaluate(runs, TASKS, progress=tell)
    assert (outcome.done, outcome.known, outcome.left_out) == (8, 0, {})
    assert told[-1] == "a  step 2  recall-induction-4"


@pytest.mark.slow
def test_processes_share_a_study_and_measure_nothing_twice_though_some_are_killed(runs: list[Path]) -> None:
    """Four processes are killed at random moments, the two after them end the work."""
    random_ = random.Random(0)
    for _ in range(2):
        workers = [subprocess.Popen([sys.executable, "-c", SHARE, str(runs[0].parent)]) for _ in range(2)]
        time.sleep(random_.uniform(2, 5))
        for worker in workers:
            worker.kill()
            worker.wait()
    workers = [subprocess.Popen([sys.executable, "-c", SHARE, str(runs[0].parent)]) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    for run in runs:
        records = [r for r in read_records(run / "evaluations.jsonl") if r["task"].startswith("slow")]
        found = [(record["step"], record["task"]) for record in records]
        assert sorted(found) == sorted((step, f"slow-{number}") for step in (1, 2) for number in range(5))


def test_a_damaged_checkpoint_is_left_out_and_the_others_are_measured(runs: list[Path]) -> None:
    (runs[0] / "checkpoints" / "step_00000001" / "model.safetensors").write_bytes(b"")
    outcome = evaluate(runs, TASKS)
    assert outcome.done == 3 * 2
    assert list(outcome.left_out) == ["a: step 1"]
    assert "step_00000001" in outcome.left_out["a: step 1"]


def test_steps_are_chosen_and_a_folder_without_runs_is_refused(runs: list[Path], tmp_path: Path) -> None:
    assert evaluate(runs, TASKS, steps=[2, 77]).done == 4
    assert evaluate(runs, [Recall("mqar", 200)], last=True).left_out.keys() == {
        "a: recall-mqar-200",
        "b: recall-mqar-200",
    }
    with pytest.raises(UserError, match="no checkpoint of step 77"):
        evaluate(runs, TASKS, steps=[77])
    with pytest.raises(UserError, match="neither a run folder nor a folder of runs"):
        find_runs(tmp_path / "data")
    (tmp_path / "mine.toml").touch()
    with pytest.raises(UserError, match="is a file; expected a run folder or a folder of runs, such as runs/mine"):
        find_runs(tmp_path / "mine.toml")


def test_a_vocabulary_too_large_is_said_before_a_model_is_loaded(runs: list[Path], monkeypatch) -> None:
    (runs[0] / "tokenizer.json").write_text(json.dumps(train_bpe(["the cat sat on a mat"], 270).content))
    monkeypatch.setattr("linscale.evaluate.run.checkpoint.load_model", None)
    outcome = evaluate(runs[:1], TASKS)
    assert outcome.left_out == {"a": "its tokenizer has 269 tokens, its model 257"}


def test_a_task_that_a_model_refuses_is_left_out_and_the_others_are_measured(runs: list[Path], monkeypatch) -> None:
    def refuses(*_: Any) -> None:
        raise UserError("a text of 65 tokens: the table of positions has 64 rows")

    refused, run = Recall("mqar", 8, examples=4), Recall.run
    monkeypatch.setattr(Recall, "run", lambda task, *rest: refuses() if task is refused else run(task, *rest))
    outcome = evaluate(runs[:1], [refused, TASKS[0]], last=True)
    assert outcome.done == 1
    assert list(outcome.left_out.values()) == ["a text of 65 tokens: the table of positions has 64 rows"]


def test_a_run_that_read_no_text_is_left_out_in_one_line(runs: list[Path], capsys) -> None:
    (runs[0] / "tokenizer.json").unlink()
    command = ["evaluate", str(runs[0]), "--suite", "recall", "--sizes", "4", "--passkey-lengths", "300"]
    assert main(command) == 1
    assert "a: left out, it has no tokenizer: its data were no text" in capsys.readouterr().out
    assert main(["generate", str(runs[0]), "--prompt", "the"]) == 2
    assert "a run on a task or on labelled sequences has none" in capsys.readouterr().err


def test_a_record_of_something_else_does_not_spoil_the_table(runs: list[Path], capsys) -> None:
    (runs[0] / "evaluations.jsonl").write_text('{"step": 1}\n{"step": 2, "metric": "loss", "value": 1.0}\n')
    command = ["evaluate", str(runs[0]), "--suite", "recall", "--sizes", "4", "--passkey-lengths", "300"]
    assert main([*command, "--examples", "2", "--json"]) == 0
    assert {record["task"][:6] for record in json.loads(capsys.readouterr().out)["results"]} == {"recall"}
