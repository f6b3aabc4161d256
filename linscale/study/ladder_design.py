"""The ladder of small runs that a plan proposes: the chosen rungs, what they are worth, and an even ladder beside them.

All architectures share shapes and tokens, so that they are compared at equal ones too; the criterion is their mean.

A study fits a lower envelope, for which sizes must overlap in compute and one between two others win. The best
ladder need not allow that. Then the best one for a part of the budget is taken, with the cheapest rung that does; or
else the best one of longer runs, if it is not much worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from linscale.config import UserError
from linscale.study.design import Limits, Question, choose, criterion, fill
from linscale.study.even_ladder import even_ladder
from linscale.study.knowledge import Knowledge
from linscale.study.prospect import Prospect
from linscale.study.rungs import STEPS, Rung, exact_flops, has_envelope, possible_rungs
from linscale.study.sizing import count
from linscale.study.table.group import warning

Array = np.ndarray
FEWEST_RUNGS = 4
PARTS = (1.0, 0.95, 0.9, 0.8, 0.7)  # of the budget, tried until a study can fit what comes out
FLOORS = (0.5, 0.7, 1.0)  # of tokens over the best ones, tried next,
WORSE = 1.5  # where the criterion rises by no more than this
LITTLE = 0.9  # of the half-width now
Z = 1.96


@dataclass(frozen=True)
class Certainty:
    """Half-widths of 95% intervals at the target of one architecture, of log L and log N_opt: linearised."""

    basis: str
    noise: float
    now: tuple[float, float]
    after: tuple[float, float]
    even: tuple[float, float] | None
    """After an even ladder of the same cost; None where none was found."""


@dataclass(frozen=True)
class Ladder:
    """The chosen rungs, cheapest first, and what they are worth."""

    rungs: tuple[Rung, ...]
    flops: float
    """Of all runs: exact ones, head included."""
    budget: float
    certainty: Mapping[str, Certainty]
    """By architecture."""
    even: tuple[tuple[float, float], ...]
    """N and D of the even ladder."""
    warnings: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True)
class Choice:
    """What a ladder is chosen from: k possible rungs."""

    known: Mapping[str, Knowledge]
    laws: Mapping[str, Prospect]
    length: int
    rungs: list[Rung]
    questions: Mapping[str, Question]
    limits: Limits
    even: Array | None
    """(2, r) N and D of the even ladder."""

    def picked(self, counts: Array) -> tuple[Rung, ...]:
        """The rungs of counts (k,), cheapest first."""
        order = sorted(np.flatnonzero(counts), key=lambda at: float(self.limits.costs[at]))
        return tuple(Rung(self.rungs[at].shape, self.rungs[at].recipe, int(counts[at])) for at in order)

    def fits(self, counts: Array) -> bool:
        """Whether a study could fit the ladder for every architecture."""
        picked = self.picked(counts)
        return all(has_envelope(self.known[arch], self.laws[arch], picked, self.length) for arch in self.known)

    def best(self, budget: float) -> Array:
        """(k,) the ladder that is best for so many FLOPs."""
        limits = self.within(budget)
        tokens = np.array([rung.recipe.tokens for rung in self.rungs], dtype=float)
        first = next(iter(self.known))
        sizes = np.array([count(first, rung.shape) for rung in self.rungs], dtype=float)
        starts = [] if self.even is None else [_nearest(self.even, sizes, tokens, limits)]
        return choose(list(self.questions.values()), limits, starts, thorough=budget == self.limits.budget)

    def height(self, counts: Array) -> float:
        """The criterion."""
        return criterion(list(self.questions.values()), counts)

    def above(self, floor: float) -> Choice:
        """Only rungs with at least `floor` times the tokens with which their size is the best: others cost too much."""
        first = next(iter(self.known))
        sizes = np.array([count(first, rung.shape) for rung in self.rungs], dtype=float)
        best = np.mean([np.log(each.tokens_for(sizes)) for each in self.known.values()], axis=0)
        short = np.log([rung.recipe.tokens for rung in self.rungs]) < best + np.log(floor) - 0.1
        costs = np.where(short, 10 * self.limits.budget, self.limits.costs)
        return replace(self, limits=replace(self.limits, costs=costs))

    def within(self, budget: float) -> Limits:
        """The same limits with another budget."""
        return replace(self.limits, budget=budget)

    def completed(self, counts: Array) -> Array | None:
        """counts (k,) with the cheapest rung more that lets a study fit it, and the rest of the budget filled."""
        if self.fits(counts):
            return counts
        others = self.limits.addable(counts) & (counts == 0)
        for at in sorted(np.flatnonzero(others), key=lambda at: float(self.limits.costs[at])):
            more = counts.copy()
            more[at] += 1
            if self.fits(more):
                filled = fill(list(self.questions.values()), self.limits, more)
                return filled if self.fits(filled) else more
        return None


def design_ladder(
    known: Mapping[str, Knowledge],
    laws: Mapping[str, Prospect],
    *,
    budget: float,
    length: int,
    vocab_size: int,
    runs: int,
) -> Ladder:
    """The rungs that make `design.criterion` lowest for `budget` exact FLOPs in all, `runs` an architecture at most.

    Cost is in exact FLOPs, since that is what is paid: the head of a small model may cost more than the rest of it.
    Raises UserError where the budget does not buy four sizes.
    """
    choice = _choice(known, laws, budget=budget, length=length, vocab_size=vocab_size, runs=runs)
    best = choice.best(budget)
    for part in PARTS:
        if part < 1 and choice.limits.cheapest > part * budget:
            break
        counts = choice.completed(best if part == 1 else choice.best(part * budget))
        if counts is not None:
            return _ladder(choice, counts)
    for floor in FLOORS:
        longer = choice.above(floor)
        if longer.limits.cheapest > budget:
            break
        counts = longer.completed(longer.best(budget))
        if counts is not None and choice.height(counts) < WORSE * choice.height(best):
            return _ladder(choice, counts)
    text = "a study's own fit, a lower envelope over sizes, may find none in this ladder: fit the surface of its runs"
    return _ladder(choice, best, (warning("ladder_no_envelope", text),))


def _choice(
    known: Mapping[str, Knowledge],
    laws: Mapping[str, Prospect],
    *,
    budget: float,
    length: int,
    vocab_size: int,
    runs: int,
) -> Choice:
    rungs = possible_rungs(known, length)
    sizes = np.unique([rung.name for rung in rungs], return_inverse=True)[1]
    if not rungs or sizes.max() + 1 < FEWEST_RUNGS:
        raise UserError(
            f"ladder_share: a ladder needs {FEWEST_RUNGS} sizes smaller than the model, which is too small for that; "
            "say --ladder-share 0 for no ladder"
        )
    costs = np.sum([exact_flops(rungs, arch, length, vocab_size) for arch in known], axis=0)
    limits = Limits(costs, sizes, budget, max(runs, FEWEST_RUNGS), FEWEST_RUNGS)
    if limits.cheapest > budget:
        raise UserError(
            f"ladder_share: {budget:.3g} FLOPs do not buy {FEWEST_RUNGS} sizes of {STEPS} steps or more, which take "
            f"{limits.cheapest:.3g}; say a larger --ladder-share, or 0 for no ladder"
        )
    tokens = np.array([rung.recipe.tokens for rung in rungs], dtype=float)
    params = {arch: np.array([count(arch, rung.shape) for rung in rungs], dtype=float) for arch in known}
    questions = {arch: known[arch].question(params[arch], tokens) for arch in known}
    even = even_ladder(list(known.values()), params[next(iter(known))], costs / tokens, budget, runs)
    return Choice(known, laws, length, rungs, questions, limits, even)


def _ladder(choice: Choice, counts: Array, warnings: tuple[dict[str, str], ...] = ()) -> Ladder:
    certainty = {}
    for arch, question in choice.questions.items():
        known, plain = choice.known[arch], None
        if choice.even is not None:
            plain = known.question(*choice.even).variances(np.ones(choice.even.shape[1], dtype=int))
        certainty[arch] = Certainty(
            known.basis,
            known.noise,
            _half_widths(question.variances(np.zeros_like(counts))),
            _half_widths(question.variances(counts)),
            None if plain is None else _half_widths(plain),
        )
    if min(each.after[0] / each.now[0] for each in certainty.values()) > LITTLE:
        text = "the ladder would narrow the prediction by less than a tenth: the budget may be better spent"
        warnings = (*warnings, warning("ladder_pays_little", text))
    even = () if choice.even is None else tuple((float(n), float(d)) for n, d in choice.even.T)
    flops = float(counts @ choice.limits.costs)
    return Ladder(choice.picked(counts), flops, choice.limits.budget, certainty, even, warnings)


def _half_widths(variances: tuple[float, float]) -> tuple[float, float]:
    return Z * float(np.sqrt(variances[0])), Z * float(np.sqrt(variances[1]))


def _nearest(even: Array, sizes: Array, tokens: Array, limits: Limits) -> Array:
    """(k,) the possible runs nearest to the even ladder's, as far as the limits allow."""
    counts = np.zeros(sizes.size, dtype=int)
    for n, d in even.T:
        distance = np.abs(np.log(sizes / n)) + np.abs(np.log(tokens / d)) / 10
        distance[~limits.addable(counts)] = np.inf
        if np.isfinite(distance).any():
            counts[np.argmin(distance)] += 1
    return counts
