"""Noise is measured as it was planted, and draws about lines are as wide as Student's intervals."""

import numpy as np
import pytest
import scipy

from linscale.study.table.curve_noise import line_draws, measure
from linscale.study.table.valley import design

Z = np.linspace(-1, 1, 7)
DESIGNS = [design(Z, 2)] * 6
RUNS = np.tile(np.arange(7), 6)


def planted(random, point, run):
    curve = 1 + 0.1 * Z**2
    shifts = run * random.normal(size=7)
    return [curve + shifts + point * random.normal(size=7) for _ in DESIGNS]


def test_points_alone_are_the_residual_variance_of_least_squares():
    values = planted(np.random.default_rng(0), 0.01, 0.0)
    squares = sum(np.polyfit(Z, y, 2, full=True)[1][0] for y in values)
    noise = measure(DESIGNS, values, None, 0.5)
    assert (noise.measured, noise.freedom, noise.run) == (True, 24, 0)
    assert noise.point == pytest.approx(np.sqrt(squares / 24))


@pytest.mark.parametrize(("point", "run"), [(0.004, 0.003), (0.001, 0.005), (0.004, 0.0)])
def test_both_parts_of_the_noise_are_unbiased(point, run):
    random = np.random.default_rng(1)
    found = [measure(DESIGNS, planted(random, point, run), RUNS, 0.5) for _ in range(400)]
    assert np.mean([each.point**2 for each in found]) == pytest.approx(point**2, rel=0.1)
    assert np.mean([each.run**2 for each in found]) == pytest.approx(run**2, rel=0.15, abs=0.15 * point**2)
    if run > point:
        assert np.median([each.freedom for each in found]) < 5  # what seven runs leave beyond a parabola


def test_draws_have_the_planted_covariance():
    noise = measure(DESIGNS, planted(np.random.default_rng(2), 0.002, 0.004), RUNS, 0.5)
    drawn = noise.draw(RUNS, 40_000, np.random.default_rng(0))
    wide = noise.freedom / (noise.freedom - 2)  # variance of Student's t
    if noise.freedom > 4:
        assert drawn[:, 0].var() == pytest.approx(wide * noise.total**2, rel=0.2)
    assert np.corrcoef(drawn[:, 0], drawn[:, 7])[0, 1] == pytest.approx(noise.run**2 / noise.total**2, abs=0.1)
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.1


def test_with_fewer_than_three_degrees_of_freedom_noise_is_assumed():
    noise = measure([design(Z[:3], 2), design(Z[:5], 2)], [Z[:3], Z[:5] ** 3], None, 0.007)  # two degrees
    assert (noise.total, noise.measured) == (0.007, False)
    assert measure([design(Z[:6], 2)], [Z[:6] ** 4], None, 0.007).measured
    assert noise.draw(np.arange(3), 20_000, np.random.default_rng(0)).std() == pytest.approx(0.007, rel=0.02)


@pytest.mark.slow
def test_draws_about_a_line_give_students_interval():
    random = np.random.default_rng(0)
    x = np.linspace(0, 3, 5)
    y = 1 + 2 * x + 0.1 * random.normal(size=5)
    drawn = line_draws(np.stack([np.ones(5), x], axis=1), y[None], 40_000, random)[:, 0]
    slopes = np.polyfit(x, drawn.T, 1)[0]
    oracle = scipy.stats.linregress(x, y)
    reach = scipy.stats.t.ppf(0.975, 3) * oracle.stderr
    assert np.percentile(slopes, [2.5, 97.5]) == pytest.approx(
        [oracle.slope - reach, oracle.slope + reach], abs=0.02 * reach
    )
