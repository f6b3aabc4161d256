"""The engine of forms: exact derivatives, planted truths, no lower minimum by scipy, verdicts, resamples."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from linscale.config import UserError
from linscale.study.table.form import Form, FormProblem
from linscale.study.table.form_fit import KEPT, classical, fit_form, minimum, profiles, projected, stretched
from linscale.study.table.overtrain import (
    downstream,
    error_form,
    error_starts,
    overtrain,
    overtrain_form,
    overtrain_starts,
)
from linscale.study.table.repeat import repeat, repeat_form, repeat_starts
from linscale.study.table.resampling import drawn_counts, stretch
from linscale.study.table.sigmoid import sigmoid, sigmoid_form, sigmoid_starts
from linscale.study.table.surface_fit import Loss
from tests.lazy import Lazy
from tests.quick import quick

optimize = Lazy("scipy.optimize")

Array = np.ndarray
N, D = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 4e9, 8), np.geomspace(1e8, 2e11, 8)))
UNIQUE = D / np.array([1, 2, 5, 20, 60])[np.random.default_rng(0).integers(0, 5, N.size)]
LOSSES = np.linspace(2, 5, N.size)
BITS = np.linspace(0.5, 2.2, N.size)


@dataclass(frozen=True)
class Case:
    """A law with a truth: numbers of the formula, values, form and starts."""

    truth: tuple[float, ...]
    values: Array
    form: Callable[[Array], Form]
    starts: Callable[[FormProblem], Array]


def case(name: str) -> Case:
    """A planted law by name."""
    if name == "overtrain":
        truth: tuple[float, ...] = (1.84, 166.0, 367.0, -0.27)
        values = overtrain(N, D, *truth)
        return Case(truth, values, lambda y: overtrain_form(N, D, y), lambda p: overtrain_starts(p, N, D))
    if name in ("repeat", "repeat_no_excess"):
        excess = name == "repeat"
        truth = (1.87, 521.0, 1488.0, 0.353, 0.353, 15.4, *([5.3] if excess else []))
        values = repeat(N, D, UNIQUE, *truth)
        return Case(
            truth,
            values,
            lambda y: repeat_form(N, D, UNIQUE, y, excess),
            lambda p: repeat_starts(p, N, D, UNIQUE, excess),
        )
    if name == "downstream":
        truth = (0.86, 2.2, 0.7)
        return Case(truth, downstream(LOSSES, *truth), lambda y: error_form(LOSSES), lambda p: error_starts(p, LOSSES))
    chance = 0.25 if name == "sigmoid_chance" else None
    truth = (0.25, 0.7, 4.0, 0.9)
    values = sigmoid(BITS, *truth)
    return Case(
        truth[1:] if chance else truth,
        values,
        lambda y: sigmoid_form(BITS, chance),
        lambda p: sigmoid_starts(p, BITS, chance),
    )


NAMES = ["overtrain", "repeat", "repeat_no_excess", "downstream", "sigmoid", "sigmoid_chance"]
QUICK = quick(NAMES, *(name for name in NAMES if name != "repeat"))


def problem_of(name: str, loss: Loss, noise: float = 0.0, seed: int = 0) -> tuple[FormProblem, Array, Case]:
    """The problem, its best starts and its case, with relative noise. Errors are not fitted in logarithms."""
    each, loss = case(name), replace(loss, space="linear") if name == "downstream" else loss
    values = each.values * np.exp(noise * np.random.default_rng(seed).normal(size=each.values.size))
    problem = FormProblem(each.form(values), loss, values)
    starts = each.starts(problem)
    heights = [float(np.abs(problem.residuals(start)).sum()) for start in starts]
    return problem, starts[np.argsort(heights)[:16]], each


@pytest.mark.parametrize("name", NAMES)
def test_the_form_is_the_law_and_its_gradient_is_exact(name):
    problem, starts, each = problem_of(name, Loss())
    best = minimum(problem, starts).vector
    np.testing.assert_allclose(problem.form.predict(best[None])[0][0], each.values, rtol=1e-9)
    vector = best + 0.1 * np.random.default_rng(1).normal(size=best.size)
    gradient = problem.form.predict(vector[None])[1][0]
    numeric = optimize.approx_fprime(vector, lambda at: problem.form.predict(at[None])[0][0], 1e-7)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-5 * np.abs(gradient).max())


@pytest.mark.parametrize("space", ["log", "linear"])
@pytest.mark.parametrize("name", ["repeat", "sigmoid"])
def test_first_and_second_derivatives_of_the_objective(name, space):
    problem, starts, _ = problem_of(name, Loss("huber", 0.05, space), 0.05)
    goal = problem.regression(problem.form.predict)
    weights = np.random.default_rng(0).random((1, N.size))
    vector = minimum(problem, starts).vector + 0.03

    def slope(at: Array) -> Array:
        return goal.derivatives(at[None], goal.predict(at[None]), weights, False, True)[0][0]

    gradient, second = goal.derivatives(vector[None], goal.predict(vector[None]), weights, False, True)
    height = optimize.approx_fprime(vector, lambda at: goal.objective(goal.predict(at[None])[0], weights)[0], 1e-7)
    np.testing.assert_allclose(gradient[0], height, rtol=1e-3, atol=1e-4 * np.abs(height).max())
    steps = 1e-5 * np.eye(vector.size)
    numeric = np.array([(slope(vector + step) - slope(vector - step)) / 2e-5 for step in steps])
    np.testing.assert_allclose(second[0], numeric, rtol=5e-2, atol=1e-2 * np.abs(numeric).max())


LOSSES_IN = [("huber:1e-3", "log"), ("l2", "log"), ("lad", "log"), ("l2", "linear"), ("lad", "linear")]


@pytest.mark.parametrize("loss", quick(LOSSES_IN, ("huber:1e-3", "log"), ("lad", "linear")))
@pytest.mark.parametrize("name", QUICK)
def test_planted_truths_come_back(name, loss):
    problem, starts, each = problem_of(name, Loss.parse(*loss))
    found = minimum(problem, starts)
    np.testing.assert_allclose(problem.form.numbers(found.vector), each.truth, rtol=1e-3)


@pytest.mark.parametrize("kind", quick(["huber:1e-3", "l2", "lad"], "l2"))
@pytest.mark.parametrize("name", QUICK)
def test_scipy_finds_no_lower_minimum(name, kind):
    problem, starts, _ = problem_of(name, Loss.parse(kind, "log"), 0.01)
    ours, theirs = minimum(problem, starts), classical(problem, starts)
    assert ours.objective <= theirs.objective * (1 + 1e-6)
    assert ours.agree >= ours.starts / 2
    if kind == "l2":
        goal = problem.regression(problem.form.predict)
        other = optimize.least_squares(
            lambda at: problem.residuals(at),
            np.clip(starts[0], problem.form.bounds[0] + 1e-9, problem.form.bounds[1] - 1e-9),
            lambda at: goal.jacobian(*goal.predict(at[None]))[0],
            bounds=(problem.form.bounds[0], problem.form.bounds[1]),
            xtol=1e-12,
            ftol=1e-12,
        )
        assert ours.objective <= other.cost * (1 + 1e-6)


@pytest.mark.slow
def test_a_global_search_finds_no_lower_minimum_of_the_sigmoid():
    problem, starts, _ = problem_of("sigmoid", Loss("l2", space="linear"), 0.05)
    search = optimize.differential_evolution(
        lambda at: float((problem.residuals(at) ** 2).sum() / 2), problem.form.bounds.T, seed=0, tol=1e-12
    )
    assert minimum(problem, starts).objective <= search.fun * (1 + 1e-6)


@pytest.mark.parametrize("name", QUICK)
def test_the_profile_of_squares_agrees_with_their_covariance(name):
    problem, starts, _ = problem_of(name, Loss("l2"), 0.002)
    found = minimum(problem, starts)
    goal = problem.regression(problem.form.predict)
    jacobian = goal.jacobian(*goal.predict(found.vector[None]))[0]
    variance = 2 * found.objective / (N.size - found.vector.size)
    covariance = variance * np.linalg.inv(jacobian.T @ jacobian)
    values, verdicts = problem.form.numbers(found.vector), profiles(problem, found)
    for number, (parameter, each) in enumerate(verdicts.items()):
        assert each.identified, parameter
        row = problem.form.readings[number] * (values[number] if problem.form.logs[number] else 1.0)
        assert each.high - each.low == pytest.approx(2 * 1.96 * np.sqrt(row @ covariance @ row), rel=0.1), parameter
        assert each.low < values[number] < each.high


@pytest.mark.slow
@pytest.mark.parametrize("name", ["overtrain", "repeat_no_excess", "sigmoid"])
def test_intervals_hold_a_planted_law_as_often_as_they_say(name):
    tables, hits = 10, 0.0
    for seed in range(tables):
        problem, starts, each = problem_of(name, Loss("l2"), 0.003, seed)
        weights = drawn_counts(np.arange(N.size), 120, 0)
        fitted = fit_form(problem, starts[:3], weights, np.arange(N.size))
        low, high = np.percentile(problem.form.numbers(stretched(fitted)), [2.5, 97.5], axis=0)
        hits += ((low < each.truth) & (high > each.truth)).mean()
        assert fitted.settled.mean() > 0.95
        assert (high - low < 0.6 * np.abs(each.truth)).all()  # and they say something
    assert hits / tables >= 0.8


def test_resamples_start_from_the_best_and_are_stretched():
    problem, starts, _ = problem_of("sigmoid", Loss("l2", space="linear"), 0.02)
    labels = np.repeat(np.arange(16), 4)
    weights = drawn_counts(labels, 30, 3)
    np.testing.assert_array_equal(weights, drawn_counts(labels, 30, 3))
    assert (weights.reshape(30, 16, 4).std(-1) == 0).all()  # whole units
    np.testing.assert_array_equal(weights.sum(1), 64)
    fitted = fit_form(problem, starts, weights, labels)
    best = fitted.solution.vector
    alone, _, _ = problem.solve(best[None], counts=weights[:1])
    factor = stretch(problem.residuals(best), labels, 4)
    assert factor > np.sqrt(16 / 15 * 63 / 60)
    np.testing.assert_allclose(stretched(fitted)[0] - best, (alone[0] - best) * factor, rtol=1e-3)
    assert fitted.solution.starts == len(starts) <= KEPT
    with pytest.raises(UserError, match="one unit"):
        drawn_counts(np.zeros(5), 3, 0)


@pytest.mark.parametrize("kind", quick(["huber:1e-3", "l2", "lad"], "huber:1e-3"))
def test_a_point_of_weight_two_is_two_points(kind):
    values = overtrain(N, D, 1.84, 166.0, 367.0, -0.27) * np.exp(0.01 * np.random.default_rng(0).normal(size=N.size))
    weights = np.where(np.arange(N.size) < 9, 2.0, 1.0)
    times = weights.astype(int)
    once = FormProblem(overtrain_form(N, D, values), Loss.parse(kind, "log"), values, weights)
    n, d, repeated = (np.repeat(each, times) for each in (N, D, values))
    twice = FormProblem(overtrain_form(n, d, repeated), Loss.parse(kind, "log"), repeated)
    one, two = minimum(once, overtrain_starts(once, N, D)), minimum(twice, overtrain_starts(twice, n, d))
    numbers = once.form.numbers(one.vector), twice.form.numbers(two.vector)
    np.testing.assert_allclose(*numbers, rtol=1e-3 if kind != "lad" else 3e-2)
    assert one.objective * weights.mean() == pytest.approx(two.objective, rel=1e-5)
    assert one.objective <= classical(once, overtrain_starts(once, N, D)).objective * (1 + 1e-6)


def test_what_goes_to_nothing_is_on_its_bound():
    values = overtrain(N, D, 0.0, 166.0, 367.0, -0.27) * np.exp(-0.001 * np.log(N / 1e9) ** 2)
    problem = FormProblem(overtrain_form(N, D, values), Loss("l2"), values)
    found = minimum(problem, overtrain_starts(problem, N, D))
    assert problem.form.at_bound(found.vector).tolist() == [True, False, False, False]


def test_coefficients_of_a_start_are_not_negative():
    terms = np.array([np.ones(5), np.arange(5.0)])
    np.testing.assert_allclose(projected(terms, 2 + 3 * terms[1], "linear"), [2, 3])
    assert (projected(terms, 9 - 2 * terms[1], "log") > 0).all()
