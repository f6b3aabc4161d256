"""Loss against size at equal compute, from the curves of a ladder: what each point of its envelope rests on."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from linscale.config import UserError
from linscale.study.envelope import Ladder, average_sizes, build_ladder, find_minima, lower_envelope
from linscale.study.envelope_fit import FitConfig
from linscale.study.laws import PFLOP_S_DAY
from linscale.study.results import Curve

Array = np.ndarray
COUNT = 5  # compute values of an architecture
LINE = 21  # points of a parabola


@dataclass(frozen=True)
class Slice:
    """One architecture at one compute."""

    arch: str
    compute: float
    """PFLOP/s-days."""
    params: Array
    """(k,) the sizes measured there, ascending."""
    loss: Array
    """(k,) nats per token."""
    line_params: Array
    """(LINE,) from the left to the right neighbour of the best size."""
    line_loss: Array
    """(LINE,) the parabola through the three."""
    best_params: float
    best_loss: float


def slices(curves: Sequence[Curve], fits: Mapping[str, Any], settings: FitConfig, count: int = COUNT) -> list[Slice]:
    """Of every architecture in `fits` (by name, groups of fits.json) up to `count` slices, evenly through its envelope.

    The ladder is built as it was for the fit, so that every minimum is one of the envelope's.
    """
    found: list[Slice] = []
    for arch in fits:
        own = [curve for curve in curves if curve.arch == arch]
        with contextlib.suppress(UserError):  # runs that were taken away since
            found += _of_one(own, settings, count)
    return found


def _of_one(curves: Sequence[Curve], settings: FitConfig, count: int) -> list[Slice]:
    if not curves:
        return []
    smooth = settings.smooth if settings.loss == "train" else 0.0
    ladder = build_ladder(curves, grid=settings.grid, smooth=smooth, discard=settings.discard)
    envelope = lower_envelope(ladder)
    everything = np.ones((1, len(ladder.runs)))
    sizes = average_sizes(ladder, everything, np.zeros_like(everything))
    minima = find_minima(sizes, ladder.log_params, skew=envelope.skew, bracketed=envelope.bracketed)
    kept = np.flatnonzero(minima.kept[0])
    chosen = np.unique(kept[np.linspace(0, len(kept) - 1, count).round().astype(int)])
    lowest = zip(minima.log_params[0, chosen], minima.log_loss[0, chosen], strict=True)
    return [
        _slice(ladder, sizes[0][:, at], envelope.skew, int(at), best) for at, best in zip(chosen, lowest, strict=True)
    ]


def _slice(ladder: Ladder, log_loss: Array, skew: float, at: int, best: tuple[float, float]) -> Slice:
    """The parabola is one in (N^skew - 1) / skew, or in log N: the axis in which the minimum was found."""
    measured = np.flatnonzero(np.isfinite(log_loss))
    log_params, centre = ladder.log_params[measured], ladder.log_params.mean()
    values = log_loss[measured]
    middle = int(np.clip(values.argmin(), 1, len(values) - 2))
    three = slice(middle - 1, middle + 2)

    def axis(log_n: Array) -> Array:
        return np.expm1(skew * (log_n - centre)) / skew if skew else log_n - centre

    line = np.linspace(log_params[three][0], log_params[three][-1], LINE)
    parabola = np.polyfit(axis(log_params[three]), values[three], 2)
    return Slice(
        arch=ladder.arch,
        compute=float(np.exp(ladder.log_compute[at]) / PFLOP_S_DAY),
        params=np.exp(log_params),
        loss=np.exp(values),
        line_params=np.exp(line),
        line_loss=np.exp(np.polyval(parabola, axis(line))),
        best_params=float(np.exp(best[0])),
        best_loss=float(np.exp(best[1])),
    )
