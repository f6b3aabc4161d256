"""The ladder: from a study file to trained runs, fitted laws and a report, doing only what is missing.

Each stage reads the study's folder and stops where nothing is left to do, so a study that was killed anywhere goes on
from its newest checkpoints, and a finished one is left alone.

    <out>/<study>/data/           the prepared corpus, when the study file names text
                  <run>/          one folder a run, see linscale/run_folder.py
                  samples.json    a continuation by each architecture's best run
                  points.csv      with [fit] law = "pac", the best checkpoint of every run
                  fits.json       the laws
                  report.html     the page
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from linscale import checkpoint
from linscale.config import UserError, fingerprint, to_dict
from linscale.data.prepare import prepare
from linscale.data.shards import QUICK_BYTES, TokenDataset
from linscale.data.sources import UnavailableInputError
from linscale.evaluate.run import evaluate_validation
from linscale.generate.sample import sample
from linscale.run_folder import code_version, disk_errors, locked, read_json, write_json
from linscale.study.evaluations import read_evaluations
from linscale.study.executors import Executor
from linscale.study.fit import fit_study
from linscale.study.pac_study import fit_efficient, require_text
from linscale.study.plan import PlannedRun, StudyConfig, planned_runs
from linscale.study.report import is_current, write_report
from linscale.study.results import read_study, read_summaries
from linscale.train.config import RunConfig
from linscale.train.metrics import read_status
from linscale.train.settings import require_same_config

FITS, REPORT, SAMPLES, DATA = "fits.json", "report.html", "samples.json", "data"


class Watcher(Protocol):
    """Told what a study is doing; the command line shows it."""

    def stage(self, text: str) -> None:
        """A stage begins."""

    def prepared(self, read: int, total: int) -> None:
        """Bytes of text prepared so far."""

    def plan(self, study: Path, runs: Sequence[PlannedRun]) -> None:
        """The runs of the study, known once its vocabulary is."""

    def progress(self) -> None:
        """Called about twice a second while runs train."""

    def failed(self, run: str, error: str) -> None:
        """A run could not be trained; the others are gone on with."""


@dataclass
class Outcome:
    """What running a study came to."""

    study: Path
    trained: list[str] = field(default_factory=list)
    "Runs trained by this call."
    failed: dict[str, str] = field(default_factory=dict)
    "Run -> what went wrong."
    changed: bool = False
    "Whether there was anything to do."


def run_study(study: StudyConfig, out: Path, executor: Executor, watcher: Watcher) -> Outcome:
    """Do what is missing of a study in the folder out/<name>. Raises UserError when it cannot go on at all."""
    folder = out / study.name
    with disk_errors(folder), locked(folder):
        outcome = Outcome(folder)
        dataset = open_data(study, folder, watcher)
        runs = planned_runs(study, vocab_size=dataset.vocab_size, data_path=str(dataset.folder))
        if study.fit.law == "pac":
            require_text(runs, dataset.tokens("train"))
        watcher.plan(folder, runs)
        _train(runs, dataset, executor, watcher, outcome)
        finish_study(study, folder, watcher, outcome)
        return outcome


def finish_study(study: StudyConfig, folder: Path, watcher: Watcher, outcome: Outcome) -> None:
    """Samples, laws and report from what is trained; each only if it is missing or older than what it shows.

    Raises UserError where no law can be fitted; what was evaluated beyond the validation loss is then reported first.
    """
    inputs, page = results_fingerprint(study, folder), folder / REPORT
    fitted = _fits_inputs(folder) == inputs
    if fitted and is_current(page, folder):
        return
    outcome.changed = True
    if not (fitted and page.exists()):
        watcher.stage("sampling from the best runs")
        write_json(folder / SAMPLES, best_samples(study, folder))
        watcher.stage("fitting the laws")
        try:
            fits = _fit(study, folder)
        except UserError as error:
            if not read_evaluations(folder).values:
                raise
            write_report(folder, page)
            raise UserError(f"{error}; {page} has the evaluations without laws") from None
        write_json(folder / FITS, {**fits, "inputs": inputs})
    watcher.stage("writing the report")
    write_report(folder, page)


def _fit(study: StudyConfig, folder: Path) -> dict[str, Any]:
    if study.fit.law == "pac":
        return fit_efficient(folder, study.fit)
    return fit_study(read_study(folder, loss=study.fit.loss), study.fit)


def open_data(study: StudyConfig, folder: Path, watcher: Watcher) -> TokenDataset:
    """The corpus of the study, prepared first if the study file names text; checksums are compared if it is small."""
    if study.data.path is None:
        _prepare(study, folder, watcher)
    dataset = TokenDataset.open(study.data.path or folder / DATA)
    dataset.verify(at_most=QUICK_BYTES)
    return dataset


def _prepare(study: StudyConfig, folder: Path, watcher: Watcher) -> None:
    finished = (folder / DATA / "manifest.json").exists()
    if not finished:
        watcher.stage("preparing the corpus")
    try:
        prepare(
            list(study.data.inputs),
            tokenizer=study.data.tokenizer,
            out=folder / DATA,
            options=study.data.options,
            progress=lambda read, total, documents, tokens: watcher.prepared(read, total),
        )
    except UnavailableInputError:
        if not finished:
            raise
        # the texts are gone or out of reach, what was made of them is not


def _train(
    runs: Sequence[PlannedRun], dataset: TokenDataset, executor: Executor, watcher: Watcher, outcome: Outcome
) -> None:
    missing: dict[Path, RunConfig] = {}
    for run in sorted(runs, key=lambda run: -run.work):  # the longest first, so that none is left at the end
        path = outcome.study / run.name
        require_same_config(path, run.config, dataset, executor.device(run.config.train.device))
        if read_status(path).get("state") != "done":
            missing[path] = run.config
    if missing:
        outcome.changed = True
        watcher.stage(f"training {len(missing)} of {len(runs)} runs")
        errors = executor.run(missing, watcher.progress)
        outcome.failed = {path.name: error for path, error in errors.items()}
        for name, error in outcome.failed.items():
            watcher.failed(name, error)  # at once: fitting what is left may fail for lack of it
        outcome.trained = [path.name for path in missing if path not in errors]
    for run in runs:
        path = outcome.study / run.name
        if run.name not in outcome.failed and evaluate_validation(path, dataset):
            outcome.changed = True


def results_fingerprint(study: StudyConfig, folder: Path) -> str:
    """Of all that laws, samples and report are made from: the same for a study that did not change."""
    runs = [dataclasses.asdict(summary) for summary in read_summaries(folder)]
    return fingerprint([runs, to_dict(study.fit), to_dict(study.sample), code_version().split("+")[0]])


def _fits_inputs(folder: Path) -> str | None:
    with contextlib.suppress(UserError):
        inputs: str | None = read_json(folder / FITS).get("inputs")
        return inputs
    return None


def best_samples(study: StudyConfig, folder: Path) -> dict[str, Any]:
    """What each architecture's run with the lowest validation loss makes of the study's prompt."""
    best: dict[str, Any] = {}
    for summary in read_summaries(folder):
        loss = summary.validation_loss
        if loss is not None and (summary.arch not in best or loss < best[summary.arch].validation_loss):
            best[summary.arch] = summary
    samples = {}
    for arch, summary in best.items():
        model, tokenizer = checkpoint.load(folder / summary.run)
        text = sample(
            model,
            tokenizer,
            study.sample.prompt,
            max_tokens=study.sample.max_tokens,
            temperature=study.sample.temperature,
        )
        samples[arch] = {
            "run": summary.run,
            "step": summary.step,
            "prompt": study.sample.prompt,
            "continuation": text,
        }
    return samples
