"""Minima of a budget's losses: against numpy's polynomials and scipy's interpolation and minimiser."""

import numpy as np
import pytest

from linscale.study.table.valley import Axis, degree_of, drawn_curve, find_minimum
from tests.lazy import Lazy

interpolate, optimize = Lazy("scipy.interpolate"), Lazy("scipy.optimize")

LOG_N = np.array([17.0, 17.9, 18.3, 19.5, 20.0, 21.2])
RANDOM = np.random.default_rng(0)
VALLEYS = 1.0 + 0.01 * (LOG_N - 19) ** 2 + 0.002 * (LOG_N - 19) ** 3 + 0.003 * RANDOM.normal(size=(5, LOG_N.size))


def lowest(curve):
    """By scipy, between the ends of LOG_N, from a fine grid."""
    grid = np.linspace(LOG_N[0], LOG_N[-1], 2001)
    at = grid[np.argmin(curve(grid))]
    return optimize.minimize_scalar(curve, bounds=(at - 0.01, at + 0.01), method="bounded", options={"xatol": 1e-10})


@pytest.mark.parametrize("method", ["parabola", "akima", "cubic-log"])
def test_minima_are_those_of_numpy_and_scipy(method):
    axis = Axis(LOG_N)
    found = find_minimum(method, axis, VALLEYS)
    for row, values in enumerate(VALLEYS):
        if method == "akima":
            curve = interpolate.Akima1DInterpolator(LOG_N, values)
        else:
            curve = np.poly1d(np.polyfit(LOG_N - 19, values, degree_of(method, 6)))(np.poly1d([1, -19]))
        oracle = lowest(curve)
        assert found.inside[row]
        assert axis.centre + axis.reach * found.z[row] == pytest.approx(oracle.x, abs=2e-4)
        assert found.log_loss[row] == pytest.approx(oracle.fun, abs=1e-7)
        z = np.linspace(-1, 1, 7)
        drawn = drawn_curve(method, axis, values, z)
        np.testing.assert_allclose(drawn, curve(axis.centre + axis.reach * z), atol=1e-9)


def test_the_vertex_of_a_parabola_through_three_points_is_exact():
    x = np.array([1.0, 2.0, 4.0])
    found = find_minimum("parabola", Axis(x), (3 * (x - 2.7) ** 2 + 0.4)[None])
    assert 2.5 + 1.5 * found.z[0] == pytest.approx(2.7)
    assert found.log_loss[0] == pytest.approx(0.4)


def test_repeated_sizes_count_as_points_of_the_fit_and_as_one_knot():
    x = np.array([1.0, 1.0, 2.0, 3.0, 3.0, 4.0])
    y = np.array([1.2, 1.0, 0.5, 0.4, 0.6, 1.3])
    axis = Axis(x)
    a, b, _ = np.polyfit(x, y, 2)
    assert axis.centre + axis.reach * find_minimum("parabola", axis, y[None]).z[0] == pytest.approx(-b / (2 * a))
    alone = find_minimum("akima", Axis(np.array([1.0, 2, 3, 4])), np.array([[1.1, 0.5, 0.5, 1.3]]))
    assert find_minimum("akima", axis, y[None]).z[0] == pytest.approx(alone.z[0])


@pytest.mark.parametrize("method", ["parabola", "akima", "cubic-log"])
def test_a_slope_has_no_minimum_inside_and_a_hill_none_at_all(method):
    x = np.linspace(0, 3, 6)
    slope, hill = -x - 0.01 * x**2, -((x - 1.4) ** 2)
    found = find_minimum(method, Axis(x), np.array([slope, hill, x]))
    assert not found.inside.any()
    if method == "parabola":
        assert np.isnan(found.z).all()


def test_a_dip_of_a_cubic_that_ends_lower_is_no_minimum():
    x = np.linspace(-1, 1, 9)
    values = x**3 + 0.2 * x**2 - 0.1 * x  # a dip near 0.13, far lower at -1
    assert not find_minimum("cubic-log", Axis(x), values[None]).inside[0]
