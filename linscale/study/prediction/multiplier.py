"""Compute multipliers: how many times less compute one group needs than another for the same loss or score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from linscale.config import UserError
from linscale.study.prediction.cautions import SLACK
from linscale.study.prediction.compute_law import ComputeLaw, compute_law, loss_range
from linscale.study.prediction.estimate import estimate, share
from linscale.study.prediction.fitted import Fitted, paired
from linscale.study.prediction.score import Score, own_score

Array = np.ndarray
ROWS = 5  # losses that are compared where none is named
SCORES = 3
DIGITS = 4  # significant, of losses and scores chosen here
ANY = (1.0, 1e60)  # FLOPs, where a file does not say what it was fitted to
Row = dict[str, Any]


@dataclass(frozen=True)
class At:
    """Where groups are compared; without any, at losses that both were fitted to."""

    losses: tuple[float, ...] = ()
    flops: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Side:
    """One of the two that are compared, with as many resamples as the other."""

    fitted: Fitted
    law: ComputeLaw
    score: Score | None

    @property
    def known(self) -> tuple[float, float]:
        """Least and most FLOPs that it was fitted to."""
        return self.fitted.ranges.get("c", ANY)


def sides(fits: Sequence[Fitted], sigmoids: Sequence[Fitted | None] = (None, None)) -> tuple[Side, Side]:
    """Two groups with equally many resamples, and the sigmoids that read their losses where there are any.

    Raises UserError for a law that is not of loss.
    """
    laws = [compute_law(fitted) for fitted in fits]
    for fitted, law in zip(fits, laws, strict=True):
        if law is None:
            raise UserError(f"{fitted.name}: the {fitted.law} law is not of loss and compute: it cannot be compared")
    present = [each for each in sigmoids if each is not None]
    joined = paired([*fits, *present])
    rest = iter(joined[2:])
    found = []
    for fitted, sigmoid in zip(joined[:2], sigmoids, strict=True):
        law = compute_law(fitted)
        assert law is not None
        found.append(Side(fitted, law, own_score(fitted if sigmoid is None else next(rest))))
    return found[0], found[1]


def rows(x: Side, y: Side, at: At) -> list[Row]:
    """Multipliers of x against y. Raises UserError for scores of fits that have none."""
    if at.scores and (x.score is None or y.score is None):
        name = (x if x.score is None else y).fitted.name
        raise UserError(f"{name}: at-score: its fit has no score: give --downstream, the JSON of --law sigmoid")
    found = [_row(x, y, "loss", loss, loss, loss) for loss in at.losses]
    for flops in at.flops:
        loss = y.law.loss(flops)
        found.append(_row(x, y, "flops", flops, loss, loss) | {"difference": estimate(x.law.loss(flops) - loss)})
    for score in at.scores:
        assert x.score is not None
        assert y.score is not None
        found.append(_row(x, y, "score", score, x.score.loss(score), y.score.loss(score)))
    return found


def common(x: Side, y: Side) -> tuple[At, bool]:
    """Losses, and scores where both have them, over what both were fitted to; False where that is nothing.

    Then they lie between what the one and the other was fitted to. Raises UserError where a file does not say.
    """
    ranges = [loss_range(side.law, side.fitted) for side in (x, y)]
    if None in ranges:
        name = (x if ranges[0] is None else y).fitted.name
        raise UserError(
            f"{name}: its law gives no losses of the compute fitted (no points in the file, or an exponent of 0): "
            "name some with --at-loss"
        )
    low, high = max(each[0] for each in ranges if each), min(each[1] for each in ranges if each)
    losses = _spaced(min(low, high), max(low, high), ROWS)
    scores: tuple[float, ...] = ()
    if x.score is not None and y.score is not None:
        ends = [[float(side.score.of(loss)[0]) for loss in (low, high)] for side in (x, y) if side.score]
        scores = _spaced(max(map(min, ends)), min(map(max, ends)), SCORES)
    return At(losses, scores=scores), low < high


def shared_compute(x: Side, y: Side) -> tuple[float, float]:
    """Least and most FLOPs that both were fitted to, or what lies between them where that is nothing."""
    low, high = max(x.known[0], y.known[0]), min(x.known[1], y.known[1])
    return min(low, high), max(low, high)


def _row(x: Side, y: Side, kind: str, value: float, loss_x: Array | float, loss_y: Array | float) -> Row:
    spent_x, spent_y = x.law.compute(loss_x), y.law.compute(loss_y)
    with np.errstate(all="ignore"):
        multiplier = spent_y / spent_x
    found = estimate(multiplier)
    return {
        "at": kind,
        "value": value,
        "flops": estimate(spent_x),
        "baseline_flops": estimate(spent_y),
        "multiplier": found,
        "undefined": share(np.isnan(multiplier)),
        "verdict": _verdict(found),
        "difference": None,
        "outside": _outside(x, spent_x) | _outside(y, spent_y),
    }


def _verdict(multiplier: dict[str, Any]) -> str:
    low, high = multiplier["low"], multiplier["high"]
    if multiplier["value"] is None:
        return "undefined"
    if multiplier["value"] == 0 or multiplier["value"] == np.inf:
        return "not reached" if multiplier["value"] == 0 else "baseline not reached"
    if low is None or low == high:
        return "no interval"
    return "less compute" if low > 1 else "more compute" if high < 1 else "not distinguished"


def _outside(side: Side, spent: Array) -> dict[str, float]:
    """By name, the compute of the fit itself over the most that was fitted where it is more, else over the least."""
    (low, high), value = side.known, float(spent[0])
    if not 0 < value < np.inf or low / SLACK <= value <= high * SLACK:
        return {}
    return {side.fitted.name: value / high if value > high else value / low}


def _spaced(low: float, high: float, count: int) -> tuple[float, ...]:
    if not low < high:
        return ()
    values = np.linspace(low, high, count + 2)[1:-1]
    return tuple(dict.fromkeys(float(f"{value:.{DIGITS}g}") for value in values))
