"""Any task of lm-evaluation-harness as a task of ours, on local data unless the Hub is asked for."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import json
import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from linscale.config import UserError
from linscale.data.tokenizer import Tokenizer
from linscale.evaluate.harness import harness_model
from linscale.evaluate.task import Result, vocabulary_obstacle
from linscale.models import LanguageModel

PREFIX = "lm-eval:"
PROTOCOL = 1  # to be raised when the same model would get another value
SEED = 1234  # of the examples before a question, as the harness has it
BOOTSTRAP = 1000  # samples behind a standard error that has no formula
SAMPLES = "samples"  # the metric that is written last
PLACES = ("dataset_path", "dataset_kwargs")  # of a task's config: where its data lie, which are hashed themselves


@dataclass(frozen=True)
class HarnessTask:
    """A task, group or tag of the harness. Raises UserError in `prepare` for whatever keeps it from running."""

    task: str
    include: tuple[Path, ...] = ()
    "Folders of task files (.yaml) beside the harness's own, before which they count."
    hub: bool = False
    "Whether data may be fetched from the Hugging Face Hub."
    shots: int | None = None
    "Examples before a question; None: as the task has it."
    limit: int | None = None
    "The first records of each subtask alone."

    @property
    def name(self) -> str:
        return PREFIX + self.task

    @property
    def metrics(self) -> Sequence[str]:
        """Which others there are is known when it has run; this one is recorded last."""
        return (SAMPLES,)

    def prepare(self) -> None:
        """Load task files and data, which needs no model."""
        for name, task in self._loaded["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
                raise UserError(f"{self.name}: {name} runs code that a model wrote, or asks for more than text")
        assert self._digest

    def version(self, tokenizer: Tokenizer) -> str:
        import lm_eval

        options = "".join(
            f"-{word}{value}" for word, value in (("shots", self.shots), ("first", self.limit)) if value is not None
        )
        versions = sorted({str(task.VERSION) for task in self._loaded["tasks"].values()})
        harness = f"lm_eval{lm_eval.__version__}-v{'+'.join(versions)}"
        return f"{PROTOCOL}-{harness}-{self._digest}-{tokenizer.fingerprint}{options}"

    def obstacle(self, model: LanguageModel, tokenizer: Tokenizer) -> str | None:
        return vocabulary_obstacle(model, tokenizer)

    def run(self, model: LanguageModel, tokenizer: Tokenizer) -> list[Result]:
        """Every metric of the task, and of its subtasks as SUBTASK/METRIC; samples: the records that were asked."""
        from lm_eval.evaluator import evaluate

        random.seed(SEED)  # as lm_eval.simple_evaluate prepares its tasks
        np.random.seed(SEED)
        for task in self._loaded["tasks"].values():
            if task.get_config("num_fewshot") is None or (self.shots is not None and task.get_config("num_fewshot")):
                task.set_config(key="num_fewshot", value=self.shots or 0)
            task.set_fewshot_seed(seed=SEED)
        with offline(not self.hub), quiet():
            found = evaluate(
                lm=harness_model(model, tokenizer), task_dict=self._loaded, limit=self.limit, bootstrap_iters=BOOTSTRAP,
                log_samples=False,
            )  # fmt: skip
        counts = {name: int(each["effective"]) for name, each in found["n-samples"].items()}
        total = sum(counts.values())
        results = [
            result
            for name, values in found["results"].items()
            for result in _results("" if name == self.task else f"{name}/", values, counts.get(name, total))
        ]
        return [*results, Result(SAMPLES, total, None, total)]

    @cached_property
    def _loaded(self) -> dict[str, Any]:
        """Tasks, groups and the children of groups."""
        failure = close = ""
        for manager in self._managers():
            if self.task not in manager.all_tasks:
                close = close or ", ".join(difflib.get_close_matches(self.task, manager.all_tasks, 3))
                continue
            try:
                with offline(not self.hub), quiet():
                    loaded: dict[str, Any] = manager.load([self.task])
                    return loaded
            except Exception as error:  # of whatever a task file, its code or a library raises
                failure = (str(error).strip() or type(error).__name__).splitlines()[0]
        if failure:
            remedy = "" if self.hub else "; if its data are not on this machine, --hub lets the harness fetch them"
            raise UserError(f"{self.name}: cannot be loaded ({failure}){remedy}")
        hint = f"did you mean {close}?" if close else "`lm-eval ls tasks` lists them"
        raise UserError(f"{self.name}: the harness has no such task; {hint}")

    def _managers(self) -> Iterator[Any]:
        """Of the tasks in `include` alone, and of all: the harness's own take seconds to list."""
        try:
            from lm_eval.tasks import TaskManager
        except ImportError:
            raise UserError(f"{self.name}: lm-eval is not installed: pip install 'linscale[eval]'") from None
        for folder in self.include:
            if not folder.is_dir():
                raise UserError(f"include = {folder}: no such folder; expected one with task files (.yaml)")
        with quiet():
            if self.include:
                yield TaskManager(include_path=[*self.include], include_defaults=False)
            yield _all_tasks(self.include)

    @cached_property
    def _digest(self) -> str:
        """Of what is asked: configs, records, and the examples before them."""
        content = hashlib.sha256()
        for name, task in sorted(self._loaded["tasks"].items()):
            config = {key: value for key, value in task.dump_config().items() if key not in PLACES}
            parts: list[Iterable[Any]] = [[name, config], task.eval_docs]
            if self.shots or config.get("num_fewshot"):
                parts.append(task.fewshot_docs() or ())
            for part in parts:
                for each in part:
                    content.update(json.dumps(each, sort_keys=True, default=str).encode())
        return content.hexdigest()[:16]


def _results(prefix: str, values: Mapping[str, Any], count: int) -> Iterator[Result]:
    """Of one task of the harness: its keys are METRIC,FILTER, and METRIC_stderr,FILTER."""
    for key, value in values.items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        se = values.get(f"{metric}_stderr,{kind}")
        name = prefix + metric + ("" if kind == "none" else f",{kind}")
        yield Result(name, float(value), float(se) if isinstance(se, (int, float)) else None, count)


@cache
def _all_tasks(include: tuple[Path, ...]) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=[*include] or None)


@contextlib.contextmanager
def offline(wanted: bool) -> Iterator[None]:
    """Inside, the Hugging Face libraries use what is on this machine alone."""
    import datasets.config
    import huggingface_hub.constants

    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    if wanted:
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, the harness says only what is an error, and draws no bars of its own."""
    import datasets

    logger, shown = logging.getLogger("lm_eval"), not datasets.are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        if shown:
            datasets.enable_progress_bars()
