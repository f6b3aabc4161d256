"""Fits of surfaces: planted laws come back, published objectives are reached, verdicts are right."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest

from linscale.config import UserError
from linscale.study.table.classical import classical
from linscale.study.table.profile import profiles
from linscale.study.table.surface_fit import Loss, Problem, fit, resample
from linscale.study.table.surfaces import LAWS, chinchilla, evaluate, gamma_form, power
from tests.quick import quick

ROOT = Path(__file__).parents[3]
SCALING = next((p for at in (ROOT, ROOT.parent) if (p := at / "shared" / "data" / "scaling").is_dir()), Path("none"))
published = pytest.mark.skipif(not SCALING.is_dir(), reason="the published points are not on this machine")
N, D = (grid.ravel() for grid in np.meshgrid(np.geomspace(2e7, 2e10, 8), np.geomspace(5e8, 5e11, 6)))
TRUTH = (1.69, 406.4, 410.7, 0.34, 0.28)
SURFACE = chinchilla(N, D, *TRUTH)


MINIMA = quick(
    itertools.product(["chinchilla", "gamma"], ["huber:1e-3", "l2", "lad"]),
    *(("chinchilla", "huber:1e-3"), ("chinchilla", "l2"), ("gamma", "l2")),
)


def noisy(loss: np.ndarray, scale: float, seed: int = 0) -> np.ndarray:
    return loss * np.exp(scale * np.random.default_rng(seed).normal(size=loss.size))


@pytest.mark.parametrize("space", ["log", "linear"])
@pytest.mark.parametrize("kind", ["huber:1e-3", "l2", "lad"])
def test_an_exact_chinchilla_law_comes_back(kind, space):
    problem = Problem(LAWS["chinchilla"], Loss.parse(kind, space), np.array([N, D]), SURFACE)
    found = fit(problem)
    np.testing.assert_allclose(problem.numbers(found.vector), TRUTH, rtol=1e-3)
    assert found.agree > found.starts / 4


def test_an_exact_gamma_form_comes_back():
    truth = (1.6, 2000.0, 3000.0, 0.45, 0.4, 0.8)
    problem = Problem(LAWS["gamma"], Loss.parse("l2", "log"), np.array([N, D]), gamma_form(N, D, *truth))
    np.testing.assert_allclose(problem.numbers(fit(problem).vector), truth, rtol=2e-3)


def test_exact_power_laws_come_back():
    c = np.geomspace(1e-3, 1e3, 12)
    for name, truth in (("power", (3.7, -0.08)), ("power_irreducible", (1.5, 2.2, -0.15))):
        values = power(c, *truth) if name == "power" else power(c, *truth[1:], truth[0])
        problem = Problem(LAWS[name], Loss(), c[None], values)
        np.testing.assert_allclose(problem.numbers(fit(problem).vector), truth, rtol=1e-4)


@pytest.mark.slow
def test_intervals_hold_a_planted_law_as_often_as_they_say():
    tables, hits = 16, np.zeros(5)
    for seed in range(tables):
        problem = Problem(LAWS["chinchilla"], Loss.parse("l2", "log"), np.array([N, D]), noisy(SURFACE, 0.003, seed))
        replicates, settled = resample(problem, fit(problem).vector, np.arange(N.size), 200, seed=0)
        low, high = np.percentile(problem.numbers(replicates), [2.5, 97.5], axis=0)
        hits += (low < TRUTH) & (high > TRUTH)
        assert settled.mean() > 0.95
        assert ((high - low)[3:] < 0.05).all()  # and they say something
    assert hits.min() >= 12  # of 16 at 95%: a chance of 1 in 1000 a parameter
    assert hits.sum() >= 68


@pytest.mark.parametrize("kind", quick(["huber:1e-3", "l2", "lad"], "l2"))
def test_resamples_are_reproducible_and_profiles_enclose_the_estimate(kind):
    problem = Problem(LAWS["chinchilla"], Loss.parse(kind, "log"), np.array([N, D]), noisy(SURFACE, 0.003))
    found = fit(problem)
    once, again, other = (resample(problem, found.vector, N, 20, seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert not np.allclose(once, other)
    for value, (name, each) in zip(problem.numbers(found.vector), profiles(problem, found).items(), strict=True):
        assert each.identified, name
        assert each.low < value < each.high


def test_the_profile_of_squares_agrees_with_their_covariance():
    problem = Problem(LAWS["chinchilla"], Loss.parse("l2", "log"), np.array([N, D]), noisy(SURFACE, 0.003))
    found = fit(problem)
    gradient = evaluate(found.vector[None], np.log([N, D]) - problem.centre).gradient[0][:, :5]
    variance = (problem.residuals(found.vector) ** 2).sum() / (N.size - 5)
    error = np.sqrt(np.diag(variance * np.linalg.inv(gradient.T @ gradient)))
    each = profiles(problem, found)["alpha"]
    assert each.high - each.low == pytest.approx(2 * 1.96 * error[3], rel=0.05)


@pytest.mark.parametrize("both", MINIMA)
def test_newton_and_scipy_find_the_same_minimum(both):
    law, kind = both
    problem = Problem(LAWS[law], Loss.parse(kind, "log"), np.array([N, D]), noisy(SURFACE, 0.01))
    ours, theirs = fit(problem), classical(problem)
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-5)
    tolerance = 1e-3 if kind != "lad" else 3e-2  # of a valley that is flat, and not smooth
    np.testing.assert_allclose(ours.vector, theirs.vector, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_what_points_do_not_determine_is_said():
    n = np.repeat(np.geomspace(2e7, 2e10, 8), 3)
    d = np.tile([1e10, 1.01e10, 1.02e10], 8)  # as good as one length: what D costs cannot be told from E
    values = noisy(chinchilla(n, d, *TRUTH), 0.003)
    problem = Problem(LAWS["chinchilla"], Loss.parse("l2", "log"), np.array([n, d]), values)
    verdicts = profiles(problem, fit(problem))
    assert verdicts["alpha"].high is not None
    assert not verdicts["beta"].identified
    assert not verdicts["E"].identified


def test_an_irreducible_loss_of_nothing_ends_on_its_bound():
    c = np.geomspace(1e-3, 1e3, 30)
    values = power(c, 3.7, -0.08) * np.exp(-0.002 * np.log(c) ** 2)  # bends downward: E would be negative
    vector = fit(Problem(LAWS["power_irreducible"], Loss.parse("l2", "log"), c[None], values)).vector
    assert np.exp(vector[0]) < 2e-6 * values.min()


def test_too_few_points_and_units_are_refused():
    with pytest.raises(UserError, match="5 parameters and needs at least 6"):
        fit(Problem(LAWS["chinchilla"], Loss(), np.array([N[:5], D[:5]]), np.full(5, 3.0)))
    with pytest.raises(UserError, match="d has 1 distinct values"):
        fit(Problem(LAWS["chinchilla"], Loss(), np.array([N[:8], np.full(8, 1e9)]), np.full(8, 3.0)))
    problem = Problem(LAWS["power"], Loss(), np.geomspace(1, 9, 5)[None], np.geomspace(4, 3, 5))
    with pytest.raises(UserError, match="nothing to resample"):
        resample(problem, fit(problem).vector, np.zeros(5), 10, seed=0)
    for text in ("huber:-1", "huber:x", "l2:1", "cauchy"):
        with pytest.raises(UserError, match="expected huber:DELTA"):
            Loss.parse(text, "log")


@published
def test_the_published_objective_of_gemstones_is_reached():
    with open(SCALING / "gemstones" / "hot.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    n, d, loss = (np.array([float(r[k]) for r in rows]) for k in ("params_active_precise", "tokens", "final_loss"))
    problem = Problem(LAWS["chinchilla"], Loss(), np.array([n, d]), loss)
    found = fit(problem)
    assert found.objective <= 1.9816e-3 * (1 + 1e-4)
    E, A, B, alpha, beta = problem.numbers(found.vector)
    published = (0.7623, 5.3613, 15.416, 0.29287, 0.71287)
    np.testing.assert_allclose((np.log(E), np.log(A), np.log(B), alpha, beta), published, rtol=1e-3)


@pytest.mark.slow
@published
def test_the_published_predictions_of_the_olmo_ladder_come_back():
    with open(SCALING / "olmo-ladder" / "ladder_checkpoints.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with open(SCALING / "olmo-ladder" / "published_step1_main.csv", encoding="utf-8") as file:
        predictions = {row["Task"]: float(row["Pred"]) for row in csv.DictReader(file)}
    target = max((row for row in rows if row["run"] == "peteish13_eval_final"), key=lambda row: float(row["tokens"]))
    sizes = itertools.product(("190M", "370M", "760M", "1B"), ("1xC", "2xC", "5xC", "10xC"))
    runs = ["-".join(each) for each in sizes]
    of_run = {run: sorted((r for r in rows if r["run"] == run), key=lambda r: float(r["tokens"])) for run in runs}
    n, d = np.array([[float(of_run[run][-1][key]) for run in runs] for key in ("params", "tokens")])
    on_bound = set()
    for task, predicted in predictions.items():
        values = np.array([np.mean([float(row[f"{task}.bpb"]) for row in of_run[run][-5:]]) for run in runs])
        problem = Problem(LAWS["chinchilla"], Loss(), np.array([n, d]), values)
        vector = fit(problem).vector
        ours = chinchilla(float(target["params"]), float(target["tokens"]), *problem.numbers(vector))
        assert ours == pytest.approx(predicted, rel=3e-4), task
        if np.abs(vector - problem.bounds).min() < 1e-6:
            on_bound.add(task)
    assert on_bound == {"csqa_val_5shot"}
