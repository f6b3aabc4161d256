"""IsoFLOP laws: planted optima come back, intervals hold them, and what goes wrong has a name."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from linscale.config import UserError
from linscale.study.flops import Flops
from linscale.study.table.fit import TABLE_LAWS
from linscale.study.table.group import Group, PointFit
from linscale.study.table.options import LawOptions, Tolerance, parse_options
from linscale.study.table.surface_fit import Loss
from linscale.study.table.surfaces import chinchilla
from tests.study.table.test_surface_fit import SCALING, published

SYMMETRIC = (0.0, 2000.0, 2000.0, 0.3, 0.3)  # the valley is symmetric in log N, and L a power law
HOFFMANN = (1.69, 406.4, 410.7, 0.34, 0.28)
SKEWED = (1.69, 100.0, 5e4, 0.25, 0.5)
DAY = 8.64e19
PLACES = np.linspace(-1, 1, 7)
BUDGETS = np.geomspace(1e18, 1e21, 6)


def best(c, truth):
    _, A, B, alpha, beta = truth
    a, log_n, _ = Flops().optimum(np.log(A), np.log(B), alpha, beta)
    return np.exp(log_n) * c**a


def laws(truth):
    """N_opt and D_opt of the planted law, at C = 6 N D."""
    n = best(np.array([DAY, DAY * np.e]), truth)
    d = np.array([DAY, DAY * np.e]) / 6 / n
    names = ("n_opt_coefficient", "n_opt_exponent", "d_opt_coefficient", "d_opt_exponent")
    return dict(zip(names, (n[0], np.log(n[1] / n[0]), d[0], np.log(d[1] / d[0])), strict=True))


def points(truth=HOFFMANN, noise=0.0, *, seed=0, budgets=BUDGETS, places=PLACES, off=0.0, width=4.0):
    """c, n, d, loss; `off` half widths off centre, one number or one a budget."""
    c = np.repeat(budgets, len(places))
    off = np.repeat(np.broadcast_to(off, len(budgets)), len(places))
    n = best(c, truth) * width ** (np.tile(places, len(budgets)) + off)
    d = c / 6 / n
    loss = chinchilla(n, d, *truth) * np.exp(noise * np.random.default_rng(seed).normal(size=n.size))
    return {"c": c, "n": n, "d": d, "loss": loss}


def group(numbers, **labels):
    rows = np.arange(1, len(numbers["n"]) + 1)
    return Group("all", numbers, {k: np.array(v, dtype=str) for k, v in labels.items()}, rows, {"c": "flops"})


def fitted(numbers, law="isoflop", *, bootstrap=0, by="point", labels=(), **options):
    settings = PointFit(law, Loss(), bootstrap=bootstrap, by=by, options=LawOptions(**options))
    return TABLE_LAWS[law].fit(group(numbers, **dict(labels)), settings)


def values(result):
    return {name: each["value"] for name, each in result["parameters"].items()}


def warned(result):
    return {each["name"]: each["detail"] for each in result["warnings"]}


@pytest.mark.parametrize(("method", "rel"), [("parabola", 0.02), ("akima", 0.005), ("cubic-log", 0.002)])
def test_planted_optima_come_back(method, rel):
    found = values(fitted(points(), minimum=method))
    assert {name: found[name] for name in laws(HOFFMANN)} == pytest.approx(laws(HOFFMANN), rel=rel)
    assert found["n_opt_exponent"] == pytest.approx(0.28 / 0.62, rel=1e-3)


def test_a_symmetric_valley_is_exact_and_so_is_its_loss():
    result = fitted(points(SYMMETRIC))
    found = values(result)
    assert {name: found[name] for name in laws(SYMMETRIC)} == pytest.approx(laws(SYMMETRIC), rel=1e-6)
    at = best(BUDGETS, SYMMETRIC)
    loss = found["l_coefficient"] * (BUDGETS / DAY) ** found["l_exponent"]
    np.testing.assert_allclose(loss, chinchilla(at, BUDGETS / 6 / at, *SYMMETRIC), rtol=1e-3)
    np.testing.assert_allclose(result["minima"]["params"], at, rtol=1e-6)
    np.testing.assert_allclose(result["minima"]["compute"], BUDGETS / DAY, rtol=1e-6)
    assert warned(result) == {}


def test_with_e_the_loss_of_a_chinchilla_law_is_exact():
    found = values(fitted(points(), "isoflop_irreducible", minimum="cubic-log"))
    assert found["E"] == pytest.approx(1.69, rel=2e-3)
    assert found["l_exponent"] == pytest.approx(-0.34 * 0.28 / 0.62, rel=5e-3)
    with pytest.raises(UserError, match=r"with E needs 4"):
        fitted(points(budgets=BUDGETS[:3]), "isoflop_irreducible")


def test_tokens_and_compute_of_a_minimum_are_those_of_the_table_and_not_6nd():
    numbers = points(SYMMETRIC)
    numbers["d"] = numbers["d"] * (numbers["n"] / 1e8) ** 0.1 / 1.5  # another FLOPs per token
    found = values(fitted(numbers))
    at = best(np.array([DAY]), SYMMETRIC)[0]
    assert found["d_opt_coefficient"] == pytest.approx(DAY / 6 / at * (at / 1e8) ** 0.1 / 1.5, rel=1e-3)
    assert found["n_opt_exponent"] + found["d_opt_exponent"] == pytest.approx(
        1 + 0.1 * found["n_opt_exponent"], rel=1e-3
    )


def test_the_abscissa_is_chosen_where_it_matters():
    numbers = points(SYMMETRIC)
    names = np.repeat([f"{c:g}" for c in BUDGETS], 7)
    numbers["c"] = numbers["c"] * 1.2  # what was spent is a fifth above what was planned
    with pytest.raises(UserError, match=r"up to 20.0% off it; choose --abscissa nominal"):
        fitted(numbers, labels={"budget": names})
    nominal, achieved = (fitted(numbers, labels={"budget": names}, abscissa=each) for each in ("nominal", "achieved"))
    np.testing.assert_allclose(nominal["minima"]["compute"], BUDGETS / DAY, rtol=1e-4)
    np.testing.assert_allclose(achieved["minima"]["compute"], 1.2 * BUDGETS / DAY, rtol=1e-6)
    exponent = nominal["parameters"]["n_opt_exponent"]["value"]
    assert achieved["parameters"]["n_opt_exponent"]["value"] == pytest.approx(exponent, abs=1e-4)
    assert fitted(points(SYMMETRIC), labels={"budget": np.repeat(range(6), 7)})["abscissa"] == "nominal"  # no FLOPs


def test_achieved_flops_are_those_at_the_minimum():
    numbers = points(SYMMETRIC)
    numbers["c"] = numbers["c"] * (numbers["n"] / np.repeat(best(BUDGETS, SYMMETRIC), 7)) ** 0.03
    result = fitted(numbers, labels={"budget": np.repeat([f"b{k}" for k in range(6)], 7)}, abscissa="achieved")
    np.testing.assert_allclose(result["minima"]["compute"], BUDGETS / DAY, rtol=1e-4)


def test_budgets_are_told_apart_by_gaps_in_flops():
    numbers = points(SYMMETRIC)
    numbers["c"] = numbers["c"] * np.exp(np.random.default_rng(0).uniform(-0.01, 0.01, 42))
    result = fitted(numbers, abscissa="nominal")
    assert len(result["curves"]) == 6
    assert "uneven_budgets" not in warned(result)


def test_edges_few_sizes_and_hills_are_dropped_by_rule_and_shown():
    numbers = points(off=[0, 0, 0, 0, 1.3, 0])
    hill = slice(14, 21)
    numbers["loss"][hill] = 6.0 - numbers["loss"][hill]
    kept = np.r_[0:2, 7:42]  # the first budget keeps two sizes
    result = fitted({role: each[kept] for role, each in numbers.items()})
    rules = {each["rule"] for each in result["dropped"]}
    assert rules == {"budget: fewer than 3 sizes", "budget: no minimum", "budget: minimum at an edge"}
    assert [each["rule"] for each in result["curves"]].count(None) == 3
    assert [each["edge"] for each in result["curves"]] == [False, False, False, False, True, False]
    assert [each["minimum"] is None for each in result["curves"]] == [True, False, True, False, True, False]
    assert result["points_used"] == 21 == len(result["points"]["row"]) == len(result["points"]["residual"])
    assert warned(result)["edge_minimum"] == "2.51e+20"
    assert "has none" in warned(result)["weak_curvature"]
    assert warned(result)["few_budgets"] == "3 budgets"
    json.dumps(result, allow_nan=False)


def test_a_parabola_with_a_minimum_along_falling_losses_is_an_edge():
    numbers = points(off=[0, 0, 0, 0, 0, 1.1], places=np.linspace(-1, 1, 5))
    assert [each["edge"] for each in fitted(numbers)["curves"]] == [False] * 5 + [True]


def test_too_few_budgets_are_refused_with_the_reasons():
    with pytest.raises(UserError, match=r"1 budget\(s\).*needs 2.*\(minimum at an edge: 1\)"):
        fitted(points(budgets=BUDGETS[:2], off=[0, 2]))
    two = fitted(points(budgets=BUDGETS[:2]), bootstrap=50)
    assert two["bootstrap"]["replicates"] == 0
    assert two["parameters"]["n_opt_exponent"]["low"] is None


@pytest.mark.parametrize("off", [0.75, -0.75])
def test_off_centre_grids_are_named(off):
    found = warned(fitted(points(off=[0, 0, 0, 0, 0, off], places=np.linspace(-1, 1, 9))))
    assert found["off_centre"] == f"1e+21 towards the {'largest' if off < 0 else 'smallest'} size"
    assert "off_centre" not in warned(fitted(points(off=0.25)))


def test_weak_curvature_is_named():
    result = fitted(points(SYMMETRIC, 0.004, width=1.3, seed=5), bootstrap=20)
    assert "weak_curvature" in warned(result)
    assert "weak_curvature" not in warned(fitted(points(SYMMETRIC, 0.004), bootstrap=20))


def test_a_skewed_valley_is_named_and_a_cubic_mends_it():
    numbers = points(SKEWED, 0.002)
    found, mended = fitted(numbers), fitted(numbers, minimum="cubic-log")
    assert warned(found)["skewed_valley"].startswith("N_opt by +")
    assert "skewed_valley" not in warned(mended)
    truth = laws(SKEWED)["n_opt_coefficient"]
    assert values(found)["n_opt_coefficient"] < 0.96 * truth
    assert values(mended)["n_opt_coefficient"] == pytest.approx(truth, rel=0.02)
    assert "skewed_valley" not in warned(fitted(points(SYMMETRIC, 0.002)))
    by_way = {each["minimum"]: each for each in found["sensitivity"]}
    assert by_way["cubic-log"]["n_opt_exponent"] == values(mended)["n_opt_exponent"]


def test_uneven_budgets_are_named():
    numbers = points(SYMMETRIC)
    numbers["c"] = numbers["c"] * np.tile([1, 1, 1, 1, 1, 1, 1.15], 6)
    names = np.repeat([f"{c:g}" for c in BUDGETS], 7)
    assert "1e+18 by 15%" in warned(fitted(numbers, labels={"budget": names}, abscissa="nominal"))["uneven_budgets"]


def test_minima_that_no_power_law_goes_through_are_named():
    assert warned(fitted(points(HOFFMANN, 0.001), bootstrap=100))["scatter"] == "L"
    with_e = warned(fitted(points(HOFFMANN, 0.001), "isoflop_irreducible", bootstrap=100))
    assert "scatter" not in with_e
    assert "scatter" not in warned(fitted(points(SYMMETRIC, 0.001), bootstrap=100))


def test_runs_that_are_in_several_budgets_are_named_where_it_matters():
    numbers, runs = points(SYMMETRIC, 0.001), np.tile(range(7), 6)
    for by in ("point", "budget"):
        found = warned(fitted(numbers, bootstrap=20, by=by, labels={"run": runs}))
        assert found["shared_runs"] == "35 of 42 times"
    assert "shared_runs" not in warned(fitted(numbers, bootstrap=20, by="run", labels={"run": runs}))
    assert "shared_runs" not in warned(fitted(numbers, bootstrap=20, labels={"run": range(42)}))


def test_noise_is_measured_or_assumed_and_said():
    three = points(SYMMETRIC, 0.002, places=np.linspace(-1, 1, 3))
    assumed = fitted(three, bootstrap=200, seed_noise=0.004)
    assert warned(assumed)["assumed_noise"] == "0.4% of the loss"
    twice = fitted(three, bootstrap=200, seed_noise=0.008)
    widths = [
        each["parameters"]["l_exponent"]["high"] - each["parameters"]["l_exponent"]["low"] for each in (assumed, twice)
    ]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.15)
    measured = fitted(points(SYMMETRIC, 0.002), bootstrap=50)
    assert measured["bootstrap"]["seed_noise_source"] == "measured"
    assert measured["bootstrap"]["seed_noise"] == pytest.approx(0.002, rel=0.4)
    assert "assumed_noise" not in warned(measured)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by", "method"), [("point", "parabola"), ("run", "parabola"), ("budget", "parabola"), ("point", "akima")]
)
def test_intervals_hold_planted_optima(by, method):
    tables, hits, runs = 25, np.zeros(4), np.tile(range(7), 6)
    for seed in range(tables):
        random = np.random.default_rng(seed)
        numbers = points(SYMMETRIC, 0.002, seed=seed)
        if by == "run":
            numbers["loss"] = numbers["loss"] * np.exp(0.004 * random.normal(size=7))[runs]
        result = fitted(numbers, bootstrap=200, by=by, labels={"run": runs}, minimum=method)
        for at, (name, truth) in enumerate(laws(SYMMETRIC).items()):
            row = result["parameters"][name]
            hits[at] += row["low"] <= truth <= row["high"]
        assert row["high"] - row["low"] < 0.2
    assert hits.min() >= 20  # of 25 at 95%: a chance of 1 in 200 a parameter
    assert hits.sum() >= 88


@pytest.mark.slow
@pytest.mark.parametrize("by", ["point", "budget"])
def test_intervals_hold_a_planted_e(by):
    tables, hits = 20, 0
    for seed in range(tables):
        row = fitted(points(HOFFMANN, 0.002, seed=seed), "isoflop_irreducible", bootstrap=150, by=by)["parameters"]["E"]
        hits += row["low"] <= 1.69 <= row["high"]
        assert row["high"] - row["low"] < 0.6
    assert hits >= 15  # of 20 at 95%: a chance of 1 in 400


def test_resamples_are_by_the_unit_asked_for_and_repeat():
    numbers, runs = points(SYMMETRIC, 0.003), np.tile(range(7), 6)
    one, again = (fitted(numbers, bootstrap=60, by="run", labels={"run": runs}) for _ in range(2))
    assert one == again
    assert one["bootstrap"] | {"seed_noise": 0} == {
        "replicates": 60,
        "settled": 60,
        "units": 7,
        "by": "run",
        "seed_noise": 0,
        "seed_noise_source": "measured",
    }
    assert fitted(numbers, bootstrap=60, by="budget")["bootstrap"]["units"] == 6
    assert len(one["draws"]["n_opt_exponent"]) == 60


def test_options_belong_to_laws():
    nothing = {"minimum": None, "abscissa": None, "seed_noise": None, "tolerance": None}
    assert parse_options("chinchilla", **nothing) == LawOptions()
    given = parse_options("isoflop", **nothing | {"minimum": "akima", "seed_noise": 0.0})
    assert given == replace(LawOptions(), minimum="akima", seed_noise=0.0)
    assert given.listed("isoflop_irreducible") == {"minimum": "akima", "abscissa": None, "seed_noise": 0.0}
    assert Tolerance.parse("1%") == Tolerance(0.01, True)
    with pytest.raises(UserError, match="it is an option of --law isoflop and envelope and pac"):
        parse_options("gamma", **nothing | {"seed_noise": 0.1})


@published
def test_budgets_interpolated_along_published_runs_agree_with_the_published_surface():
    """Gemstones: a = beta / (alpha + beta) = 0.71287 / 1.00574 in the authors' own fit of these points."""
    runs = {}
    for row in csv.DictReader((SCALING / "gemstones" / "hot.csv").read_text().splitlines()):
        key = float(row["params_active_precise"])
        runs.setdefault(key, []).append((float(row["tokens"]), float(row["final_loss"])))
    numbers = {role: [] for role in ("n", "d", "c", "loss")}
    run = []
    for c in np.geomspace(1.2e20, 6e20, 5):
        for n, pairs in runs.items():
            d, loss = np.log(np.array(sorted(pairs))).T
            at = np.log(c / 6 / n)
            if d[0] <= at <= d[-1]:
                for role, value in zip(
                    ("n", "d", "c", "loss"), (n, np.exp(at), c, np.exp(np.interp(at, d, loss))), strict=True
                ):
                    numbers[role].append(value)
                run.append(n)
    arrays = {role: np.array(each) for role, each in numbers.items()}
    result = fitted(arrays, bootstrap=400, by="run", labels={"run": run})
    row = result["parameters"]["n_opt_exponent"]
    assert row["low"] < 0.71287 / (0.71287 + 0.29287) < row["high"]
