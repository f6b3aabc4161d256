"""Optimal design: derivatives, the criterion, the search, and whether its ladders predict better than others do."""

import itertools

import numpy as np
import pytest

from linscale.study.design import (
    MAX_SEEDS,
    Limits,
    Question,
    after_adding,
    best_size,
    choose,
    criterion,
    fill,
    gradients,
    misfit,
)
from linscale.study.even_ladder import even_ladder
from linscale.study.knowledge import Knowledge
from linscale.study.table.surface_fit import Loss, Problem, fit
from linscale.study.table.surfaces import LAWS, chinchilla

TRUTH = (1.82, 482.0, 2085.0, 0.348, 0.366)  # arXiv 2404.10102
TARGET = (5e9, 1e11)
VECTOR = np.array(
    [np.log(TRUTH[0]), np.log(482) - 0.348 * np.log(5e9), np.log(2085) - 0.366 * np.log(1e11), 0.348, 0.366, 1.0]
)
PRIOR = np.diag(np.array([0.9, 0.9, 0.9, 0.3, 0.3]) ** -2.0)
KNOWN = Knowledge(VECTOR, np.log(TARGET), PRIOR, 0.003, "prior")
BUDGET = 0.05 * 6 * TARGET[0] * TARGET[1]


def field(sizes=16, known=KNOWN, low=1.6e7):
    """N (k,), D (k,) and the limits of a ladder among them."""
    n = np.geomspace(low, 1.5e9, sizes)
    d = known.tokens_for(n)[:, None] * 2.0 ** np.arange(-2, 4.5, 1)
    rungs = np.broadcast_to(np.arange(sizes)[:, None], d.shape).ravel()
    n, d = np.broadcast_to(n[:, None], d.shape).ravel(), d.ravel()
    return n, d, Limits(6 * n * d, rungs, BUDGET, 12, 4)


@pytest.fixture(scope="module")
def designed():
    n, d, limits = field()
    return n, d, limits, choose([KNOWN.question(n, d)], limits)


def test_gradients_of_log_loss_are_those_of_finite_differences():
    x = np.log([[2e7, 3e9], [4e9, 1e12]]) - KNOWN.centre[:, None]
    value, gradient = gradients(VECTOR, x)
    np.testing.assert_allclose(np.exp(value), chinchilla(*np.exp(x + KNOWN.centre[:, None]), *TRUTH))
    for at in range(5):
        step = 1e-6 * (np.arange(6) == at)
        difference = (gradients(VECTOR + step, x)[0] - gradients(VECTOR - step, x)[0]) / 2e-6
        np.testing.assert_allclose(gradient[:, at], difference, atol=1e-7)


def test_the_best_size_is_where_loss_is_lowest_and_so_is_its_gradient():
    value, gradient = best_size(VECTOR, 0.7)
    grid = np.linspace(value - 1, value + 1, 20_001)
    assert grid[np.argmin(gradients(VECTOR, np.array([grid, 0.7 - grid]))[0])] == pytest.approx(value, abs=2e-4)
    for at in range(5):
        step = 1e-6 * (np.arange(6) == at)
        difference = (best_size(VECTOR + step, 0.7)[0] - best_size(VECTOR - step, 0.7)[0]) / 2e-6
        assert gradient[at] == pytest.approx(difference, rel=1e-5, abs=1e-8)


def test_the_tokens_of_a_size_are_those_for_which_it_is_the_best():
    n = np.array([1e8])
    d = KNOWN.tokens_for(n)
    product = float(np.log(n * d)[0] - KNOWN.centre.sum())
    assert best_size(VECTOR, product)[0] + KNOWN.centre[0] == pytest.approx(np.log(1e8))


def test_the_criterion_after_one_more_run_is_that_of_the_whole_sum():
    n, d, _ = field(5)
    questions = [KNOWN.question(n, d), KNOWN.question(1.1 * n, d)]
    counts = np.zeros(n.size, dtype=int)
    counts[[0, 9, 30]] = (1, 2, 1)
    direct = [criterion(questions, counts + (np.arange(n.size) == at)) for at in range(n.size)]
    np.testing.assert_allclose(after_adding(questions, counts), direct, rtol=1e-9)


def test_the_criterion_is_that_of_generalised_least_squares():
    """By hand: the variance of a prediction from runs with their noise, the prior taken as further observations."""
    n, d, _ = field(5)
    question = KNOWN.question(n, d)
    counts = np.zeros(n.size, dtype=int)
    counts[[2, 11, 20, 27]] = (3, 1, 1, 2)
    used = np.flatnonzero(counts)
    rows = np.vstack([question.candidates[used], np.eye(5)])
    variance = np.concatenate(
        [0.003**2 / counts[used] + misfit(0.003, KNOWN.decades(n, d))[used] ** 2, 1 / np.diag(PRIOR)]
    )
    covariance = np.linalg.inv(rows.T @ np.diag(1 / variance) @ rows)
    expected = [gradient @ covariance @ gradient for gradient in (question.loss, question.size)]
    assert question.variances(counts) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_search_finds_the_best_of_all_ladders_of_a_small_field(seed):
    random = np.random.default_rng(seed)
    n, d, limits = field(6)
    few = np.sort(random.choice(n.size, 9, replace=False))
    question = KNOWN.question(n[few], d[few])
    costs = limits.costs[few]
    small = Limits(costs, limits.rungs[few], float(np.sort(costs)[:6].sum()), 4)
    best = np.inf
    for picked in itertools.product(range(3), repeat=few.size):
        counts = np.array(picked)
        taken = small.rungs[counts > 0]
        if counts.sum() <= 4 and counts @ costs <= small.budget and len(set(taken.tolist())) == taken.size:
            best = min(best, criterion([question], counts))
    assert criterion([question], choose([question], small)) <= best * 1.02


@pytest.mark.slow
def test_a_ladder_keeps_to_its_limits(designed):
    n, d, limits, counts = designed
    assert counts @ limits.costs <= limits.budget * (1 + 1e-9)
    assert 5 <= counts.sum() <= 12
    assert counts.max() <= MAX_SEEDS
    used = limits.rungs[counts > 0]
    assert len(set(used.tolist())) == used.size >= limits.sizes
    poor = Limits(limits.costs, limits.rungs, limits.cheapest, 12, 4)
    counts = choose([KNOWN.question(n, d)], poor)
    assert (counts > 0).sum() == 4
    assert counts @ limits.costs <= poor.budget * (1 + 1e-9)


def test_seeds_are_repeated_only_where_that_pays():
    n, d, limits = field(5)
    exact = KNOWN.question(n, d)
    never = Question(exact.precision, exact.loss, exact.size, exact.candidates, 1e-6, exact.misfit)  # noise of the law
    always = Question(exact.precision, exact.loss, exact.size, exact.candidates, 0.003, 0 * exact.misfit)
    assert choose([never], limits).max() == 1
    assert choose([always], limits).max() > 1


@pytest.mark.slow
def test_a_designed_ladder_leaves_less_variance_than_even_and_random_ones(designed):
    n, d, limits, counts = designed
    question = KNOWN.question(n, d)
    even = even_ladder([KNOWN], n, limits.costs / d, BUDGET, 12)
    assert 6 * even.prod(0).sum() == pytest.approx(BUDGET, rel=1e-3)
    loss, size = question.variances(counts)
    plain_loss, plain_size = KNOWN.question(*even).variances(np.ones(even.shape[1], dtype=int))
    assert loss < 0.8 * plain_loss
    assert size < 0.2 * plain_size
    random = np.random.default_rng(0)
    others = [question.variances(random_ladder(limits, random)) for _ in range(30)]
    assert loss < 0.5 * np.median([other for other, _ in others])
    assert criterion([question], counts) < 0.8 * min(
        criterion([question], random_ladder(limits, random)) for _ in range(30)
    )


def random_ladder(limits, random):
    counts = np.zeros(limits.costs.size, dtype=int)
    while (possible := limits.addable(counts)).any():
        counts[random.choice(np.flatnonzero(possible))] += 1
    return counts


@pytest.mark.slow
def test_in_simulation_it_predicts_the_target_better_and_as_well_as_it_says(designed):
    n, d, limits, counts = designed
    question = KNOWN.question(n, d)
    even = even_ladder([KNOWN], n, limits.costs / d, BUDGET, 12)
    random = np.random.default_rng(1)
    at = np.repeat(np.arange(n.size), counts)
    ladders = {"designed": (n[at], d[at]), "even": tuple(even)}
    for number in range(2):
        chosen = np.repeat(np.arange(n.size), random_ladder(limits, random))
        ladders[f"random {number}"] = (n[chosen], d[chosen])
    errors = {name: prediction_error(*ladder, random, 6) for name, ladder in ladders.items()}
    assert errors["designed"] < 0.75 * errors["even"]
    assert errors["designed"] < 0.75 * min(errors["random 0"], errors["random 1"])
    said = np.sqrt(question.variances(counts)[0])
    assert 0.3 * said < errors["designed"] < 2 * said


def prediction_error(n, d, random, times):
    """Root mean square error of log L at the target, of surfaces fitted to runs of a planted law with 0.3% of noise."""
    found = []
    for _ in range(times):
        loss = chinchilla(n, d, *TRUTH) * np.exp(0.003 * random.normal(size=n.size))
        problem = Problem(LAWS["chinchilla"], Loss("l2"), np.array([n, d]), loss)
        found.append(np.log(chinchilla(*TARGET, *problem.numbers(fit(problem).vector)) / chinchilla(*TARGET, *TRUTH)))
    return float(np.sqrt(np.mean(np.square(found))))


def test_a_run_that_brings_nothing_is_not_paid_for():
    n, d, limits = field(5)
    question = KNOWN.question(n, d)
    known = Question(1e12 * np.eye(5), question.loss, question.size, question.candidates, 0.003, question.misfit)
    assert choose([known], limits).sum() == limits.sizes


def test_filling_adds_nothing_where_nothing_is_affordable():
    n, d, limits = field(5)
    nothing = np.zeros(n.size, dtype=int)
    assert not fill([KNOWN.question(n, d)], Limits(limits.costs, limits.rungs, 1.0, 12), nothing).any()
    assert Limits(limits.costs, limits.rungs, 1.0, 12, 6).cheapest == np.inf
