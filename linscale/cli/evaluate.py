"""linscale evaluate: tasks on the checkpoints of a run or a study."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from linscale.cli.output import Json, ProgressBar, print_json, print_table
from linscale.cli.suite_options import Options
from linscale.cli.suites import build_tasks, suite_names
from linscale.config import UserError
from linscale.distributed import cores, follow_parent, limit_threads

if TYPE_CHECKING:
    from linscale.evaluate.run import Outcome
    from linscale.evaluate.task import Task

SHOWN = 40  # rows of the table
Suites = Annotated[
    tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]],
    tyro.conf.arg(
        metavar="NAME,NAME",
        help="""What to measure; recall unless given.

ppl: perplexity of WikiText-2 and LAMBADA (its last words, and whole), and of the files of --text.

csr: zero-shot common sense, BoolQ, PIQA, HellaSwag, WinoGrande, ARC-easy and -challenge, OpenBookQA, and LAMBADA and \
SciQ where --data has them.

mmlu: 57 subjects, four letters to choose from. commonsense_qa: five. Any single task of csr by its name, such as piqa.

recall: what a model can look up in its own context (mqar, copy, selective copy, induction, on random tokens; \
a pass key in text).

text: nats per token and word, bits per byte and loss by position on the files of --text.

needle: a fact hidden in long text, at every length and depth of a grid, in the essays of --data or in --filler.

scrolls: questions about long documents (SCROLLS, QMSum, L-Eval), answered greedily, on the files of --data.

lm-eval:TASK: any task of lm-evaluation-harness, or of --include (needs pip install 'linscale[eval]').""",
    ),
]
DEFAULTS = Options()


def evaluate(
    path: Annotated[Path, tyro.conf.Positional],
    *,
    suite: Suites = (),
    steps: str = "last",
    workers: int | None = None,
    options: Annotated[Options, tyro.conf.OmitArgPrefixes] = DEFAULTS,
    json: Json = False,
) -> int:
    """Measure checkpoints of a run, or of every run of a study; what has been measured before is not again.

    Records go to evaluations.jsonl of each run. Killed and called again it goes on; several at once share a study.
    Whatever can be wrong with suites, files and options is said before a model is loaded.

    Args:
        path: A run folder, or a folder of runs.
        steps: all, last, or steps of checkpoints such as 1000,2000.
        workers: Processes that share the work; by default one for each GPU.
        options: What can be chosen of each suite.
    """
    names = suite_names(suite)
    chosen = None if steps in ("all", "last") else _steps(steps)
    if workers is not None and workers < 1:
        raise UserError(f"workers = {workers}: expected at least 1")
    tasks = build_tasks(names, options)
    from linscale.evaluate.run import evaluate as run_job
    from linscale.evaluate.run import find_runs

    runs, last = find_runs(path), steps == "last"
    count = workers or _gpus() or 1
    work = functools.partial(_assist, path, names, options, last, chosen)
    limit_threads(max(1, cores() // count))
    with assistants(count - 1, work), ProgressBar() as bar:
        outcome = run_job(runs, tasks, last=last, steps=chosen, progress=bar.update)
    records = _results(runs, tasks)
    if json:
        print_json({**asdict(outcome), "results": records})
    else:
        _show(path, outcome, records)
    return 1 if outcome.left_out else 0


@contextlib.contextmanager
def assistants(count: int, work: Callable[[int, int], None]) -> Iterator[None]:
    """Inside, `count` more processes do work(number, count + 1), with numbers from 1; they end when this one does."""
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=work, args=(number, count + 1), daemon=True) for number in range(1, count + 1)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:  # all is recorded by now, or this process has been stopped
            process.terminate()
            process.join()


def _assist(
    path: Path, names: Sequence[str], options: Options, last: bool, steps: Sequence[int] | None, number: int, count: int
) -> None:
    """Do what the first process does, without a word: what goes wrong here does there too."""
    follow_parent()
    limit_threads(max(1, cores() // count))
    from linscale.evaluate.run import evaluate as run_job
    from linscale.evaluate.run import find_runs

    if _gpus():
        import torch

        torch.cuda.set_device(number % _gpus())
    with contextlib.suppress(UserError), contextlib.redirect_stderr(io.StringIO()):
        run_job(find_runs(path), build_tasks(names, options), last=last, steps=steps)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _show(path: Path, outcome: Outcome, records: list[dict[str, Any]]) -> None:
    rows = [
        (r["run"], str(r["step"]), r["task"], r["metric"], f"{r['value']:.4g}", _se(r), str(r["count"]))
        for r in records
    ]
    print_table(f"{path}", ("run", "step", "task", "metric", "value", "se", "count"), rows[-SHOWN:], left=4)
    more = f"; the last {SHOWN} of {len(rows)} numbers shown" if len(rows) > SHOWN else ""
    print(f"{outcome.done} measured, {outcome.known} known before{more}.")
    for run, step, mean, se in csr_means(records):
        spread = "" if se is None else f", standard error {se:.2g}"
        print(f"{run}, step {step}: CSR, the mean of the seven, {mean:.4g}{spread}.")
    for name, why in outcome.left_out.items():
        print(f"{name}: left out, {why}")


def csr_means(records: Sequence[dict[str, Any]]) -> list[tuple[str, int, float, float | None]]:
    """Run, step, mean of the seven tasks of CSR and its standard error, of every checkpoint that has them all, on
    whole sets."""
    from linscale.evaluate.questions import CSR

    of: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for record in records:
        if CSR.get(record["task"]) == record["metric"] and "-first" not in record["task_version"]:
            of.setdefault((record["run"], record["step"]), []).append(record)
    means: list[tuple[str, int, float, float | None]] = []
    for (run, step), seven in of.items():
        if len(seven) == len(CSR):
            errors = [record["se"] for record in seven if record["se"] is not None]
            se = math.sqrt(sum(error**2 for error in errors)) / len(CSR) if len(errors) == len(CSR) else None
            means.append((run, step, sum(record["value"] for record in seven) / len(CSR), se))
    return means


def _steps(text: str) -> list[int]:
    try:
        return [int(step) for step in text.split(",")]
    except ValueError:
        raise UserError(f"steps = {text!r}: expected all, last, or numbers such as 1000,2000") from None


def _results(runs: list[Path], tasks: list[Task]) -> list[dict[str, Any]]:
    """Records of these tasks in these versions."""
    from linscale.checkpoint import TOKENIZER
    from linscale.data.tokenizer import load_tokenizer
    from linscale.evaluate.task import tasks_of_run
    from linscale.run_folder import CONFIG, EVALUATION_KEYS, EVALUATIONS, latest_records, read_json

    found = []
    for run in runs:
        if not (run / TOKENIZER).is_file():
            continue  # its data were no text: left out
        tokenizer = load_tokenizer(str(run / TOKENIZER))
        wanted = {(task.name, task.version(tokenizer)) for task in tasks_of_run(tasks, read_json(run / CONFIG))}
        records = latest_records(run / EVALUATIONS, EVALUATION_KEYS)
        found += [record for record in records if (record.get("task"), record.get("task_version")) in wanted]
    return found


def _se(record: dict[str, Any]) -> str:
    return "-" if record["se"] is None else f"{record['se']:.2g}"
