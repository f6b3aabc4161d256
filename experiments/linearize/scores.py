"""What is measured of every arm: `linscale evaluate`'s suites on its last checkpoint, and how fast it writes.

Evaluations are records of the run folder, as ever: what is there is not measured again. Speeds are kept in its
speed.json.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import speed
import torch

from linscale import checkpoint
from linscale.cli.suite_options import (
    NeedleOptions,
    Options,
    RecallOptions,
    SetOptions,
    TextOptions,
)
from linscale.cli.suites import build_tasks
from linscale.config import config
from linscale.evaluate.questions import CSR
from linscale.evaluate.run import evaluate
from linscale.evaluate.task import Task
from linscale.evaluate.without import PARTS, Without, mixers_of
from linscale.models.count import count_parameters, state_elements
from linscale.run_folder import EVALUATION_KEYS, EVALUATIONS, latest_records, read_json, write_json

Row = dict[str, Any]
SPEEDS = "speed.json"


@config
class Measures:
    """How much of everything."""

    suites: tuple[str, ...] = ("ppl", "csr", "recall", "needle")
    "Of `linscale evaluate`, beside the loss by position."
    limit: int | None = None
    "Questions of each set; by default all."
    window: int = 2048
    "Tokens of a window of WikiText-2 and of the held documents."
    positions: int = 32768
    "Tokens of a window of novels, for the loss by position."
    needle_lengths: str = "256,512,1024,2048,4096,8192"
    needle_depths: str = "0..100x21"
    recall_sizes: tuple[int, ...] = (4, 16, 64)
    passkey_lengths: str = "256,512,1024,2048,4096,8192"
    examples: int = 64
    "Sequences of each task of recall."
    ablation_limit: int = 400
    "Questions of each set, for the model without parts."
    marks: tuple[int, ...] = (1000, 8000, 32000)
    "Tokens behind which a single text is written on."
    slots: tuple[int, ...] = (1, 64)
    "Texts at once."
    steps: int = 100
    "Of a timing."


def device() -> dict[str, str]:
    """What a number was measured on."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": name, "torch": torch.__version__}


@dataclasses.dataclass
class Sources:
    """Where what is measured on lies: the texts of text.py, and the sets that do not ship (LAMBADA, SciQ, essays)."""

    text: Path
    sets: Path


class Measuring:
    """The tasks, which read and encode their questions once for all arms."""

    def __init__(self, measures: Measures, sources: Sources) -> None:
        self.measures, self.sources = measures, sources
        self.tasks = self._whole()
        self.few = self._few()

    def _whole(self) -> list[Task]:
        plan, files = self.measures, self.sources
        sets = SetOptions(data=files.sets, limit=plan.limit)
        held = TextOptions(text=(files.text / "held.jsonl",), window=plan.window)
        novels = TextOptions(text=(files.text / "novels.jsonl",), window=plan.positions)
        recall = RecallOptions(sizes=plan.recall_sizes, examples=plan.examples, passkey_lengths=plan.passkey_lengths)
        needle = NeedleOptions(lengths=plan.needle_lengths, depths=plan.needle_depths)
        options = Options(sets=sets, text=held, recall=recall, needle=needle)
        return [*build_tasks(plan.suites, options), *build_tasks(["text"], Options(text=novels))]

    def _few(self) -> list[Task]:
        """What a model without parts is measured on, and the whole one beside it."""
        plan = self.measures
        limit = plan.ablation_limit if plan.limit is None else min(plan.limit, plan.ablation_limit)
        wikitext = [task for task in self.tasks if task.name.startswith("text-wikitext")]
        names = CSR if "csr" in plan.suites else ()
        return [*build_tasks([*names], Options(sets=SetOptions(limit=limit))), *wikitext]

    def row(self, run: Path) -> Row:
        """Everything of a run's last checkpoint but speeds."""
        began = time.monotonic()
        newest = checkpoint.newest(run)
        assert newest is not None
        model, tokenizer = checkpoint.load(newest)
        hybrid = all(mixers_of(model, part) for part in PARTS)
        tasks = [*self.tasks, *(task for task in self.few if task not in self.tasks)]
        for part in PARTS if hybrid else ("mixers",):  # of a pure model the one part is all there is
            tasks += [Without(task, part) for task in self.few]
        outcome = evaluate([run], tasks, last=True)
        settings = read_json(run / "config.json")
        row: Row = {
            "params": count_parameters(model.config).total,
            "softmax_layers": len(mixers_of(model, "softmax")), "layers": len(model.blocks),
            "state_elements": {str(mark): state_elements(model.config, mark) for mark in self.measures.marks},
            "left_out": outcome.left_out, "precision": settings["precision"], "code": settings["code"],
            **device(), "tasks": self._results(run, checkpoint.step_of(newest), tasks, tokenizer),
            "evaluation_s": time.monotonic() - began,
        }  # fmt: skip
        return row

    def speeds(self, run: Path) -> list[Row]:
        """How fast it writes; to be measured where nothing else works beside."""
        kept = run / SPEEDS
        if not kept.exists():
            newest = checkpoint.newest(run)
            assert newest is not None
            write_json(kept, list(speed.rows(run.name, *checkpoint.load(newest), self.measures)))
        found: list[Row] = read_json(kept)
        return found

    def _results(self, run: Path, step: int, tasks: list[Task], tokenizer: Any) -> Row:
        """By task and metric: value, standard error, and cells where there are some. Of limited sets the name ends in
        their limit."""
        wanted = {(task.name, task.version(tokenizer)): task for task in tasks}
        found: dict[str, Row] = {}
        for record in latest_records(run / EVALUATIONS, EVALUATION_KEYS):
            key = record["task"], record["task_version"]
            if record["step"] == step and key in wanted:
                limited = wanted[key] in self.few and wanted[key] not in self.tasks
                name = f"few-{record['task']}" if limited else record["task"]
                number = [record["value"], record["se"]]
                found.setdefault(name, {})[record["metric"]] = number + ([record["cells"]] if "cells" in record else [])
        return found
