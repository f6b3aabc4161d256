"""How fast the laws of over-training, repeated data and accuracy are fitted, and how often 95% intervals hold. No GPU.

    python benchmarks/fit_forms.py [--tables 100] [--resamples 200] [--out RESULT.json]

Speed: 200 points with 0.3% noise (accuracy: 0.01); the whole fit of the 48 starts, second opinion and profiles, and
1000 resamples of points. Coverage: tables of 64 independent points of a planted law, 8 sizes by 8 lengths, 1 to 60
repetitions; errors and accuracies over 64 losses. Also 16 runs with 4 checkpoints each whose noise is mostly a shift of
the whole run, resampled by run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ops_cpu import processor

from linscale.run_folder import code_version
from linscale.study.table.form import Form, FormProblem
from linscale.study.table.form_fit import fit_form, minimum, refit, stretching
from linscale.study.table.overtrain import (
    downstream,
    error_form,
    error_starts,
    overtrain,
    overtrain_form,
    overtrain_starts,
)
from linscale.study.table.repeat import repeat, repeat_form, repeat_starts
from linscale.study.table.resampling import drawn_counts
from linscale.study.table.sigmoid import sigmoid, sigmoid_form, sigmoid_starts
from linscale.study.table.surface_fit import Loss

Array = np.ndarray
Law = tuple[tuple[float, ...], Array, Callable[[Array], Form], Callable[[FormProblem], Array]]
LAWS = ("overtrain", "repeat", "repeat_no_excess", "downstream", "sigmoid")
LINEAR = ("downstream", "sigmoid")
LOSSES = ("huber:1e-3", "l2", "lad")


def main() -> None:
    """Print both tables, and write them where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=100)
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    speeds = [speed(law, loss) for law in LAWS for loss in (("l2",) if law in LINEAR else LOSSES)]
    cases = [(law, loss, False) for law in LAWS for loss in (("l2",) if law in LINEAR else ("l2", "huber:1e-3"))]
    cases += [(law, "l2", True) for law in ("overtrain", "sigmoid")]
    record: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "device": processor(),
        "numpy": np.__version__,
        "code": code_version(),
        "speed": speeds,
        "coverage": [coverage(*case, arguments.tables, arguments.resamples) for case in cases],
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def planted(law: str, sizes: int, lengths: int) -> Law:
    """A truth, its values at sizes times lengths points, and how a table of them is fitted."""
    n, d = (
        grid.ravel()
        for grid in np.meshgrid(np.geomspace(1e7, 4e9, sizes), np.geomspace(1e8, 2e11, lengths), indexing="ij")
    )
    if law == "overtrain":
        truth: tuple[float, ...] = (1.84, 166.0, 367.0, -0.27)
        return truth, overtrain(n, d, *truth), lambda y: overtrain_form(n, d, y), lambda p: overtrain_starts(p, n, d)
    if law.startswith("repeat"):
        excess = law == "repeat"
        truth = (1.87, 521.0, 1488.0, 0.353, 0.353, 15.4, *([5.3] if excess else []))
        unique = d / np.array([1, 2, 5, 20, 60])[np.random.default_rng(0).integers(0, 5, n.size)]
        return (
            truth,
            repeat(n, d, unique, *truth),
            lambda y: repeat_form(n, d, unique, y, excess),
            lambda p: repeat_starts(p, n, d, unique, excess),
        )
    x = np.linspace(2, 5, n.size) if law == "downstream" else np.linspace(0.5, 2.2, n.size)
    if law == "downstream":
        truth = (0.86, 2.2, 0.7)
        return truth, downstream(x, *truth), lambda y: error_form(x), lambda p: error_starts(p, x)
    truth = (0.25, 0.7, 4.0, 0.9)
    return truth, sigmoid(x, *truth), lambda y: sigmoid_form(x, None), lambda p: sigmoid_starts(p, x, None)


def table(law: str, values: Array, random: np.random.Generator, run: Array | None = None) -> Array:
    """Values with noise: relative of 0.3%, or of 0.01; mostly shared within runs where `run` (m,) tells them apart."""
    noise = random.normal(size=values.size)
    if run is not None:
        noise = 0.4 * noise + 0.9 * random.normal(size=run.max() + 1)[run]
    return values + 0.01 * noise if law in LINEAR else values * np.exp(0.003 * noise)


def speed(law: str, loss: str) -> dict[str, Any]:
    """Seconds for the fit with all that belongs to it, and for 1000 resamples more."""
    _, exact, form, starts = planted(law, 10, 20)
    values = table(law, exact, np.random.default_rng(0))
    problem = FormProblem(form(values), Loss.parse(loss, "linear" if law in LINEAR else "log"), values)
    labels = np.arange(values.size)
    begun = time.process_time()
    found = fit_form(problem, starts(problem), np.empty((0, values.size)), labels)
    fitted = time.process_time()
    counts = drawn_counts(labels, 1000, 0)
    _, _, settled = problem.solve(np.tile(found.solution.vector, (1000, 1)), counts=counts)
    done = time.process_time()
    row = {
        "law": law,
        "loss": loss,
        "points": values.size,
        "fit_cpu_s": fitted - begun,
        "resamples_1000_cpu_s": done - fitted,
        "settled": float(settled.mean()),
        "agree": found.solution.agree / found.solution.starts,
    }
    print(row, flush=True)
    return row


def coverage(law: str, loss: str, by_run: bool, tables: int, resamples: int) -> dict[str, Any]:
    """Share of tables whose intervals hold each parameter."""
    truth, exact, form, starts = planted(law, 8, 8)
    random, hits = np.random.default_rng(1), np.zeros(len(truth))
    run = np.random.default_rng(2).permutation(np.repeat(np.arange(16), 4)) if by_run else None
    labels = np.arange(exact.size) if run is None else run
    for number in range(tables):
        values = table(law, exact, random, run)
        problem = FormProblem(form(values), Loss.parse(loss, "linear" if law in LINEAR else "log"), values)
        grid = starts(problem)[:: 20 if law == "repeat" else 5]
        best = minimum(problem, grid).vector
        replicates, _ = refit(problem, best, drawn_counts(labels, resamples, number))
        far = best + (replicates - best) * stretching(problem, best, labels, replicates)
        low, high = np.percentile(problem.form.numbers(np.clip(far, *problem.form.bounds)), [2.5, 97.5], axis=0)
        hits += (low <= truth) & (truth <= high)
    held = dict(zip(problem.form.parameters, (hits / tables).tolist(), strict=True))
    row = {"law": law, "loss": loss, "by": "run" if by_run else "point, independent", "tables": tables, "held": held}
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
