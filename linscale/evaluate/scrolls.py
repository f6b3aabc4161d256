"""SCROLLS, zero-shot: questions about long documents, answered greedily or by the likeliest choice (arXiv 2201.03533).

Prompts and answers are those of lm-evaluation-harness 0.4.13, with which arXiv 2406.16690 was measured: generation ends
at a line's end or after 256 tokens; QuALITY and ContractNLI take the choice that is likeliest per character, and
questions of Qasper with yes and no alone as references the likelier of both.

A document that is too long keeps its end, as in the harness, so that its longest question and the answer fit; what was
cut is recorded beside every score. Cut once a document, not once a question, it is read once for all its questions.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from linscale.config import UserError
from linscale.data.tokenizer import Tokenizer
from linscale.evaluate.answers import answer
from linscale.evaluate.memory import cache_obstacle
from linscale.evaluate.overlap import ROUGE, exact_match, f1, rouge, rouge_scorer
from linscale.evaluate.prompts import Sample
from linscale.evaluate.scrolls_samples import (
    Reader,
    SampleFile,
    hypothesis,
    leval,
    leval_quality,
    look_for,
    qasper,
    qmsum,
    quality,
    question,
    scrolls,
    summary,
)
from linscale.evaluate.task import Result, mean_result, vocabulary_obstacle
from linscale.models import LanguageModel

PROTOCOL = 1  # to be raised when the same model would get another value
MAX_TOKENS = 256  # the harness's default
TRUNCATION = ("truncated", "kept")
NO_ANSWER = "Unanswerable"  # what the harness takes an empty answer to a question of Qasper for
Context: TypeAlias = int | Literal["train", "none"]
"""Tokens of a prompt and its answer; "train": as many as the run's training had, "none": documents are whole."""


@dataclass(frozen=True)
class Form:
    """A task's file below the folder of --data, how it is read, and how answers are scored."""

    file: str
    read: Reader
    metrics: tuple[str, ...]


FORMS = {
    "scrolls-gov_report": Form("gov_report/validation", scrolls(summary, question_first=False), ROUGE),
    "scrolls-summ_screen_fd": Form("summ_screen_fd/validation", scrolls(summary, question_first=False), ROUGE),
    "scrolls-qmsum": Form("qmsum/validation", scrolls(question), ROUGE),
    "scrolls-qasper": Form("qasper/validation", scrolls(qasper), ("f1",)),
    "scrolls-narrative_qa": Form("narrative_qa/validation", scrolls(question), ("f1",)),
    "scrolls-quality": Form("quality/validation", scrolls(quality), ("em",)),
    "scrolls-contract_nli": Form("contract_nli/validation", scrolls(hypothesis), ("em",)),
    "qmsum-val": Form("qmsum_val", qmsum, ROUGE),
    "qmsum-test": Form("qmsum_test", qmsum, ROUGE),
    "leval-gov_report": Form("leval_gov_report_summ", leval(summary), ROUGE),
    "leval-summ_screen_fd": Form("leval_tv_show_summ", leval(summary), ROUGE),
    "leval-qasper": Form("leval_scientific_qa", leval(qasper), ("f1",)),
    "leval-quality": Form("leval_quality", leval(leval_quality), ("em",)),
}
"""By task: the seven of SCROLLS, whose 13 numbers make its mean, QMSum's own files and samples of L-Eval."""


@dataclass(frozen=True)
class Scrolls:
    """One task of FORMS on a file."""

    name: str
    file: SampleFile
    context: Context = "train"
    max_tokens: int = MAX_TOKENS

    @property
    def metrics(self) -> Sequence[str]:
        return (*FORMS[self.name].metrics, *TRUNCATION)

    def for_run(self, settings: Mapping[str, Any]) -> Scrolls:
        """The same task with the training length of a run's config.json for "train"."""
        return replace(self, context=settings["train"]["length"]) if self.context == "train" else self

    def version(self, tokenizer: Tokenizer) -> str:
        first = "" if self.file.limit is None else f"-first{self.file.limit}"
        rule = f"context{self.context}-end-max{self.max_tokens}"
        return f"{PROTOCOL}-{self.file.digest}-{tokenizer.fingerprint}-{rule}{first}"

    def obstacle(self, model: LanguageModel, tokenizer: Tokenizer) -> str | None:
        if why := vocabulary_obstacle(model, tokenizer):
            return why
        prompts = self.file.prompts(tokenizer)
        behind = prompts.behind(self.max_tokens)
        if max(behind) >= (limit := self._limit()):
            return (
                f"{max(behind)} tokens of question and answer leave a context of {self.context} no room for the "
                "document; set a larger --context or a smaller --max-tokens"
            )
        whole = max(len(document) + more for document, more in zip(prompts.documents, behind, strict=True))
        return cache_obstacle(model, min(whole, limit))

    def _limit(self) -> int:
        """The most tokens of a prompt and its answer."""
        if self.context == "train":
            raise ValueError("context = 'train' is known in a job alone (see for_run); expected a number or 'none'")
        return sys.maxsize if self.context == "none" else self.context

    def run(self, model: LanguageModel, tokenizer: Tokenizer) -> list[Result]:
        """Means over samples, with standard errors; truncated and kept: shares of samples that were cut, and of the
        tokens of their documents that the model read."""
        samples, whole = self.file.samples, self.file.prompts(tokenizer)
        cut = whole.cut(self._limit(), self.max_tokens)
        answers = answer(model, tokenizer, samples, cut, self.max_tokens)
        scores = [self._scores(text, sample) for text, sample in zip(answers, samples, strict=True)]
        metrics = FORMS[self.name].metrics
        results = [
            mean_result(metric, torch.tensor([score[metric] for score in scores], dtype=torch.float64), len(samples))
            for metric in metrics
        ]
        pairs = zip(cut.documents, whole.documents, strict=True)
        shares = torch.tensor([len(part) / len(document) for part, document in pairs], dtype=torch.float64)
        kept = shares[[prompt.document for prompt in whole.prompts]]
        truncated = (kept < 1).double().mean().item()
        return [
            *results,
            Result("truncated", truncated, None, len(samples)),
            Result("kept", kept.mean().item(), None, len(samples)),
        ]

    def _scores(self, text: str, sample: Sample) -> dict[str, float]:
        if FORMS[self.name].metrics == ROUGE:
            return rouge(text, sample.references)
        if FORMS[self.name].metrics == ("em",):
            return {"em": exact_match(text, sample.references)}
        if self.name.endswith("qasper") and not text.strip():
            text = NO_ANSWER
        return {"f1": f1(text, sample.references)}


def scrolls_tasks(
    folder: Path, names: Sequence[str] = (), context: Context = "train", max_tokens: int = MAX_TOKENS,
    limit: int | None = None,
) -> list[Scrolls]:  # fmt: skip
    """The named tasks, or all that have a file in the folder; `limit` takes the first samples of each alone.

    Raises UserError where a file is missing or not in its form, a name is not known, or ROUGE is asked for without
    rouge-score.
    """
    if unknown := [name for name in names if name not in FORMS]:
        raise UserError(f"scrolls = {unknown[0]!r}: no such task; there are {', '.join(FORMS)}")
    if not folder.is_dir():
        raise UserError(f"data = {folder}: no such folder; expected one with files of samples")
    paths = {name: look_for(folder, FORMS[name].file) for name in names or FORMS}
    for name, path in paths.items():
        if names and path is None:
            raise UserError(f"{name}: no {folder / FORMS[name].file}.jsonl, nor compressed (.zst, .xz, .gz)")
    found = {name: path for name, path in paths.items() if path}
    if not found:
        raise UserError(f"{folder}: none of {', '.join(f'{form.file}.jsonl' for form in FORMS.values())}")
    if any(FORMS[name].metrics == ROUGE for name in found):
        rouge_scorer()
    tasks = [
        Scrolls(name, SampleFile(path, FORMS[name].read, limit), context, max_tokens) for name, path in found.items()
    ]
    for task in tasks:
        assert task.file.samples  # read now: what is wrong in a file is said before a model is loaded
    return tasks
