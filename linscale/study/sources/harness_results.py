"""Results of lm-evaluation-harness as a table: one row a model, its tasks' metrics as columns.

acc,none of piqa                     piqa.acc, and piqa.acc_stderr
exact_match,strict-match of gsm8k    gsm8k.exact_match.strict-match
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from linscale.config import UserError
from linscale.run_folder import read_json
from linscale.study.sources.table import Table, lacking

STEP = re.compile(r"(?:^|[/_-])(?:step|checkpoint|global_step)[_-]?(\d+)")


def find(folder: Path) -> list[Path]:
    """The results_*.json files anywhere in a folder, as --output_path leaves them."""
    return sorted(folder.rglob("results_*.json"))


def is_results(value: object) -> bool:
    """Whether the content of a JSON file is what the harness writes."""
    return isinstance(value, dict) and isinstance(value.get("results"), dict) and isinstance(value.get("config"), dict)


def read(files: list[Path]) -> Table:
    """Files of one model, which is a name and a revision, are one row; of two values of a metric the later counts.

    Raises UserError for a file that is not of the harness.
    """
    contents = []
    for file in files:
        content = read_json(file)
        if not is_results(content):
            raise UserError(f"{file}: has no 'results' and 'config'; expected a results file of lm-eval")
        contents.append((content.get("date") or 0, str(file), content))
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    replaced = set()
    for _, _, content in sorted(contents, key=lambda each: each[:2]):
        model, values = _model(content), _metrics(content)
        row = rows.setdefault((model["run"], model["revision"]), model)
        replaced |= {name for name in values if row.get(name) not in (None, values[name])}
        row.update(values)
    notes = lacking(list(rows.values()), ("total_params", "step"))
    if replaced:
        notes += (f"measured more than once, of which the later value counts: {', '.join(sorted(replaced)[:10])}",)
    limits = {content["config"].get("limit") for _, _, content in contents} - {None}
    if limits:
        notes += (f"some results are on the first {', '.join(map(str, sorted(limits)))} samples alone (--limit)",)
    return Table(tuple(rows.values()), f"{len(files)} result file(s) of lm-eval", notes)


def _model(content: Mapping[str, Any]) -> dict[str, Any]:
    """Name, revision, step where one of them says it, and parameters where the harness counted them."""
    config = content["config"]
    given = config.get("model_args") or {}
    if isinstance(given, str):
        given = dict(part.split("=", 1) for part in given.split(",") if "=" in part)
    name = str(content.get("model_name") or given.get("pretrained") or config.get("model"))
    revision = str(given.get("revision") or config.get("model_revision") or "main")
    step = STEP.search(revision) or STEP.search(name)
    return {
        "run": name,
        "revision": revision,
        "step": int(step[1]) if step else None,
        "total_params": config.get("model_num_parameters"),
    }


def _metrics(content: Mapping[str, Any]) -> dict[str, float]:
    """Every number of every task and group, by task.metric, and .filter where it is not "none".

    Before version 0.4 metrics had no filter: "acc" alone.
    """
    found = {}
    tables = [content["results"], content.get("groups") or {}]
    for task, values in (each for table in tables for each in table.items()):
        old = not any("," in key for key in values)
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            if (comma or old) and isinstance(value, int | float) and not isinstance(value, bool):
                found[f"{task}.{metric}" + (f".{kind}" if kind not in ("", "none") else "")] = value
    return found
