"""Noise between seeds: measured from repeats, tested against misfit, and the intervals made from it."""

import numpy as np
import pytest

from linscale.config import UserError
from linscale.study.table.group import Group, PointFit
from linscale.study.table.noise import find_repeats, lack_of_fit, redraw
from linscale.study.table.resampling import correlation_within
from linscale.study.table.surface import fit_surface
from linscale.study.table.surface_fit import Loss, Problem, find_valley, fit, resample
from linscale.study.table.surfaces import LAWS, chinchilla

TRUTH = (1.69, 406.4, 410.7, 0.34, 0.28)
N, D = (grid.ravel() for grid in np.meshgrid(np.geomspace(2e7, 2e10, 4), np.geomspace(5e8, 5e11, 3)))
L2 = Loss.parse("l2", "log")


def table(*, seeds: int = 3, checkpoints: int = 1, noise: float = 0.01, random: int = 0, bent: float = 0.0) -> Group:
    """Runs at the corners of a grid, every one repeated and shifted as a whole, at a few of its checkpoints."""
    generator = np.random.default_rng(random)
    config = np.repeat(np.arange(N.size), seeds * checkpoints)
    run = np.repeat(np.arange(N.size * seeds), checkpoints)
    n, d = N[config], D[config] * np.tile(np.linspace(1 / checkpoints, 1, checkpoints), N.size * seeds)
    loss = chinchilla(n, d, *TRUTH) * np.exp(noise * generator.normal(size=N.size * seeds)[run])
    loss *= np.exp(bent * (-1.0) ** (config % 4 + config // 4))  # a chequerboard over sizes and lengths
    labels = {"run": np.array([f"r{each}" for each in run])}
    return Group("all", {"n": n, "d": d, "loss": loss}, labels, np.arange(n.size) + 1, {"n": "n", "d": "d"})


def problem(group: Group, weights: np.ndarray | None = None) -> Problem:
    return Problem(
        LAWS["chinchilla"], L2, np.array([group.numbers["n"], group.numbers["d"]]), group.numbers["loss"], weights
    )


def test_noise_between_repeats_is_measured_and_checkpoints_are_no_further_repeats():
    sizes = [find_repeats(table(random=seed, checkpoints=4), ("n", "d")) for seed in range(20)]
    assert np.mean([found.sd for found in sizes]) == pytest.approx(0.01, rel=0.1)
    assert {found.freedom for found in sizes} == {N.size * 2}
    assert find_repeats(table(seeds=1), ("n", "d")) is None
    twice = table()
    again = {role: np.concatenate([values, values[:5]]) for role, values in twice.numbers.items()}
    labels = {"run": np.concatenate([twice.labels["run"], twice.labels["run"][:5]])}
    found = find_repeats(Group("all", again, labels, np.arange(len(again["n"])), {}), ("n", "d"))
    assert (found.sd, found.freedom) == (find_repeats(twice, ("n", "d")).sd, N.size * 2)  # the same rows once more


@pytest.mark.slow
def test_a_law_that_misses_by_more_than_seeds_is_told_from_one_that_fits():
    fits, misses = [], []
    for seed in range(12):
        for bent, into in ((0.0, fits), (0.02, misses)):
            group = table(random=seed, bent=bent)
            found = find_repeats(group, ("n", "d"))
            into.append(lack_of_fit(problem(group), fit(problem(group)).vector, found))
    assert sum(each < 0.05 for each in fits) <= 3  # one in twenty by chance
    assert sum(each < 0.01 for each in misses) >= 10
    entry = fit_surface(table(bent=0.02), PointFit("chinchilla", L2, bootstrap=0))
    assert "lack_of_fit" in {each["name"] for each in entry["warnings"]}
    assert entry["seed_noise"]["degrees"] == N.size * 2


@pytest.mark.slow
def test_intervals_from_seed_noise_hold_the_law():
    hits, tables = np.zeros(5), 16
    for seed in range(tables):
        group = table(seeds=2, random=seed)
        vector = fit(problem(group)).vector
        vectors, settled = redraw(problem(group), vector, find_repeats(group, ("n", "d")), 200, seed=0)
        low, high = np.percentile(problem(group).numbers(vectors), [2.5, 97.5], axis=0)
        hits += (low < TRUTH) & (high > TRUTH)
        assert settled.mean() > 0.95
    assert hits.min() >= 12
    with pytest.raises(UserError, match="0 repeats"):
        redraw(problem(table(seeds=1)), vector, None, 10, 0)


def test_what_a_point_counts():
    """A weight of two is the point twice; points of no weight are not there."""
    group = table(seeds=2)
    generator = np.random.default_rng(1)
    counts = generator.integers(0, 3, size=len(group.rows)).astype(float)
    rows = np.repeat(np.arange(len(group.rows)), counts.astype(int))
    inputs = np.array([group.numbers["n"], group.numbers["d"]])[:, rows]
    repeated = Problem(LAWS["chinchilla"], L2, inputs, group.numbers["loss"][rows])
    weighted = problem(group, counts)
    np.testing.assert_allclose(
        weighted.numbers(fit(weighted).vector), repeated.numbers(fit(repeated).vector), rtol=1e-4
    )


def test_the_correlation_within_units():
    generator, labels = np.random.default_rng(0), np.repeat(np.arange(400), 5)
    shared, own = generator.normal(size=400)[labels], generator.normal(size=2000)
    assert correlation_within(own, labels) < 0.05
    assert correlation_within(np.sqrt(0.7) * shared + np.sqrt(0.3) * own, labels) == pytest.approx(0.7, abs=0.06)
    assert correlation_within(shared, labels) > 0.99
    assert correlation_within(own, np.arange(2000)) == 0


@pytest.mark.slow
def test_runs_along_one_ray_make_a_flat_valley():
    n = np.geomspace(1e7, 1e10, 20)
    jitter = np.exp(0.05 * np.random.default_rng(0).normal(size=20))
    shuffled = np.random.default_rng(0).permutation(n)
    for d, flat in ((20 * n * jitter, True), (20 * shuffled, False)):
        ray = Problem(LAWS["chinchilla"], L2, np.array([n, d]), chinchilla(n, d, *TRUTH))
        valley = find_valley(ray, fit(ray).vector)
        assert (valley.condition > 200) == flat
        assert valley.along


def test_resampling_runs_by_point_is_narrower_than_by_run():
    group = table(checkpoints=4)
    vector = fit(problem(group)).vector
    by_run, by_point = (
        np.std(resample(problem(group), vector, labels, 200, 0)[0][:, 3])
        for labels in (group.labels["run"], group.rows)
    )
    assert by_run > 1.4 * by_point
