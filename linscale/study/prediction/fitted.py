"""One fitted group: the parameters of the fit and of its resamples, and what it was fitted to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from linscale.study.laws import PFLOP_S_DAY

Array = np.ndarray
SAME = 0.01  # relative: FLOPs this near to k N D are k N D
ERROR = ("E_error", "k", "g")  # parameters of the overtrain law's second step
ROUGH = 0.10  # root mean square of log FLOPs about k N^p D


def widened_residuals(residuals: Array, parameters: int) -> Array:
    """Residuals (m,) times sqrt(m / (m - p)), without those that are NaN; none where parameters are as many."""
    found = residuals[np.isfinite(residuals)]
    free = len(found) - parameters
    return found * np.sqrt(len(found) / free) if free > 0 else found[:0]


@dataclass(frozen=True)
class Flops:
    """FLOPs = coefficient * N^exponent * D."""

    coefficient: float = 6.0
    exponent: float = 1.0
    scatter: float = 0.0
    """Root mean square of the logarithm of the points' FLOPs about it."""

    def __str__(self) -> str:
        if self.exponent == 1.0:
            return f"C = {self.coefficient:.4g} N D"
        return f"C = {self.coefficient:.4g} N^{self.exponent:.4g} D"

    def flops(self, n: float, d: float) -> float:
        """FLOPs of training N parameters on D tokens."""
        return float(self.coefficient * n**self.exponent * d)

    def tokens(self, flops: float, n: float) -> float:
        """Tokens that FLOPs pay for at N parameters."""
        return float(flops / (self.coefficient * n**self.exponent))

    def params(self, flops: float, d: float) -> float:
        """Parameters that FLOPs pay for at D tokens."""
        return float((flops / (self.coefficient * d)) ** (1 / self.exponent))


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
        """How FLOPs follow from N and D: 6 N D, or a power of N times D through the points where they keep FLOPs."""
        seen = self.observed
        if not {"n", "d", "c"} <= set(seen) or len(seen["c"]) < 2:
            return Flops()
        log_n, log_each = np.log(seen["n"]), np.log(seen["c"] / seen["d"])
        if np.abs(log_each - log_n - np.log(6)).max() < SAME:
            return Flops()
        if np.ptp(log_n) < np.log(1.5) or np.ptp(log_each - log_n) < SAME:
            return Flops(float(np.exp((log_each - log_n).mean())), 1.0, float((log_each - log_n).std()))
        slope, intercept = np.polyfit(log_n, log_each, 1)
        rest = log_each - intercept - slope * log_n
        return Flops(float(np.exp(intercept)), float(slope), float(np.sqrt((rest**2).mean())))

    @cached_property
    def ranges(self) -> Mapping[str, tuple[float, float]]:
        """Least and most that was fitted: by role, c in FLOPs, as far as the file tells."""
        seen = dict(self.observed)
        if "c" not in seen and {"n", "d"} <= set(seen):
            seen["c"] = 6 * seen["n"] * seen["d"]
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
