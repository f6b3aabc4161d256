"""Power laws through minima, with and without E."""

import numpy as np
import pytest

from linscale.study.table.compute_laws import (
    bound_warnings,
    fit_laws,
    names,
    parameter_table,
    range_warnings,
    residuals,
)
from tests.lazy import Lazy

optimize = Lazy("scipy.optimize")

LOG_C = np.linspace(-4, 3, 8)


def values(loss):
    return np.array([[np.log(loss), 19 + 0.5 * LOG_C, 24 + 0.6 * LOG_C]])


def test_planted_laws_come_back_and_leave_nothing():
    law = fit_laws(LOG_C[None], values(2.5 * np.exp(-0.07 * LOG_C)), np.ones((1, 8), bool), irreducible=False)
    np.testing.assert_allclose(law[0], [2.5, -0.07, np.exp(19), 0.5, np.exp(24), 0.6])
    left = residuals(LOG_C[None], values(2.5 * np.exp(-0.07 * LOG_C)), law)
    np.testing.assert_allclose(left, 0, atol=1e-12)


def test_a_law_with_constant_is_scipys_least_squares_for_every_replicate():
    random = np.random.default_rng(0)
    loss = (1.7 + 0.9 * np.exp(-0.15 * LOG_C)) * np.exp(0.002 * random.normal(size=(6, 8)))
    stacked = np.concatenate([values(each) for each in loss])
    kept = np.ones((6, 8), bool)
    kept[2, 3] = False
    laws = fit_laws(LOG_C[None], stacked, kept, irreducible=True)
    for row, each in enumerate(loss):
        use = kept[row]

        def relative(c, e, a, b, of=each[use]):
            return (e + a * np.exp(b * c)) / of

        oracle, _ = optimize.curve_fit(relative, LOG_C[use], np.ones(use.sum()), p0=(1.7, 0.9, -0.15))
        np.testing.assert_allclose(laws[row, :3], oracle, rtol=1e-4)
    np.testing.assert_allclose(residuals(LOG_C[None], stacked, laws)[:, 1:], 0, atol=1e-9)


def test_e_is_never_negative_and_then_on_its_bound():
    loss = 3 - 0.05 * LOG_C - 0.02 * LOG_C**2  # bends down: E would be negative
    law = fit_laws(LOG_C[None], values(loss), np.ones((1, 8), bool), irreducible=True)
    assert law[0, 0] == 0
    table = parameter_table(law[0], np.tile(law, (3, 1)), irreducible=True)
    assert list(table) == list(names(True))
    assert table["E"]["at_bound"]
    assert not table["E"]["identified"]
    assert table["l_exponent"]["identified"]
    assert [each["name"] for each in bound_warnings(table)] == ["at_bound"]
    assert not bound_warnings(parameter_table(law[0, 1:], law[:, 1:], irreducible=False))


def test_one_minimum_is_no_law():
    kept = np.zeros((1, 8), bool)
    kept[0, 0] = True
    assert np.isnan(fit_laws(LOG_C[None], values(np.exp(LOG_C)), kept, irreducible=False)).any()


@pytest.mark.parametrize(
    ("compute", "found"),
    [
        ((0.1, 0.5), ["short_range"]),
        ((1e-6, 1e-3), ["extrapolated_coefficient"]),
        ((1e-6, 1e-5), ["extrapolated_coefficient"]),
        ((0.01, 0.5), []),
        ((0.01, 100), []),
    ],
)
def test_short_ranges_and_far_coefficients_are_named(compute, found):
    assert [each["name"] for each in range_warnings(np.array(compute))] == found
