"""How often 95% intervals of isoFLOP, envelope and PAC laws hold a planted law, and how far minima are off. No GPU.

    python benchmarks/fit_isoflop.py [--tables 200] [--resamples 400] [--out RESULT.json]

Tables are planted: L = E + A / N^alpha + B / D^beta with noise of the log loss, whose best sizes are power laws of
compute. Bias: the best size that each way of finding a minimum gives without noise, on grids that are wide or off centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from linscale.study.laws import PFLOP_S_DAY
from linscale.study.table.fit import TABLE_LAWS
from linscale.study.table.group import Group, PointFit, Unit
from linscale.study.table.options import LawOptions, Method
from linscale.study.table.surface_fit import Loss
from linscale.study.table.surfaces import Array, chinchilla, optimum

SYMMETRIC = (0.0, 2000.0, 2000.0, 0.3, 0.3)
HOFFMANN = (1.69, 406.4, 410.7, 0.34, 0.28)
SKEWED = (1.69, 100.0, 5e4, 0.25, 0.5)
FLOPS = (1e18, 1e21)


@dataclass(frozen=True)
class Grid:
    """An isoFLOP experiment: `sizes` sizes at each of `budgets` budgets, from the best over `width` to it times `width`."""

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
    a, log_n, _ = optimum(*(np.array(value) for value in truth[1:]))
    return np.asarray(np.exp(log_n) * (c / 6) ** a)


def planted(truth: Sequence[float]) -> dict[str, float]:
    """The parameters of the power laws of the truth; those of L only where it has no E."""
    c = np.array([PFLOP_S_DAY, 10 * PFLOP_S_DAY])
    n = best_size(c, truth)
    values = {"n_opt": n, "d_opt": c / 6 / n}
    if truth[0] == 0:
        values["l"] = chinchilla(n, c / 6 / n, *truth)
    found = {}
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


def coverage(
    truth: Sequence[float],
    grid: Grid,
    *,
    method: Method = "parabola",
    by: Unit = "point",
    noise: float = 0.003,
    shared: float = 0.0,
    tables: int = 200,
    resamples: int = 400,
) -> dict[str, Any]:
    """Share of tables whose intervals hold each parameter. `shared` is noise of a size at all budgets (by run), or
    of the best size of a budget (by budget)."""
    random, (c, n) = np.random.default_rng(1), grid.points(truth)
    place, budget = np.arange(n.size) % grid.sizes, np.arange(n.size) // grid.sizes
    hits: dict[str, int] = dict.fromkeys(planted(truth), 0)
    widths, refused = [], 0
    settings = PointFit("isoflop", Loss(), bootstrap=resamples, by=by, options=LawOptions(method))
    for _ in range(tables):
        at = n * np.exp(shared * random.normal(size=grid.budgets))[budget] if by == "budget" else n
        loss = chinchilla(at, c / 6 / at, *truth) * np.exp(noise * random.normal(size=n.size))
        if by == "run":
            loss = loss * np.exp(shared * random.normal(size=grid.sizes))[place]
        group = table(c, n, loss, place if by == "run" else np.arange(n.size))
        fitted = TABLE_LAWS["isoflop"].fit(group, settings)
        refused += len(fitted["dropped"]) > 0
        for name, value in planted(truth).items():
            row = fitted["parameters"][name]
            hits[name] += row["low"] <= value <= row["high"]
        row = fitted["parameters"]["n_opt_exponent"]
        widths.append(row["high"] - row["low"])
    return {
        "held": {k: v / tables for k, v in hits.items()},
        "width": float(np.median(widths)),
        "dropped": refused / tables,
    }


if __name__ == "__main__":
    import sys
    import time

    T = int(sys.argv[1])
    for label, args, kw in [
        ("sym point", (SYMMETRIC, Grid()), {}),
        ("sym 5x5", (SYMMETRIC, Grid(5, 5)), {}),
        ("sym 3x4", (SYMMETRIC, Grid(3, 4)), {}),
        ("sym 4x3", (SYMMETRIC, Grid(4, 3)), {}),
        ("hoff", (HOFFMANN, Grid()), {}),
        ("hoff weak", (HOFFMANN, Grid(6, 7)), {"noise": 0.01}),
        ("hoff akima", (HOFFMANN, Grid()), {"method": "akima"}),
        ("hoff cubic", (HOFFMANN, Grid()), {"method": "cubic-log"}),
        ("skewed", (SKEWED, Grid()), {}),
        ("skewed cubic", (SKEWED, Grid()), {"method": "cubic-log"}),
        ("run", (SYMMETRIC, Grid()), {"by": "run", "noise": 0.002, "shared": 0.003}),
        ("budget", (SYMMETRIC, Grid()), {"by": "budget", "shared": 0.1}),
        ("budget3", (SYMMETRIC, Grid(3, 7)), {"by": "budget", "shared": 0.1}),
    ]:
        t = time.time()
        r = coverage(*args, **kw, tables=T)
        print(
            label,
            {k.replace("coefficient", "c").replace("exponent", "e"): round(v, 3) for k, v in r["held"].items()},
            "w %.3f" % r["width"],
            "dropped %.2f" % r["dropped"],
            "%.1fs" % (time.time() - t),
            flush=True,
        )
