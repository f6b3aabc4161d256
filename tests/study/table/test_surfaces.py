"""The laws of N, D and C, and their derivatives."""

import numpy as np
import pytest

from linscale.study.table.minimise import Residual
from linscale.study.table.surfaces import LAWS, chinchilla, evaluate, gamma_form, power

N = np.array([1e7, 1e8, 3e9])
D = np.array([1e9, 2e10, 1e11])


def vector(name: str, values: dict[str, float]) -> np.ndarray:
    """The vector of a law's parameters."""
    full = []
    for entry in LAWS[name].names:
        value = values.get(entry, 0.0 if entry == "E" else 1.0)
        if entry in ("E", "A", "B", "l_coefficient"):
            value = np.log(value) if value else -np.inf
        full.append(-value if entry == "l_exponent" else value)
    return np.array([full])


@pytest.mark.parametrize(
    ("name", "law", "inputs", "values"),
    [
        ("chinchilla", chinchilla, [N, D], {"E": 1.7, "A": 400.0, "B": 410.0, "alpha": 0.34, "beta": 0.28}),
        ("gamma", gamma_form, [N, D], {"E": 1.7, "A": 9e3, "B": 7e3, "alpha": 0.5, "beta": 0.4, "gamma": 0.7}),
        ("power", power, [N / 1e9], {"l_coefficient": 3.7, "l_exponent": -0.08}),
        ("power_irreducible", power, [N / 1e9], {"E": 1.5, "l_coefficient": 3.7, "l_exponent": -0.08}),
    ],
)
def test_the_family_holds_each_law(name, law, inputs, values):
    x = vector(name, values)
    np.testing.assert_allclose(np.exp(evaluate(x, np.log(inputs)).value[0]), law(*inputs, **values), rtol=1e-12)
    natural = LAWS[name].natural(x)[0][list(LAWS[name].free)]
    np.testing.assert_allclose(natural, [values[each] for each in LAWS[name].parameters])


@pytest.mark.parametrize("space", ["log", "linear"])
@pytest.mark.parametrize("terms", [1, 2])
def test_first_and_second_derivatives(terms, space):
    random = np.random.default_rng(0)
    x = random.normal(size=(terms, 9))
    problem = Residual(x, 1 + 0.3 * random.normal(size=9), 0.2, space)
    weights = random.random((3, 9))
    vectors = 0.4 + 0.3 * random.normal(size=(3, 2 * terms + 2))

    def objective(at):
        return problem.objective(problem.residuals(evaluate(at, x).value), weights)

    gradient, second = problem.derivatives(evaluate(vectors, x), weights, majorise=False)
    for entry in range(vectors.shape[1]):
        step = 1e-6 * (np.arange(vectors.shape[1]) == entry)
        slopes = [problem.derivatives(evaluate(vectors + sign * step, x), weights, False)[0] for sign in (1, -1)]
        np.testing.assert_allclose(
            (objective(vectors + step) - objective(vectors - step)) / 2e-6, gradient[:, entry], atol=1e-7
        )
        np.testing.assert_allclose((slopes[0] - slopes[1]) / 2e-6, second[:, entry], atol=1e-6)
