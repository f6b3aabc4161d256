"""How fast points are fitted, and how often 95% intervals hold a planted law. No GPU.

    python benchmarks/fit.py [--tables 200] [--resamples 500] [--out RESULT.json]

Speed: a chinchilla law with 0.5% noise at 12 sizes by 20 lengths, 240 points; the grid of starts, and 1000 resamples of
points. Coverage: many tables of 60 points, 12 sizes by 5 lengths, of the same law and of a gamma form; and of 24 runs
with 5 checkpoints each whose noise is mostly a shift of the whole run, resampled by run and by point.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from ops_cpu import processor

from linscale.run_folder import code_version
from linscale.study.table.surface_fit import Array, Loss, Problem, fit, resample
from linscale.study.table.surfaces import LAWS, chinchilla, gamma_form

CHINCHILLA = (1.69, 406.4, 410.7, 0.34, 0.28)
GAMMA = (1.6, 2000.0, 3000.0, 0.45, 0.4, 0.8)
NOISE = 0.005
LOSSES = ("huber:1e-3", "l2", "lad")


def main() -> None:
    """Print both tables, and write them where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=500)
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
    cases = [("chinchilla", "l2", None), ("chinchilla", "huber:1e-3", None), ("gamma", "l2", None)]
    for law, loss, by in [*cases, ("chinchilla", "l2", "run"), ("chinchilla", "l2", "point")]:
        record["coverage"].append(coverage(law, loss, by, arguments.tables, arguments.resamples))
        print(record["coverage"][-1], flush=True)
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


def coverage(law: str, loss: str, by: str | None, tables: int, resamples: int) -> dict[str, Any]:
    """Share of tables whose intervals hold each parameter; `by` None for independent points, else runs with five."""
    truth = np.array(CHINCHILLA if law == "chinchilla" else GAMMA)
    surface = chinchilla if law == "chinchilla" else gamma_form
    random = np.random.default_rng(1)
    n, d = grid(12, 5) if by is None else grid(6, 4)
    run = np.arange(n.size)
    if by is not None:
        run = np.repeat(run, 5)
        n, d = n[run], d[run] * np.tile([0.2, 0.4, 0.6, 0.8, 1.0], len(n))
    hits = np.zeros(len(truth))
    for table in range(tables):
        noise = NOISE * random.normal(size=n.size)
        if by is not None:
            noise = 0.4 * noise + 0.8 * NOISE * random.normal(size=run[-1] + 1)[run]
        problem = Problem(LAWS[law], Loss.parse(loss, "log"), np.array([n, d]), surface(n, d, *truth) * np.exp(noise))
        labels = run if by == "run" else np.arange(n.size)
        replicates, _ = resample(problem, fit(problem).vector, labels, resamples, seed=table)
        low, high = np.percentile(problem.numbers(replicates), [2.5, 97.5], axis=0)
        hits += (low <= truth) & (truth <= high)
    held = dict(zip(LAWS[law].parameters, (hits / tables).tolist(), strict=True))
    return {"law": law, "loss": loss, "by": by or "point, independent", "tables": tables, "held": held}


if __name__ == "__main__":
    main()
