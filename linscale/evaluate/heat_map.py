"""What a map of cells, lengths by depths, is summed up in (arXiv 2406.16690).

    acc@L             mean over depths at the grid's length nearest to L
    acc<=L            mean over all lengths up to L
    average           mean of all cells
    weighted_average  mean with weights α^i · α^j of the i-th depth and the j-th length
    niah_score        the same mean of p_j · cell, where p_j says how unbroken success is at the j-th length

    p = 0 where no depth succeeds, 1 where all do, else 2^((1 - m) / 2) with m runs of success and of failure

The paper leaves α and the threshold of success open. Its printed rows fit a length weight of 1.01 a step with no weight
on depth (rms 0.5 points), so they say nothing of the depth's beyond that it is near 1; it takes the same 1.01, as both
are to be above 1. A cell succeeds from accuracy 1/2 on. p_j multiplies columns before the weighted mean: the paper says
no more than that both are combined.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
import torch

from linscale.evaluate.task import Result, mean_result

LENGTH_WEIGHT = 1.01  # a step of the grid
DEPTH_WEIGHT = 1.01  # a step of the grid
SUCCESS = 0.5
MARKS = {(f"{k}k" if k < 1024 else "1M"): 1024 * k for k in (1 << power for power in range(11))}
NEAR = 0.1  # of L: no length of the grid farther from it stands for it


def metrics_of(lengths: Sequence[int]) -> list[str]:
    """The names of what `summary` gives."""
    over = [f"acc_{length}" for length in lengths] + [name for name, _ in _marks(lengths)]
    return [*over, "average", "weighted_average", "niah_score"]


def summary(lengths: Sequence[int], accuracy: np.ndarray) -> list[Result]:
    """All metrics of cells (lengths, depths) in 0 ... 1; lengths and depths ascend."""
    results = []
    for length, cells in zip(lengths, accuracy, strict=True):
        results.append(replace(_mean(f"acc_{length}", cells), cells=tuple(cells.tolist())))
    results += [_mean(name, accuracy[rows]) for name, rows in _marks(lengths)]
    unbroken = np.array([unbrokenness(cells >= SUCCESS) for cells in accuracy])
    weights = np.outer(LENGTH_WEIGHT ** np.arange(len(lengths)), DEPTH_WEIGHT ** np.arange(accuracy.shape[1]))
    for name, cells in (("weighted_average", accuracy), ("niah_score", accuracy * unbroken[:, None])):
        results.append(Result(name, float((weights * cells).sum() / weights.sum()), None, accuracy.size))
    results.insert(-2, _mean("average", accuracy))
    return results


def unbrokenness(found: Sequence[bool] | np.ndarray) -> float:
    """p of one length, from whether each depth succeeds."""
    runs = [success for success, _ in groupby(bool(one) for one in found)]
    if len(runs) == 1:
        return float(runs[0])
    return float(2 ** ((1 - len(runs)) / 2))


def _mean(name: str, cells: np.ndarray) -> Result:
    return mean_result(name, torch.from_numpy(cells.ravel()), cells.size)


def _marks(lengths: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
    """acc@L for every L with a length near it, acc<=L for every L that the grid reaches; and rows of the map."""
    for name, mark in MARKS.items():
        row = min(range(len(lengths)), key=lambda row: abs(lengths[row] - mark))
        if abs(lengths[row] - mark) <= NEAR * mark:
            yield f"acc@{name}", [row]
    for name, mark in MARKS.items():
        rows = [row for row, length in enumerate(lengths) if length <= mark]
        if rows and lengths[-1] >= (1 - NEAR) * mark:
            yield f"acc<={name}", rows
