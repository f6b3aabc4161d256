"""The rungs that a ladder may have, what they cost, and whether a study could fit what they would show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from linscale.config import UserError
from linscale.models.count import flops_per_token, shape_of
from linscale.study.design import gradients
from linscale.study.envelope_fit import FitConfig
from linscale.study.fit import envelope
from linscale.study.knowledge import Knowledge
from linscale.study.prospect import Prospect
from linscale.study.recipe import Recipe, recipe
from linscale.study.results import Curve
from linscale.study.sizing import Shape, count, nearest_shape, smallest
from linscale.train.config import LOG_SPACING_START

Array = np.ndarray
SIZE_RATIO = 1.35  # between neighbouring sizes,
LEAST_RATIO = 1.15  # and at least: a study's fits take sizes within 1.1 for one
SPAN = 300.0  # in N, from the target down to the smallest rung: the published ladder spans 316
TOKEN_FACTORS = 2.0 ** np.arange(-2, 4.5, 0.5)  # of the tokens with which a size is the cheapest way to its loss
STEPS = 300  # a rung has at least: fewer are mostly warm-up
CHECKPOINTS = 20
GRID = 200  # compute values at which a study's fit is tried


@dataclass(frozen=True)
class Rung:
    """One size of the ladder, with how often it is trained."""

    shape: Shape
    recipe: Recipe
    seeds: int = 1

    @property
    def name(self) -> str:
        return self.shape.name


def possible_rungs(known: Mapping[str, Knowledge], length: int) -> list[Rung]:
    """Shapes from the target down, each with several numbers of tokens around those with which it is the best."""
    first = next(iter(known))
    top = max(float(np.exp(each.centre[0])) for each in known.values())
    low = max(top / SPAN, float(smallest(first)))
    grid = np.exp(np.arange(np.log(low), np.log(top) - 0.1, np.log(SIZE_RATIO)))
    shapes = {}
    for n in grid:
        shape = nearest_shape(first, float(n))
        shapes[count(first, shape)] = shape
    rungs, last = [], 0.0
    for n in sorted(shapes):
        if n < last * LEAST_RATIO:
            continue  # small shapes are few: neighbours of the grid may be alike
        last = n
        best = np.exp(np.mean([np.log(each.tokens_for(np.array([n]))[0]) for each in known.values()]))
        trained = [recipe(n, float(tokens), length) for tokens in best * TOKEN_FACTORS]
        rungs += [Rung(shapes[n], each) for each in trained if each.steps >= STEPS]
    return rungs


def exact_flops(rungs: Sequence[Rung], arch: str, length: int, vocab_size: int) -> Array:
    """(k,) exact training FLOPs of one seed of each."""
    each = [
        flops_per_token(rung.shape.config(arch, vocab_size), "train", length) * rung.recipe.tokens for rung in rungs
    ]
    return np.array(each, dtype=float)


def has_envelope(known: Knowledge, law: Prospect, rungs: Sequence[Rung], length: int) -> bool:
    """Whether a study could fit the curves that the surface promises for these rungs, FLOPs as the law counts them."""
    curves, arch = [], law.arch
    for rung in rungs:
        n = float(count(arch, rung.shape))
        tokens = np.geomspace(LOG_SPACING_START, 1.0, CHECKPOINTS) * rung.recipe.tokens
        x = np.log([np.full_like(tokens, n), tokens]) - known.centre[:, None]
        price = law.flops_per_token(shape_of(rung.shape.config(arch, 1)), n, length)
        loss = np.exp(gradients(known.vector, x)[0])
        curves.append(Curve(f"{arch}-{rung.name}", arch, rung.name, n, price, tokens, price * tokens, loss))
    try:
        envelope(curves, FitConfig(grid=GRID))
    except UserError:
        return False
    return True
