"""One fitted group, the parameters of the fit and of its resamples, and what it was fitted to; and several joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from linscale.study.flops import Flops, fit_flops
from linscale.study.laws import PFLOP_S_DAY

Array = np.ndarray
SEED = 0  # of what is joined at random
ERROR = ("E_error", "k", "g")  # parameters of the overtrain law's second step


def widened_residuals(residuals: Array, parameters: int) -> Array:
    """Residuals (m,) times sqrt(m / (m - p)), without those that are NaN; none where parameters are as many."""
    found = residuals[np.isfinite(residuals)]
    free = len(found) - parameters
    return found * np.sqrt(len(found) / free) if free > 0 else found[:0]


@dataclass(frozen=True)
class Fitted:
    """A group of a fit file. Arrays (1 + r,) hold the value of the fit, then those of its r resamples."""

    name: str
    source: str
    """The file it was read from."""
    law: str
    values: Mapping[str, Array]
    """(1 + r,) by parameter."""
    entry: Mapping[str, Any]
    """The group as the file has it."""
    table: Mapping[str, Any]
    """What the file says of all groups: `table` (its own source), `columns`, `settings`."""

    @property
    def resamples(self) -> int:
        """How many."""
        return len(next(iter(self.values.values()))) - 1

    @property
    def stretch(self) -> float:
        """What a prediction's distance from the fit's is multiplied by, resample by resample: 1 where nothing is said.

        A fit eats freedom, and resamples vary too little. The correction belongs to predictions: parameters make up
        for each other along curved valleys, and a vector moved out along a straight line is no fit any more.
        """
        return float((self.entry.get("bootstrap") or {}).get("prediction_stretch") or 1.0)

    @cached_property
    def observed(self) -> Mapping[str, Array]:
        """What was fitted, each (m,): n, d, c in FLOPs and bpb, of those that the file keeps."""
        points = self.entry.get("points") or {}
        found = {role: np.array(points[role], dtype=float) for role in ("n", "d", "c", "bpb") if role in points}
        line = self.entry.get("minima") or self.entry.get("envelope") or {}
        if "c" not in found and "compute" in line:
            found = {
                role: np.array(line[key], dtype=float)
                for role, key in (("n", "params"), ("d", "tokens"), ("c", "compute"))
                if key in line
            }
            found["c"] = found["c"] * PFLOP_S_DAY
        return found

    @cached_property
    def flops(self) -> Flops:
        """How FLOPs follow from N and D: as the fit says, else through the points that keep FLOPs, else 6 N D."""
        said, seen = self.entry.get("compute") or {}, self.observed
        if "k" in said:
            return Flops(said["k"], said["kappa"], said.get("largest_deviation") or 0.0)
        if not {"n", "d", "c"} <= set(seen) or len(seen["c"]) < 2:
            return Flops()
        return fit_flops(seen["n"], seen["d"], seen["c"])

    @property
    def definition(self) -> str:
        """What C is: the name of a definition in `table.definitions`, or of a column. A study counts as the paper."""
        said = self.entry.get("compute") or {}
        return str(said.get("definition") or self.table["columns"].get("c") or ("6nd" if self.from_table else "paper"))

    @property
    def from_table(self) -> bool:
        """Whether it was fitted by `linscale fit`, not by a study or by the paper."""
        return bool(self.table["columns"])

    @cached_property
    def ranges(self) -> Mapping[str, tuple[float, float]]:
        """Least and most that was fitted: by role, c in FLOPs, as far as the file tells."""
        seen = dict(self.observed)
        if "c" not in seen and {"n", "d"} <= set(seen):
            seen["c"] = self.flops.flops(seen["n"], seen["d"])
        found = {role: (float(each.min()), float(each.max())) for role, each in seen.items() if each.size}
        if self.entry.get("compute_range"):
            low, high = self.entry["compute_range"]
            found["c"] = (low * PFLOP_S_DAY, high * PFLOP_S_DAY)
        return found

    @property
    def space(self) -> Literal["log", "linear"]:
        """Whether residuals are of logarithms."""
        return "log" if "of log " in str((self.entry.get("objective") or {}).get("name")) else "linear"

    @cached_property
    def residuals(self) -> Array:
        """(m,) prediction minus observation in `space`, widened by sqrt(m / (m - p)) for the p parameters fitted."""
        listed = (self.entry.get("points") or {}).get("residual") or []
        fitted = [name for name in self.values if name not in ERROR]
        return widened_residuals(np.array(listed, dtype=float), len(fitted))

    def take(self, rows: Array) -> Fitted:
        """The fit with its resamples chosen and ordered by rows (r',), counted from 0."""
        order = np.concatenate([[0], 1 + rows]).astype(int)
        return replace(self, values={name: each[order] for name, each in self.values.items()})

    def renamed(self, name: str) -> Fitted:
        """The same under another name."""
        return replace(self, name=name)

    def resampled_as(self, other: Fitted) -> bool:
        """Whether both laws are of the same rows of one table, resampled alike: then resamples share their noise."""
        mine, its = (self._resampling(each) for each in (self, other))
        return mine is not None and mine == its

    @staticmethod
    def _resampling(each: Fitted) -> tuple[Any, ...] | None:
        rows = (each.entry.get("points") or {}).get("row")
        if not rows or not each.resamples or not each.table["table"]:
            return None
        settings = each.table["settings"]
        return (each.table["table"], tuple(rows), settings.get("by"), settings.get("seed"), each.resamples)


def paired(fits: Sequence[Fitted]) -> list[Fitted]:
    """The fits with equally many resamples, as many as the most has.

    Fits of the same rows of one table that were resampled alike keep their order: their resamples share noise. All
    others are independent and are joined at random, for the same seed and number of units draws the same units by
    number in every group, which says nothing. A fit without resamples repeats its value, as if it were exact.
    """
    count = max(fitted.resamples for fitted in fits)
    generator = np.random.default_rng(SEED)
    orders: list[np.ndarray] = []
    for place, fitted in enumerate(fits):
        alike = [order for order, before in zip(orders, fits, strict=False) if before.resampled_as(fitted)]
        if alike:
            orders.append(alike[0])
        elif fitted.resamples == 0:
            orders.append(np.full(count, -1))  # the one before the first resample: the fit itself
        elif fitted.resamples < count:
            orders.append(generator.integers(fitted.resamples, size=count))
        else:
            orders.append(generator.permutation(count) if place else np.arange(count))
    return [fitted.take(order) for fitted, order in zip(fits, orders, strict=True)]
