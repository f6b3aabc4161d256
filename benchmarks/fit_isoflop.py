"""How often 95% intervals of isoFLOP and PAC laws hold a planted law, and how far minima are off. No GPU.

    python benchmarks/fit_isoflop.py [--tables 200] [--resamples 400] [--out RESULT.json]

IsoFLOP tables are planted: L = E + A / N^alpha + B / D^beta with noise of the log loss, whose best sizes are power laws
of compute. Bias: the best size that each way of finding a minimum gives without noise, on wide and off-centre grids.
PAC tables have a valley around N = 10^6 (D / 10^8)^0.6, too small on one side and too large for the data on the other.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ops_cpu import processor

from linscale.run_folder import code_version
from linscale.study.flops import Flops
from linscale.study.laws import PFLOP_S_DAY
from linscale.study.table.fit import TABLE_LAWS
from linscale.study.table.group import Group, PointFit, Unit
from linscale.study.table.options import LawOptions, Method, Tolerance
from linscale.study.table.surface_fit import Loss
from linscale.study.table.surfaces import Array, chinchilla
from linscale.study.table.valley import Axis, find_minimum

SYMMETRIC = (0.0, 2000.0, 2000.0, 0.3, 0.3)
HOFFMANN = (1.69, 406.4, 410.7, 0.34, 0.28)
SKEWED = (1.69, 100.0, 5e4, 0.25, 0.5)
FLOPS = (1e18, 1e21)
OFF = (0.0, 0.25, 0.5, 0.75)
METHODS: tuple[Method, ...] = ("parabola", "cubic-log", "akima")


@dataclass(frozen=True)
class Grid:
    """An isoFLOP experiment: sizes from the best over `width` to the best times `width` at each budget."""

    budgets: int = 6
    sizes: int = 7
    width: float = 4.0
    off: float = 0.0
    """Of the middle of the grid, in half widths towards larger sizes."""

    def points(self, truth: Sequence[float]) -> tuple[Array, Array]:
        """C and N, each (budgets * sizes,)."""
        c = np.repeat(np.geomspace(*FLOPS, self.budgets), self.sizes)
        place = np.tile(np.linspace(-1, 1, self.sizes) + self.off, self.budgets)
        return c, best_size(c, truth) * self.width**place


def best_size(c: Array, truth: Sequence[float]) -> Array:
    """N at the lowest loss that c FLOPs reach, C = 6 N D."""
    _, A, B, alpha, beta = (np.array(value) for value in truth)
    a, log_n, _ = Flops().optimum(np.log(A), np.log(B), alpha, beta)
    return np.asarray(np.exp(log_n) * c**a)


def planted(truth: Sequence[float], irreducible: bool) -> dict[str, float]:
    """The parameters of the laws of the truth; of L only where the law and the truth have an E both, or none."""
    c = np.array([PFLOP_S_DAY, 10 * PFLOP_S_DAY])
    n = best_size(c, truth)
    values = {"n_opt": n, "d_opt": c / 6 / n}
    if irreducible or truth[0] == 0:
        values["l"] = chinchilla(n, c / 6 / n, *truth) - truth[0]
    found = {"E": truth[0]} if irreducible else {}
    for name, (one, ten) in values.items():
        found |= {f"{name}_coefficient": float(one), f"{name}_exponent": float(np.log10(ten / one))}
    return found


def table(c: Array, n: Array, loss: Array, run: Array) -> Group:
    """A group as a fit reads it."""
    d = c / 6 / n
    columns = {"n": "n", "d": "d", "c": "6nd", "loss": "loss"}
    return Group(
        "all", {"n": n, "d": d, "c": c, "loss": loss}, {"run": run.astype(str)}, np.arange(1, n.size + 1), columns
    )


@dataclass(frozen=True)
class Case:
    """What a line of the table of coverage is measured on."""

    name: str
    truth: tuple[float, ...]
    grid: Grid
    method: Method = "parabola"
    by: Unit = "point"
    noise: float = 0.003
    """Of each point."""
    shared: float = 0.0
    """Of a size at all budgets (by run), or of log N at the lowest loss of a budget (by budget)."""
    irreducible: bool = False
    """Whether the law of L has an E."""


CASES = (
    Case("6 budgets of 7 sizes", SYMMETRIC, Grid()),
    Case("5 of 5", SYMMETRIC, Grid(5, 5)),
    Case("4 of 3", SYMMETRIC, Grid(4, 3)),
    Case("3 of 4", SYMMETRIC, Grid(3, 4)),
    Case("6 of 7, akima", SYMMETRIC, Grid(), "akima"),
    Case("Hoffmann's law", HOFFMANN, Grid()),
    Case("Hoffmann's law, cubic-log", HOFFMANN, Grid(), "cubic-log"),
    Case("Hoffmann's law, akima", HOFFMANN, Grid(), "akima"),
    Case("Hoffmann's law, weak valleys: 1% noise", HOFFMANN, Grid(), noise=0.01),
    Case("skewed law", SKEWED, Grid()),
    Case("skewed law, cubic-log", SKEWED, Grid(), "cubic-log"),
    Case("Hoffmann's law with E", HOFFMANN, Grid(), irreducible=True),
    Case("Hoffmann's law with E, by budget", HOFFMANN, Grid(), by="budget", irreducible=True),
    Case("7 runs at all budgets", SYMMETRIC, Grid(), by="run", noise=0.002, shared=0.003),
    Case("7 runs at all budgets, by point", SYMMETRIC, Grid(), noise=0.002, shared=0.003),
    Case("best sizes of budgets vary by 10%", SYMMETRIC, Grid(), by="budget", shared=0.1),
    Case("the same, 3 budgets", SYMMETRIC, Grid(3, 7), by="budget", shared=0.1),
)
PAC_CASES = (
    {"name": "5 amounts of 8 sizes, 0.1% noise", "noise": 0.001},
    {"name": "0.3% noise", "noise": 0.003},
    {"name": "0.3% noise, tolerance 0.05", "noise": 0.003, "tolerance": 0.05},
    {"name": "0.3% noise, two seeds", "noise": 0.003, "repeats": 2},
    {"name": "0.3% noise, by budget", "noise": 0.003, "by": "budget"},
)


def main() -> None:
    """Print what is measured, and write it where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=400)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    record: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "device": processor(),
        "numpy": np.__version__,
        "code": code_version(),
        "tables": arguments.tables,
        "resamples": arguments.resamples,
        "bias": [bias(law, width, off) for law in ("hoffmann", "skewed") for width in (2.0, 4.0, 8.0) for off in OFF],
        "isoflop": [],
        "pac": [],
    }
    for row in record["bias"]:
        print(row, flush=True)
    for case in CASES:
        record["isoflop"].append({"case": case.name, **coverage(case, arguments.tables, arguments.resamples)})
        print(record["isoflop"][-1], flush=True)
    for each in PAC_CASES:
        options = {key: value for key, value in each.items() if key != "name"}
        held = pac_coverage(arguments.tables, arguments.resamples, **options)  # type: ignore[arg-type]
        record["pac"].append({"case": each["name"], **held})
        print(record["pac"][-1], flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def bias(law: str, width: float, off: float) -> dict[str, Any]:
    """Relative error of the best size without noise at the least and the most FLOPs, nine sizes a budget."""
    truth, grid = {"hoffmann": HOFFMANN, "skewed": SKEWED}[law], Grid(2, 9, width, off)
    c, n = grid.points(truth)
    row: dict[str, Any] = {"law": law, "width": width, "off": off}
    for method in METHODS:
        errors = []
        for part in (slice(0, 9), slice(9, 18)):
            axis = Axis(np.log(n[part]))
            loss = chinchilla(n[part], c[part] / 6 / n[part], *truth)
            found = find_minimum(method, axis, np.log(loss)[None])
            log_n = axis.centre + axis.reach * float(found.z[0])
            errors.append(float(np.expm1(log_n - np.log(best_size(c[part], truth)[0]))))
        row[method] = errors
    return row


def coverage(case: Case, tables: int, resamples: int) -> dict[str, Any]:
    """Share of tables whose intervals hold each parameter, the median width of that of n_opt_exponent, and the share
    of tables in which each warning was raised."""
    random, (c, n) = np.random.default_rng(1), case.grid.points(case.truth)
    place, budget = np.arange(n.size) % case.grid.sizes, np.arange(n.size) // case.grid.sizes
    truth = planted(case.truth, case.irreducible)
    hits, warned, widths = dict.fromkeys(truth, 0), Counter[str](), []
    law = "isoflop_irreducible" if case.irreducible else "isoflop"
    settings = PointFit(law, Loss(), bootstrap=resamples, by=case.by, options=LawOptions(case.method))
    shifted = case.shared > 0 and case.by != "budget"
    for _ in range(tables):
        moved = case.shared if case.by == "budget" else 0.0
        at = n * np.exp(moved * random.normal(size=case.grid.budgets))[budget]
        loss = chinchilla(at, c / 6 / at, *case.truth) * np.exp(case.noise * random.normal(size=n.size))
        if shifted:
            loss = loss * np.exp(case.shared * random.normal(size=case.grid.sizes))[place]
        fitted = TABLE_LAWS[law].fit(table(c, n, loss, place if shifted else budget * 100 + place), settings)
        warned.update(each["name"] for each in fitted["warnings"])
        for name, value in truth.items():
            row = fitted["parameters"][name]
            hits[name] += row["low"] <= value <= row["high"]
        row = fitted["parameters"]["n_opt_exponent"]
        widths.append(row["high"] - row["low"])
    return {
        "held": {name: count / tables for name, count in hits.items()},
        "width": float(np.median(widths)),
        "warned": {name: count / tables for name, count in warned.items()},
    }


def pac_coverage(
    tables: int, resamples: int, *, noise: float, tolerance: float = 0.02, repeats: int = 1, by: Unit = "point"
) -> dict[str, Any]:
    """Share of tables whose intervals hold the planted exponent, 0.6, and their median width."""
    random, hits, widths = np.random.default_rng(1), 0, []
    d = np.repeat(np.geomspace(1e8, 1e11, 5), 8 * repeats)
    u = np.tile(np.repeat(np.linspace(-2.4, 3.4, 8), repeats), 5)
    n = 1e6 * (d / 1e8) ** 0.6 * np.exp(u)
    options = LawOptions(tolerance=Tolerance(tolerance, relative=False))
    for _ in range(tables):
        loss = 2 + 40 * d**-0.2 + 0.15 * np.exp(-u) + 0.02 * np.exp(0.7 * u)
        loss = loss * np.exp(noise * random.normal(size=n.size))
        group = Group("all", {"n": n, "d": d, "loss": loss}, {}, np.arange(1, n.size + 1), {})
        settings = PointFit("pac", Loss(), bootstrap=resamples, by=by, options=options)
        row = TABLE_LAWS["pac"].fit(group, settings)["parameters"]["exponent"]
        hits += row["low"] <= 0.6 <= row["high"]
        widths.append(row["high"] - row["low"])
    return {"held": hits / tables, "width": float(np.median(widths))}


if __name__ == "__main__":
    main()
