"""Downstream scores of a loss, and the loss that a score takes.

error     Err = E_error - k exp(-g L)                               Gadre et al. 2024, beside the overtrain law
accuracy  Acc = low + span / (1 + exp(slope (B - midpoint)))        Bhagia et al. 2024, B bits per byte
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from linscale.study.prediction.fitted import ERROR, Fitted, widened_residuals

Array = np.ndarray


@dataclass(frozen=True)
class Score:
    """A map from loss to error or accuracy; parameters (1 + r,), the fit and then its resamples."""

    kind: Literal["error", "accuracy"]
    values: Mapping[str, Array]
    residuals: Array
    """(m,) score predicted minus observed; empty where the file keeps none."""
    log_residuals: bool = False
    """Whether residuals are of logarithms."""
    stretch: float = 1.0
    """See `Fitted.stretch`."""

    def take(self, rows: Array) -> Score:
        """With its resamples chosen and ordered by rows (r',), counted from 0."""
        order = np.concatenate([[0], 1 + rows]).astype(int)
        return replace(self, values={name: each[order] for name, each in self.values.items()})

    def of(self, loss: Array | float) -> Array:
        """(1 + r,) scores at losses (1 + r,), in the unit of loss that it was fitted to; (1 + r, g) at (1, g)."""
        scores = self._of(self.values, loss)
        if self.stretch == 1.0:
            return scores
        plain = self._of({name: each[:1] for name, each in self.values.items()}, loss)
        return plain + self.stretch * (scores - plain)

    def loss(self, score: float) -> Array:
        """(1 + r,) losses at which a score is reached: -inf where none is low enough, inf where every one is.

        NaN where accuracy rises with loss.
        """
        v = self.values
        with np.errstate(all="ignore"):
            if self.kind == "error":
                part = (v["E_error"] - score) / v["k"]
                found = np.where(part <= 0, np.inf, -np.log(np.maximum(part, 0)) / v["g"])
            else:
                found = v["midpoint"] + np.log(np.maximum(v["span"] / (score - v["low"]) - 1, 0)) / v["slope"]
                ends = v["low"], v["low"] + v["span"]
                found = np.where(
                    score >= np.maximum(*ends), -np.inf, np.where(score <= np.minimum(*ends), np.inf, found)
                )
                found = np.where(v["slope"] * v["span"] > 0, found, np.nan)
            moved = found[:1] + self.stretch * (found - found[:1])
        return np.where(np.isfinite(moved), moved, found)

    def _of(self, values: Mapping[str, Array], loss: Array | float) -> Array:
        v = {name: each[(...,) + (None,) * (np.ndim(loss) - 1)] for name, each in values.items()}
        with np.errstate(all="ignore"):
            if self.kind == "error":
                return np.asarray(v["E_error"] - v["k"] * np.exp(-v["g"] * loss))
            return np.asarray(v["low"] + v["span"] / (1 + np.exp(v["slope"] * (loss - v["midpoint"]))))


def own_score(fitted: Fitted) -> Score | None:
    """The score that a group's own fit ends in, or that a sigmoid group is."""
    if fitted.law == "sigmoid":
        return Score("accuracy", fitted.values, fitted.residuals, fitted.space == "log", fitted.stretch)
    if fitted.law == "overtrain" and set(ERROR) <= set(fitted.values):
        listed = (fitted.entry.get("points") or {}).get("error_residual") or []
        residuals = widened_residuals(np.array(listed, dtype=float), len(ERROR))
        return Score("error", fitted.values, residuals, False, fitted.stretch)
    return None
