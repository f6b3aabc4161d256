"""The best N and D where FLOPs are not 6 N D, against a search along the budget."""

import json

import numpy as np
import pytest

from linscale.study.flops import Flops, fit_flops
from linscale.study.table.compute import compute_of
from linscale.study.table.fit import fit_points
from linscale.study.table.group import PointFit, select
from linscale.study.table.points import read_points
from linscale.study.table.surface_fit import Loss
from linscale.study.table.surfaces import chinchilla
from tests.lazy import Lazy

optimize = Lazy("scipy.optimize")

TRUTH = {"A": 400.0, "B": 1200.0, "alpha": 0.34, "beta": 0.29}


@pytest.mark.parametrize(("k", "kappa"), [(6.0, 0.0), (90.0, -0.15), (0.4, 0.2)])
def test_the_optimum_is_the_lowest_loss_on_the_budget(k, kappa):
    law = Flops(k, kappa)
    a, log_n, log_d = law.optimum(np.log(TRUTH["A"]), np.log(TRUTH["B"]), TRUTH["alpha"], TRUTH["beta"])
    for c in (1e18, 1e23):

        def loss(log_size, c=c):
            n = np.exp(log_size)
            return chinchilla(n, c / (k * n ** (1 + kappa)), 1.7, *TRUTH.values())

        best = optimize.minimize_scalar(
            loss, bounds=(np.log(1e4), np.log(1e13)), method="bounded", options={"xatol": 1e-10}
        ).x
        assert log_n + a * np.log(c) == pytest.approx(best, abs=1e-4)
        d = log_d + (1 - (1 + kappa) * a) * np.log(c)
        assert np.log(k) + (1 + kappa) * (log_n + a * np.log(c)) + d == pytest.approx(np.log(c))


def test_six_n_d_is_the_published_optimum():
    """Hoffmann et al. 2022, equation 4: N_opt = G (C / 6)^a, D_opt = G^-1 (C / 6)^b, G = (alpha A / beta B)^(1 / s)."""
    A, B, alpha, beta = TRUTH.values()
    a, log_n, log_d = Flops().optimum(np.log(A), np.log(B), alpha, beta)
    g = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    assert a == pytest.approx(beta / (alpha + beta))
    assert np.exp(log_n) == pytest.approx(g * 6**-a)
    assert np.exp(log_d) == pytest.approx(1 / g * 6 ** (a - 1))


def test_flops_that_are_nearly_six_n_d_are_that():
    n, d = np.array([1e7, 1e8, 1e9]), np.array([1e9, 1e10, 3e10])
    assert fit_flops(n, d, 6 * n * d * np.array([1.004, 0.996, 1.0])) == Flops(deviation=pytest.approx(0.004))
    assert fit_flops(n, d, 8 * n * d * np.array([1.004, 0.996, 1.0])).kappa == 0


def test_a_planted_law_of_flops_is_found_and_its_deviation_told():
    n, d = np.meshgrid(np.geomspace(1e7, 1e10, 5), np.geomspace(1e9, 1e11, 4))
    c = 40 * n**0.9 * d
    found = fit_flops(n.ravel(), d.ravel(), c.ravel())
    assert (found.k, found.kappa) == pytest.approx((40, -0.1))
    assert found.deviation < 1e-9
    c[0, 0] *= 1.5
    assert fit_flops(n.ravel(), d.ravel(), c.ravel()).deviation > 0.2
    assert fit_flops(np.full(3, 1e8), np.array([1e9, 2e9, 4e9]), 8e8 * np.array([1e9, 2e9, 4e9])) == Flops(
        pytest.approx(8.0), 0.0, pytest.approx(0, abs=1e-12)
    )


@pytest.fixture
def table(tmp_path):
    """A grid of planted losses, with FLOPs that count a head of 32,768 x d_model."""
    lines = ["params,tokens,loss,d_model,vocab_size,total_flops"]
    for d_model in (256, 512, 1024, 2048, 4096):
        n = 12 * d_model**2 * (d_model // 64)
        for d in (1e9, 1e10, 1e11):
            loss = chinchilla(n, d, 1.7, *TRUTH.values())
            lines.append(f"{n},{d},{loss},{d_model},32768,{6 * (n + 32768 * d_model) * d}")
    path = tmp_path / "points.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    "columns", [{"c": "6nd+head", "n_body": "params"}, pytest.param({"c": "total_flops"}, marks=pytest.mark.slow)]
)
def test_derived_exponents_follow_the_definition(table, columns):
    points = read_points(table, columns=columns, needed=("n", "d", "loss"))
    (fitted,) = fit_points(points, PointFit("chinchilla", Loss(), bootstrap=0))["groups"]
    law = compute_of(select(points, "all", ("highest", 0))[0])
    assert -0.2 < law.kappa < -0.05  # the head weighs most in small models
    derived = {name: each["value"] for name, each in fitted["derived"].items()}
    assert derived["a"] == pytest.approx(0.29 / (0.34 + (1 + law.kappa) * 0.29), rel=1e-3)
    assert derived["a"] > 0.29 / 0.63 + 0.01
    n, d = (derived[f"{each}_opt_coefficient"] for each in "nd")
    assert law.k * n ** (1 + law.kappa) * d == pytest.approx(8.64e19, rel=1e-6)
    assert derived["d_opt_exponent"] == pytest.approx(1 - (1 + law.kappa) * derived["n_opt_exponent"])
    assert fitted["compute"]["definition"] == columns["c"]
    assert fitted["compute"]["kappa"] == law.kappa
    assert ("Porian" in fitted["compute"]["formula"]) == (columns["c"] == "6nd+head")
    json.dumps(fitted, allow_nan=False)


@pytest.mark.slow
def test_without_a_named_column_it_is_six_n_d(table):
    points = read_points(table, columns={}, needed=("n", "d", "loss"))
    (fitted,) = fit_points(points, PointFit("chinchilla", Loss(), bootstrap=0))["groups"]
    assert fitted["compute"] == {
        "definition": "6nd", "formula": "C = 6 N D", "k": 6.0, "kappa": 0.0, "largest_deviation": 0.0
    }  # fmt: skip
    assert fitted["derived"]["a"]["value"] == pytest.approx(0.29 / 0.63, rel=1e-3)
