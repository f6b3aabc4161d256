"""What the evaluation job takes beside measuring: many tiny checkpoints under a task that does nothing.

    python benchmarks/evaluation_job.py [--runs 43] [--checkpoints 32] [--workers 1,2] [--json F]

43 runs of 32 checkpoints are the 1,376 of arXiv 2406.16690; here each is a TNL of 3 layers of 64. Seconds a checkpoint
for: opening the study, claiming, loading and checking weights, and recording one number; then for the suite "recall"
with few examples; then for a second call, which finds everything done.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from linscale.config import parse
from linscale.data.prepare import PrepareOptions, prepare
from linscale.data.tokenizer import Tokenizer
from linscale.distributed import cores, limit_threads
from linscale.evaluate.recall import recall_tasks
from linscale.evaluate.run import evaluate, find_runs
from linscale.evaluate.task import Result, Task
from linscale.models import LanguageModel
from linscale.run_folder import code_version
from linscale.train.config import RunConfig
from linscale.train.trainer import train

MODEL = {"arch": "tnl", "vocab_size": 257, "d_model": 64, "n_layers": 3, "head_dim": 32, "d_ff": 128}
RESULTS = Path(__file__).parent / "results"


class Nothing:
    """Takes no time."""

    name, metrics = "nothing", ("value",)

    def version(self, tokenizer: Tokenizer) -> str:
        return "1"

    def obstacle(self, model: LanguageModel, tokenizer: Tokenizer) -> str | None:
        return None

    def run(self, model: LanguageModel, tokenizer: Tokenizer) -> list[Result]:
        return [Result("value", 1.0, None, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=43)
    parser.add_argument("--checkpoints", type=int, default=32)
    parser.add_argument("--workers", type=lambda text: [int(n) for n in text.split(",")], default=[1, cores()])
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    today = datetime.date.today().isoformat()
    record: dict[str, Any] = {"date": today, "processor": platform.processor(), "cores": cores(), "rows": []}
    record |= {"code": code_version(), "runs": options.runs, "checkpoints": options.checkpoints}
    with tempfile.TemporaryDirectory() as folder:
        study = make_study(Path(folder), options.runs, options.checkpoints)
        count = options.runs * len(list((study / "run0" / "checkpoints").iterdir()))
        print(f"{count} checkpoints, {cores()} cores\n{'':<24}{'workers':>8}{'s':>9}{'ms each':>9}")
        for name, tasks in (("nothing", [Nothing()]), ("recall", recall_tasks((4,), 8))):
            for workers in options.workers:
                forget(study)
                for what in (name, f"{name}, again"):
                    seconds = timed(study, tasks, workers)
                    record["rows"].append({"task": what, "workers": workers, "seconds": seconds, "count": count})
                    print(f"{what:<24}{workers:>8}{seconds:>9.1f}{1e3 * seconds / count:>9.1f}", flush=True)
    out = options.json or RESULTS / f"{today}-cpu-evaluation-job.json"
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written to {out}")


def make_study(folder: Path, runs: int, checkpoints: int) -> Path:
    """One run trained, the others copies under names of their own."""
    (folder / "text.txt").write_text("".join(f"the cat sat on mat {number}\n" for number in range(2000)))
    options = PrepareOptions(document_bytes=300, val_fraction=0.2, workers=1)
    prepare([str(folder / "text.txt")], tokenizer="byte", out=folder / "data", options=options)
    recipe = {"tokens": 8 * checkpoints * 128, "batch_tokens": 128, "length": 32, "checkpoints": checkpoints}
    first = {"name": "run0", "model": MODEL, "data": {"path": str(folder / "data")}}
    train(
        folder / "study" / "run0",
        parse(RunConfig, {**first, "train": {**recipe, "validation_tokens": 64, "device": "cpu"}}),
    )
    for number in range(1, runs):
        run = folder / "study" / f"run{number}"
        shutil.copytree(folder / "study" / "run0", run)
        config = run / "config.json"
        config.write_text(config.read_text().replace('"run0"', f'"run{number}"'))
    return folder / "study"


def forget(study: Path) -> None:
    for run in find_runs(study):
        (run / "evaluations.jsonl").unlink(missing_ok=True)


def timed(study: Path, tasks: Sequence[Task], workers: int) -> float:
    """Seconds until all is recorded, by this process and `workers` - 1 more, whose start counts."""
    start = time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    others = [spawn.Process(target=work, args=(study, tasks, workers)) for _ in range(workers - 1)]
    for process in others:
        process.start()
    work(study, tasks, workers)
    for process in others:
        process.join()
    return time.perf_counter() - start


def work(study: Path, tasks: Sequence[Task], workers: int) -> None:
    limit_threads(max(1, cores() // workers))
    evaluate(find_runs(study), tasks)


if __name__ == "__main__":
    main()
