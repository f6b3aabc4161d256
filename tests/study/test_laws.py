"""The published coefficients give the published predictions; the regression recovers planted lines."""

import numpy as np
import pytest

from linscale.study.laws import PAPER_LAWS, PFLOP_S_DAY, EnvelopeLaw, fit_power_laws, law_of, power_law

# The paper's coefficients evaluated by hand: C -> (loss, parameters, tokens), three or four significant digits.
PREDICTIONS = {
    "llama": {0.1: (4.457, 35.3e6, 7.9e9), 10: (3.086, 0.94e9, 82.9e9), 1000: (2.137, 24.9e9, 869e9)},
    "tnl": {0.1: (4.224, 61.8e6, 15.1e9), 10: (2.965, 1.22e9, 130e9), 1000: (2.082, 23.9e9, 1.13e12)},
    "hgrn2": {0.1: (4.137, 60.6e6, 17.0e9), 10: (2.925, 1.17e9, 135e9), 1000: (2.068, 22.5e9, 1.07e12)},
    "cosformer2": {0.1: (4.270, 59.1e6, 14.9e9), 10: (3.015, 1.19e9, 120e9), 1000: (2.128, 23.9e9, 0.97e12)},
}


@pytest.mark.parametrize("arch", PREDICTIONS)
def test_published_laws_predict_what_the_paper_implies(arch: str) -> None:
    law = PAPER_LAWS[arch]
    for compute, (loss, params, tokens) in PREDICTIONS[arch].items():
        assert law.loss(compute) == pytest.approx(loss, rel=3e-4)
        assert law.params(compute) == pytest.approx(params, rel=8e-3)
        assert law.tokens(compute) == pytest.approx(tokens, rel=8e-3)


def test_one_unit_of_compute_is_a_petaflop_per_second_for_a_day() -> None:
    assert PFLOP_S_DAY == 8.64e19
    assert power_law(np.array([1.0, 100.0]), 3.0, -0.5) == pytest.approx([3.0, 0.3])


def test_regression_recovers_lines_and_ignores_what_is_masked() -> None:
    log_c = np.linspace(-20, -10, 50)
    planted = np.array([[1.3, -0.08], [19.0, 0.7]])
    values = planted[:, :1] + planted[:, 1:] * log_c
    kept = np.ones_like(values, dtype=bool)
    kept[:, 10:20] = False
    spoiled = np.where(kept, values, np.inf)
    coefficients, exponents = fit_power_laws(log_c, spoiled, kept)
    assert coefficients == pytest.approx(planted[:, 0], rel=1e-10)
    assert exponents == pytest.approx(planted[:, 1], rel=1e-10)


def test_regression_through_one_point_has_no_slope() -> None:
    kept = np.array([[True, False, False], [False, False, False]])
    _, exponents = fit_power_laws(np.arange(3.0), np.ones((2, 3)), kept)
    assert np.isnan(exponents).all()


def test_law_of_reads_the_parameter_table_of_a_fit() -> None:
    law = EnvelopeLaw(3.5, -0.07, 2e8, 0.6, 4e10, 0.5)
    table = {name: {"value": value, "low": None} for name, value in vars(law).items()}
    assert law_of(table) == law
