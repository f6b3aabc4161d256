"""How fast points are fitted, and how often 95% intervals hold a planted law. No GPU.

    python benchmarks/fit.py [--tables 400] [--resamples 300] [--out RESULT.json]

Speed: a chinchilla law with 0.5% noise at 12 sizes by 20 lengths, 240 points; the grid of starts, and 1000 resamples of
points. Coverage: many tables of a planted law, with the loss of a run far beyond them predicted too (`CASES`).
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from ops_cpu import processor

from linscale.distributed import cores
from linscale.run_folder import code_version
from linscale.study.table.group import Group
from linscale.study.table.noise import find_repeats, redraw
from linscale.study.table.resampling import widened
from linscale.study.table.surface_fit import Array, Loss, Problem, fit, refit, resample, spread, stretching
from linscale.study.table.surfaces import LAWS, chinchilla, gamma_form

CHINCHILLA = (1.69, 406.4, 410.7, 0.34, 0.28)
GAMMA = (1.6, 2000.0, 3000.0, 0.45, 0.4, 0.8)
NOISE = 0.005
LOSSES = ("huber:1e-3", "l2", "lad")


def main() -> None:
    """Print both tables, and write them where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=400)
    parser.add_argument("--resamples", type=int, default=300)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    record: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "device": processor(),
        "numpy": np.__version__,
        "code": code_version(),
        "speed": [speed(loss) for loss in LOSSES],
        "coverage": [],
    }
    with ProcessPoolExecutor(cores()) as pool:
        for row in pool.map(coverage, CASES, repeat(arguments.tables), repeat(arguments.resamples)):
            record["coverage"].append(row)
            print(row, flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def grid(sizes: int, lengths: int) -> tuple[Array, Array]:
    """N and D of every size at every length."""
    n, d = np.meshgrid(np.geomspace(2e7, 2e10, sizes), np.geomspace(5e8, 5e11, lengths), indexing="ij")
    return n.ravel(), d.ravel()


def speed(loss: str) -> dict[str, Any]:
    """Seconds for the grid of starts and for 1000 resamples."""
    n, d = grid(12, 20)
    values = chinchilla(n, d, *CHINCHILLA) * np.exp(NOISE * np.random.default_rng(0).normal(size=n.size))
    problem = Problem(LAWS["chinchilla"], Loss.parse(loss, "log"), np.array([n, d]), values)
    begun = time.perf_counter()
    found = fit(problem)
    fitted = time.perf_counter()
    _, settled = resample(problem, found.vector, np.arange(n.size), 1000, seed=0)
    row = {"loss": loss, "points": n.size, "fit_s": fitted - begun, "resamples_1000_s": time.perf_counter() - fitted}
    print(row | {"settled": float(settled.mean())}, flush=True)
    return row | {"settled": float(settled.mean())}


FAR = (1e11, 2e12)  # N and D, beyond every table: the prediction whose coverage is measured


@dataclass(frozen=True)
class Case:
    """Tables whose law is known."""

    law: str
    loss: str
    table: str
    """"points": 12 sizes by 5 lengths. "runs": 24 runs of 5 checkpoints. "seeds": 12 configurations, 3 runs each."""
    by: str
    outliers: bool = False
    """One point in twelve is off by ten standard deviations."""


CASES = (
    *(Case("chinchilla", loss, "points", "point") for loss in LOSSES),
    Case("chinchilla", "huber:1e-3", "points", "point", outliers=True),
    Case("gamma", "l2", "points", "point"),
    *(Case("chinchilla", loss, "runs", "run") for loss in ("l2", "huber:1e-3")),
    Case("chinchilla", "l2", "runs", "point"),
    Case("chinchilla", "l2", "seeds", "run"),
    Case("chinchilla", "l2", "seeds", "seed"),
)


def design(kind: str) -> tuple[Array, Array, Array]:
    """N, D and the run of every point."""
    if kind == "points":
        n, d = grid(12, 5)
        return n, d, np.arange(n.size)
    n, d = grid(6, 4) if kind == "runs" else grid(4, 3)
    run = np.repeat(np.arange(n.size), 5 if kind == "runs" else 3)
    share = np.tile([0.2, 0.4, 0.6, 0.8, 1.0], n.size) if kind == "runs" else 1.0
    return n[run], d[run] * share, run if kind == "runs" else np.arange(run.size)


def coverage(case: Case, tables: int, resamples: int) -> dict[str, Any]:
    """Share of tables whose intervals hold each parameter, and the loss at `FAR`.

    Noise of runs is mostly a shift of the whole run: 0.8 of it, and 0.6 of every checkpoint's own, in squares.
    """
    truth = np.array(CHINCHILLA if case.law == "chinchilla" else GAMMA)
    surface = chinchilla if case.law == "chinchilla" else gamma_form
    random, (n, d, run) = np.random.default_rng(1), design(case.table)
    hits = np.zeros(len(truth) + 1)
    for table in range(tables):
        noise = random.normal(size=n.size)
        if case.table == "runs":
            noise = 0.6 * noise + 0.8 * random.normal(size=run[-1] + 1)[run]
        if case.outliers:
            noise += 10 * (random.random(n.size) < 1 / 12)
        values = surface(n, d, *truth) * np.exp(NOISE * noise)
        problem = Problem(LAWS[case.law], Loss.parse(case.loss, "log"), np.array([n, d]), values)
        vector = fit(problem).vector
        if case.by == "seed":
            group = Group("all", {"n": n, "d": d, "loss": values}, {}, np.arange(n.size), {})
            factor = 1.0
            replicates, _ = redraw(problem, vector, find_repeats(group, ("n", "d")), resamples, seed=table)
        else:
            labels = run if case.by == "run" else np.arange(n.size)
            replicates, _ = refit(problem, vector, labels, resamples, table)
            factor = stretching(problem, vector, labels, replicates)
        numbers = problem.numbers(spread(problem, vector, replicates, factor))
        far = surface(*FAR, *problem.numbers(np.vstack([vector, replicates])).T)
        drawn = np.column_stack([numbers, widened(far, factor)[1:]])
        low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
        true = np.append(truth, surface(*FAR, *truth))
        hits += (low <= true) & (true <= high)
    names = [*LAWS[case.law].parameters, "prediction"]
    return asdict(case) | {"tables": tables, "held": dict(zip(names, (hits / tables).tolist(), strict=True))}


if __name__ == "__main__":
    main()
