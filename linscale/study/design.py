"""Which small runs would teach most about a law at a target, for so many FLOPs: optimal design of a ladder.

The surface log L(N, D) is linear in its parameters t for small changes of them. A run at x then says g(x)' t plus
noise, with g the gradient of log L, and so many runs leave

    covariance = (what is known + sum of g g' / variance of the run)^-1
    variance of log L at the target = c' covariance c        c the gradient of log L there   (c-optimality)
    variance of log N_opt there     = h' covariance h        h the gradient of log N_opt there

A ladder is chosen to make the first small and keep the second small: `criterion`. Runs are added greedily, then
exchanged while that helps, from several starts; the lowest is kept. Source: Atkinson, Donev and Tobias
2007, Optimum Experimental Designs, chapters 10 and 12.

Variance of a run: sigma^2 / n of n seeds, and a law that holds less well far from the target, (sigma k / 3)^2 for k
decades of compute below it, which no seed takes away. A run a thousand times cheaper than the target so counts
half of one that is near it; without this the cheapest runs would be the best ones.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from linscale.study.table.surfaces import LAWS, evaluate

Array = np.ndarray
SIZE_WEIGHT = 0.1  # of the variance of log N_opt, relative to now, beside that of log L, relative to now
MISFIT_DECADES = 3.0  # below the target at which the law's own error is as large as the noise of a seed
MAX_SEEDS = 3
MOVES = 200
PAYS = 0.005  # relative fall of the criterion that a further run must bring
TRIED = 60  # first additions of an exchange, over the number of possible runs
WORTH = 1e-4  # relative fall of the criterion that an exchange must bring


@dataclass(frozen=True)
class Question:
    """What is known of one law, and what k possible runs would say of it; p parameters."""

    precision: Array
    """(p, p) inverse covariance of the parameters as known now."""
    loss: Array
    """(p,) gradient of log L at the target."""
    size: Array
    """(p,) gradient of log N_opt at the target."""
    candidates: Array
    """(k, p) gradients of log L at the possible runs."""
    noise: float
    """Standard deviation of log L between seeds."""
    misfit: Array
    """(k,) standard deviation of the law itself at the possible runs."""

    @functools.cached_property
    def now(self) -> tuple[float, float]:
        """`variances` before anything is trained."""
        return self.variances(np.zeros(self.misfit.size))

    def weights(self, counts: Array) -> Array:
        """(k,) what `counts` (k,) seeds of each run weigh: one over the variance of their mean, 0 for none."""
        return counts / (self.noise**2 + counts * self.misfit**2)

    def covariance(self, counts: Array) -> Array:
        """(p, p) of the parameters, after counts (k,) seeds of each run."""
        known = self.precision + (self.candidates.T * self.weights(counts)) @ self.candidates
        return np.linalg.inv(known)

    def variances(self, counts: Array) -> tuple[float, float]:
        """Of log L and of log N_opt at the target, after counts (k,) seeds of each run."""
        covariance = self.covariance(counts)
        return float(self.loss @ covariance @ self.loss), float(self.size @ covariance @ self.size)


@dataclass(frozen=True)
class Limits:
    """What a ladder may be."""

    costs: Array
    """(k,) FLOPs of one seed of each possible run, all architectures together."""
    rungs: Array
    """(k,) integers, equal for runs of one size: a ladder has at most one run of each."""
    budget: float
    """FLOPs."""
    runs: int
    """At most so many, seeds counted."""
    sizes: int = 1
    """At least so many."""

    @property
    def cheapest(self) -> float:
        """FLOPs of the cheapest ladder of so many sizes; inf where there are not so many."""
        least = np.sort([self.costs[self.rungs == rung].min() for rung in np.unique(self.rungs)])
        return float(least[: self.sizes].sum()) if least.size >= self.sizes else np.inf

    def enough(self, counts: Array) -> bool:
        """Whether counts (k,) have so many sizes."""
        return np.unique(self.rungs[counts > 0]).size >= self.sizes

    def addable(self, counts: Array) -> Array:
        """(k,) bool: runs of which one more seed may be added to counts (k,).

        Until there are enough sizes only new ones may be, and only where the cheapest of the others remain affordable.
        """
        if counts.sum() >= self.runs:
            return np.zeros(counts.size, dtype=bool)
        used = np.unique(self.rungs[counts > 0])
        missing = self.sizes - used.size
        new = ~np.isin(self.rungs, used)
        left = self.budget * (1 + 1e-9) - counts @ self.costs
        allowed: Array = (self.costs <= left) & (new | (counts > 0)) & (counts < MAX_SEEDS)
        if missing > 0:
            others = {rung: self.costs[self.rungs == rung].min() for rung in np.unique(self.rungs[new])}
            rest = {
                rung: sum(sorted(others[each] for each in others if each != rung)[: missing - 1]) for rung in others
            }
            allowed &= new & (self.costs + [rest.get(rung, np.inf) for rung in self.rungs] <= left)
        return allowed


def gradients(vector: Array, x: Array) -> tuple[Array, Array]:
    """log L (m,) and its gradient (m, 5) in log E, log A, log B, alpha, beta, at x (2, m): log N and log D.

    vector (6,) as `surfaces.Law` has it, gamma last and held; origin of x and vector are the same.
    """
    at = evaluate(vector[None], x)
    return at.value[0], at.gradient[0][:, : len(LAWS["chinchilla"].parameters)]


def best_size(vector: Array, log_product: float = 0.0) -> tuple[float, Array]:
    """log N_opt where log N + log D = log_product, and its gradient (5,) in the parameters of `gradients`."""
    _, log_a, log_b, alpha, beta, _ = vector
    total = alpha + beta
    value = (np.log(alpha) + log_a - np.log(beta) - log_b + beta * log_product) / total
    gradient = [0.0, 1.0, -1.0, 1 / alpha - value, log_product - 1 / beta - value]
    return float(value), np.array(gradient) / total


def misfit(noise: float, decades: Array) -> Array:
    """Standard deviation of the law itself so many decades of compute below the target; nothing above it."""
    return noise * np.maximum(decades, 0.0) / MISFIT_DECADES


def criterion(questions: Sequence[Question], counts: Array) -> float:
    """Mean over laws of variance of log L, and SIZE_WEIGHT times that of log N_opt, relative to what they are now."""
    total = 0.0
    for question in questions:
        (now_loss, now_size), (loss, size) = question.now, question.variances(counts)
        total += loss / now_loss + SIZE_WEIGHT * size / now_size
    return total / len(questions)


def choose(
    questions: Sequence[Question], limits: Limits, starts: Iterable[Array] = (), *, thorough: bool = True
) -> Array:
    """(k,) seeds of each possible run that make the criterion lowest within the limits.

    Greedy by what a run brings, greedy by what it brings for its cost, and the `starts` (k,), each improved by
    exchanges; the lowest of them, if `thorough`, by exchanges of two runs at a time as well.
    """
    nothing = np.zeros(limits.costs.size, dtype=int)
    ladders = [fill(questions, limits, nothing, power) for power in (0.0, 0.5, 1.0)]
    ladders += [fill(questions, limits, start) for start in starts]
    improved = [_exchanged(questions, limits, ladder, 1) for ladder in ladders]
    best = min(improved, key=lambda counts: criterion(questions, counts))
    return _exchanged(questions, limits, best, 2) if thorough else best


def after_adding(questions: Sequence[Question], counts: Array) -> Array:
    """(k,) the criterion after one more seed of each possible run: Sherman and Morrison, all at once."""
    total = np.zeros(counts.size)
    for question in questions:
        now_loss, now_size = question.now
        covariance = question.covariance(counts)
        more = question.weights(counts + 1) - question.weights(counts)
        spread = question.candidates @ covariance  # (k, p)
        shrink = more / (1 + more * (spread * question.candidates).sum(1))
        for gradient, now, weight in ((question.loss, now_loss, 1.0), (question.size, now_size, SIZE_WEIGHT)):
            total += weight / now * (gradient @ covariance @ gradient - shrink * (spread @ gradient) ** 2)
    return total / len(questions)


def fill(questions: Sequence[Question], limits: Limits, counts: Array, power: float = 0.0) -> Array:
    """(k,) counts (k,) with runs added one by one, each with the largest fall of the criterion over its cost^power.

    It ends where a run would lower the criterion by less than PAYS.
    """
    counts, height = counts.copy(), criterion(questions, counts)
    while (possible := limits.addable(counts)).any():
        after = after_adding(questions, counts)
        at = np.argmax(np.where(possible, (height - after) / limits.costs**power, -np.inf))
        if after[at] > height * (1 - PAYS) and limits.enough(counts):
            break
        counts[at] += 1
        height = float(after[at])
    return counts


def _exchanged(questions: Sequence[Question], limits: Limits, counts: Array, together: int) -> Array:
    """Up to `together` runs, or a seed of one, taken out and the room filled again, as long as that helps."""
    best = criterion(questions, counts)
    for _ in range(MOVES):
        options = []
        for fewer in _reduced(counts, together):
            for begun in _begun(questions, limits, fewer):
                filled = fill(questions, limits, begun)
                height = criterion(questions, filled) if limits.enough(filled) else np.inf
                options.append((height, filled))
        height, lowest = min(options, key=lambda each: each[0])
        if height > best * (1 - WORTH):
            break
        counts, best = lowest, height
    return counts


def _begun(questions: Sequence[Question], limits: Limits, counts: Array) -> Iterator[Array]:
    """counts (k,) with one run more: those that bring most, and most for the root of their cost."""
    possible = np.flatnonzero(limits.addable(counts))
    fall = (criterion(questions, counts) - after_adding(questions, counts))[possible]
    count = max(1, TRIED // counts.size)
    leads = {
        int(at) for power in (0.0, 0.5) for at in possible[np.argsort(-fall / limits.costs[possible] ** power)][:count]
    }
    for at in sorted(leads):
        yield counts + (np.arange(counts.size) == at)
    yield counts


def _reduced(counts: Array, together: int) -> Iterator[Array]:
    """counts (k,) without one seed of a run, and without any `together` or fewer runs."""
    used = np.flatnonzero(counts)
    for at in used[counts[used] > 1]:
        yield counts - (np.arange(counts.size) == at)
    for many in range(1, together + 1):
        for gone in itertools.combinations(used, many):
            yield np.where(np.isin(np.arange(counts.size), gone), 0, counts)
