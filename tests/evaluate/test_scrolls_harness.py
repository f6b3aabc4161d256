"""Our prompts and choices of SCROLLS against lm-evaluation-harness's own classes; skipped where it is not installed."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from linscale.evaluate.answers import likeliest
from linscale.evaluate.overlap import exact_match, normalize
from linscale.evaluate.scrolls import NO_ANSWER, scrolls_tasks

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own

TEXT = "The cat sat.\n\nIt (the cat) was  warm.\n\n Then (A) it ran: (D)\n\naway \n"
CHOICES = "\n\n (A) The  cat\n (B) A dog (B. Dog)\n (C) Two\nmen\n (D) No one\n\n\n"
CLASSES = {
    "gov_report": "GovReport",
    "summ_screen_fd": "SummScreenFD",
    "qmsum": "QMSum",
    "qasper": "Qasper",
    "narrative_qa": "NarrativeQA",
    "quality": "QuALITY",
    "contract_nli": "ContractNLI",
}
OUTPUTS = {
    "quality": [["Two  men"], ["The cat"]],
    "contract_nli": [["Entailment"], ["Contradiction"]],
    "qasper": [["Yes", "yes."], ["No"], ["yes", "The cat"], ["a", "Unanswerable"]],
}


@pytest.fixture
def classes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The harness's module of tasks, which takes normalize_answer from a part of transformers that newer ones lack."""
    squad = ModuleType("transformers.data.metrics")
    squad.squad_metrics = SimpleNamespace(normalize_answer=normalize)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers.data.metrics", squad)
    return importlib.import_module("lm_eval.tasks.scrolls.task")


@pytest.mark.parametrize("name", CLASSES)
def test_prompts_choices_and_answers_are_the_harness_s(name: str, classes: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("rouge_score")
    documents = [
        {"id": str(k), "pid": str(k), "outputs": outputs,
         "input": TEXT if name in ("gov_report", "summ_screen_fd")
         else f"Who {k} ran (away)?\n\n{CHOICES.lstrip() if name == 'quality' else ''}{TEXT}"}
        for k, outputs in enumerate(OUTPUTS.get(name, [["One answer.", "Two"], ["\nThree"]]))
    ]  # fmt: skip
    rows = [{**document, "output": output} for document in documents for output in document["outputs"]]
    (file := tmp_path / name / "validation.jsonl").parent.mkdir()
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (task,) = scrolls_tasks(tmp_path)
    theirs = getattr(classes, CLASSES[name]).__new__(getattr(classes, CLASSES[name]))
    for document, sample in zip(documents, task.file.samples, strict=True):
        (processed,) = theirs._process_doc(dict(document))
        prompt = theirs.doc_to_text(processed)
        assert prompt == sample.document + sample.ending
        requests = theirs.construct_requests(processed, prompt, metadata=(name, 0, 1))
        if isinstance(requests, list):
            assert {request.arguments for request in requests} == {(prompt, f" {choice}") for choice in sample.choices}
            compare_choices(theirs, processed, [request.arguments[1][1:] for request in requests], sample)
        else:
            assert (requests.arguments, sample.choices) == ((prompt, {"until": ["\n"]}), ())
            compare_answers(theirs, processed, task, sample)


def compare_choices(theirs: Any, document: dict[str, Any], choices: list[str], sample: Any) -> None:
    """For every order of likelihood, also where characters decide."""
    for best in range(len(choices)):
        nats = dict.fromkeys(choices, -9.0) | {choices[best]: -8.0}
        found = theirs.process_results(document, [(nats[choice], False) for choice in choices])
        chosen = likeliest(sample, [nats[choice] for choice in sample.choices])
        if "em" in found:
            assert found["em"] == exact_match(chosen, sample.references)
        else:
            assert found["f1"] == (f" {chosen}", list(sample.references))


def compare_answers(theirs: Any, document: dict[str, Any], task: Any, sample: Any) -> None:
    for text in (" The cat ", " "):
        for metric, (prediction, references) in theirs.process_results(document, [text]).items():
            assert (metric in task.metrics, references) == (True, list(sample.references))
            assert prediction == (NO_ANSWER if "qasper" in task.name and text == " " else text)
            assert task._scores(text, sample)[metric] == task._scores(prediction, sample)[metric]
