"""linscale evaluate: tasks on the checkpoints of a run or a study."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from linscale.cli.output import Json, ProgressBar, print_json, print_table
from linscale.config import UserError
from linscale.distributed import cores, limit_threads

if TYPE_CHECKING:
    from linscale.evaluate.run import Outcome
    from linscale.evaluate.task import Task

SHOWN = 40  # rows of the table


def evaluate(
    path: Annotated[Path, tyro.conf.Positional],
    *,
    suite: tuple[Literal["recall", "text", "csr", "needle"], ...] = ("recall",),
    steps: str = "last",
    sizes: tuple[int, ...] = (4, 16, 64),
    examples: int = 64,
    text: tuple[Path, ...] = (),
    window: int = 2048,
    stride: int | None = None,
    data: Path | None = None,
    limit: int | None = None,
    passkey_lengths: str = "256,1024,4096",
    modes: tuple[Literal["easy", "standard"], ...] = ("easy", "standard"),
    lengths: str = "1000..16000x35",
    depths: str = "0..100x35",
    filler: Path | None = None,
    json: Json = False,
) -> int:
    """Measure checkpoints of a run, or of every run of a study; what has been measured before is not again.

    Records go to evaluations.jsonl of each run. Killed and called again it goes on; several at once share a study.

    Args:
        path: A run folder, or a folder of runs.
        suite: recall: what a model can look up in its own context (mqar, copy, selective copy, induction, on random
            tokens, and a pass key in text). text: nats per token and word, bits per byte and loss by position on the
            files of --text.
            csr: zero-shot common sense (the seven tasks of CSR, LAMBADA, SciQ) on the files of --data.
            needle: a fact in long text, at every length and depth.
        steps: all, last, or steps of checkpoints such as 1000,2000.
        sizes: recall: how much is to be held.
        examples: recall: sequences of each kind and size.
        text: text: files as `linscale data prepare` takes them, or builtin:tinyshakespeare.
        window: text: tokens of a window; longer ones than in training are welcome.
        stride: text: tokens a window moves on; by default windows stand side by side.
        data: csr: the folder of evaluation sets, such as piqa_valid.jsonl.zst; needle: of paul_graham_essays.jsonl.zst.
        limit: csr: the first records of each set alone.
        passkey_lengths: recall: tokens of a prompt with a pass key.
        modes: needle: easy, where the text has question and answer together; standard, where it has the answer.
        lengths: needle: tokens of a prompt, such as 1000,2000 or 1000..16000x35, which is 35 at equal distances.
        depths: needle: percent of the text before the needle.
        filler: needle: the text around it, as `linscale data prepare` takes it; by default the essays in --data.
    """
    from linscale.evaluate.run import evaluate as run_job
    from linscale.evaluate.run import find_runs

    tasks = _tasks(suite, sizes, examples, text, window, stride)
    if "recall" in suite:
        tasks += _passkey_tasks(passkey_lengths, examples)
    if "csr" in suite:
        tasks += _csr_tasks(data, limit)
    if "needle" in suite:
        tasks += _needle_tasks(modes, lengths, depths, filler, data)
    chosen = None if steps in ("all", "last") else _steps(steps)
    limit_threads(cores())
    runs = find_runs(path)
    with ProgressBar() as bar:
        outcome = run_job(runs, tasks, last=steps == "last", steps=chosen, progress=bar.update)
    records = _results(runs, {task.name for task in tasks})
    if json:
        print_json({**asdict(outcome), "results": records})
    else:
        _show(path, outcome, records)
    return 1 if outcome.left_out else 0


def _show(path: Path, outcome: Outcome, records: list[dict[str, Any]]) -> None:
    rows = [(r["run"], str(r["step"]), r["task"], r["metric"], f"{r['value']:.4g}", _se(r)) for r in records]
    print_table(f"{path}", ("run", "step", "task", "metric", "value", "se"), rows[-SHOWN:], left=4)
    more = f"; the last {SHOWN} of {len(rows)} numbers shown" if len(rows) > SHOWN else ""
    print(f"{outcome.done} measured, {outcome.known} known before{more}.")
    for name, why in outcome.left_out.items():
        print(f"{name}: left out, {why}")


def _tasks(
    suites: tuple[str, ...], sizes: tuple[int, ...], examples: int, text: tuple[Path, ...], window: int,
    stride: int | None,
) -> list[Task]:  # fmt: skip
    from linscale.evaluate.recall import recall_tasks
    from linscale.evaluate.text import TextLoss

    for name, value in (("examples", examples), ("window", window), *(("sizes", size) for size in sizes)):
        if value < 1 or (name == "sizes" and value < 2):
            raise UserError(f"{name} = {value}: expected at least {2 if name == 'sizes' else 1}")
    tasks: list[Task] = []
    if "recall" in suites:
        tasks += recall_tasks(sizes, examples)
    if "text" in suites:
        if not text:
            raise UserError("suite text: no file; name some with --text, such as builtin:tinyshakespeare")
        tasks += [TextLoss(path, window, stride) for path in text]
    return tasks


def _csr_tasks(data: Path | None, limit: int | None) -> list[Task]:
    from linscale.evaluate.multiple_choice import csr_tasks

    if data is None:
        raise UserError("suite csr: no files; name their folder with --data")
    if limit is not None and limit < 1:
        raise UserError(f"limit = {limit}: expected at least 1")
    return [*csr_tasks(data, limit)]


def _passkey_tasks(lengths: str, examples: int) -> list[Task]:
    from linscale.evaluate.axis import parse_axis
    from linscale.evaluate.passkey import passkey_tasks

    return [*passkey_tasks(parse_axis("passkey_lengths", lengths), examples)]


def _needle_tasks(
    modes: tuple[Literal["easy", "standard"], ...], lengths: str, depths: str, filler: Path | None, data: Path | None
) -> list[Task]:
    from linscale.evaluate.axis import parse_axis
    from linscale.evaluate.haystack import read_haystack
    from linscale.evaluate.needle import ESSAYS, SEED, needle_tasks
    from linscale.evaluate.sets import find_set

    grid = parse_axis("lengths", lengths), parse_axis("depths", depths)
    if filler is None and data is None:
        raise UserError(f"suite needle: no filler; name a text with --filler, or the folder of {ESSAYS} with --data")
    path = filler if filler is not None else find_set(data or Path(), ESSAYS)
    return [*needle_tasks(modes, read_haystack(path, SEED), *grid)]


def _steps(text: str) -> list[int]:
    try:
        return [int(step) for step in text.split(",")]
    except ValueError:
        raise UserError(f"steps = {text!r}: expected all, last, or numbers such as 1000,2000") from None


def _results(runs: list[Path], tasks: set[str]) -> list[dict[str, Any]]:
    from linscale.run_folder import EVALUATIONS, latest_records

    keys = ("step", "task", "task_version", "metric")
    records = [record for run in runs for record in latest_records(run / EVALUATIONS, keys)]
    return [record for record in records if record["task"] in tasks]


def _se(record: dict[str, Any]) -> str:
    return "-" if record["se"] is None else f"{record['se']:.2g}"
