"""Predictions against scipy's optimisers and root finders, and against planted laws."""

import numpy as np
import pytest

from linscale.config import UserError
from linscale.study.prediction.answer import Question
from linscale.study.prediction.fit_file import groups_of
from linscale.study.prediction.forecast import forecast, forecast_all
from linscale.study.table.fit import fit_points
from linscale.study.table.group import PointFit
from linscale.study.table.points import Points
from linscale.study.table.surface_fit import Loss
from linscale.study.table.surfaces import chinchilla
from tests.lazy import Lazy

optimize = Lazy("scipy.optimize")

DAY = 8.64e19
CHINCHILLA = {"E": 1.7, "A": 400.0, "B": 410.0, "alpha": 0.34, "beta": 0.28}
OVERTRAIN = {"E": 1.8, "a": 120.0, "a_prime": 300.0, "b": -0.25}
REPEAT = {**CHINCHILLA, "r_d": 15.0, "r_n": 5.0}
SURFACES = {
    "chinchilla": (CHINCHILLA, lambda n, d: 1.7 + 400 / n**0.34 + 410 / d**0.28),
    "gamma": ({**CHINCHILLA, "gamma": 0.7}, lambda n, d: 1.7 + (400 / n**0.34 + 410 / d**0.28) ** 0.7),
    "overtrain": (OVERTRAIN, lambda n, d: 1.8 + 120 * n**-0.25 + 300 * 6**-0.125 * (d / n * n) ** -0.25),
}


def one(content, **asked):
    (group,) = groups_of(content, "f.json")
    return forecast(group, Question(**asked))


def cheapest(loss, flops, k=6.0, p=1.0):
    """The lowest loss of a budget of k N^p D FLOPs, its N and D, by scipy."""
    found = optimize.minimize_scalar(
        lambda x: loss(np.exp(x), flops / k / np.exp(p * x)), bounds=(5, 40), method="bounded", options={"xatol": 1e-10}
    )
    n = np.exp(found.x)
    return found.fun, n, flops / k / n**p


def warned(answer):
    return [each["name"] for each in answer["warnings"]]


@pytest.mark.parametrize("law", SURFACES)
def test_the_best_use_of_compute_is_scipys(make, law):
    values, loss = SURFACES[law]
    for flops in (1e15, 1e21, 1e26):
        answer = one(make(law, values), flops=flops)
        expected = cheapest(loss, flops)
        found = [answer[key]["value"] for key in ("loss", "n_opt", "d_opt")]
        assert found[0] == pytest.approx(expected[0], rel=1e-10)
        assert found[1:] == pytest.approx(expected[1:], rel=1e-3)
    given = one(make(law, values), params=1e9, tokens=3e10)
    assert given["loss"]["value"] == pytest.approx(loss(1e9, 3e10))
    assert given["at"]["flops"] == pytest.approx(1.8e20)


@pytest.mark.parametrize("law", SURFACES)
def test_what_a_loss_takes_is_the_root_of_the_law(make, law):
    values, loss = SURFACES[law]
    target = one(make(law, values), loss=2.4)["target"]
    flops = np.exp(optimize.brentq(lambda x: cheapest(loss, np.exp(x))[0] - 2.4, np.log(1e15), np.log(1e28)))
    assert target["flops"]["value"] == pytest.approx(flops, rel=1e-6)
    assert 6 * target["params"]["value"] * target["tokens"]["value"] == pytest.approx(flops, rel=1e-6)
    tokens = optimize.brentq(lambda d: loss(2e9, d) - 2.6, 1e8, 1e14)
    at_size = one(make(law, values), loss=2.6, params=2e9)["target"]
    assert at_size["tokens"]["value"] == pytest.approx(tokens, rel=1e-6)
    assert at_size["flops"]["value"] == pytest.approx(6 * 2e9 * tokens, rel=1e-6)
    params = optimize.brentq(lambda n: loss(n, 4e10) - 2.6, 1e6, 1e14)
    assert one(make(law, values), loss=2.6, tokens=4e10)["target"]["params"]["value"] == pytest.approx(params, rel=1e-6)


def test_flops_follow_the_points_where_they_keep_them(make):
    """C = k N^p D through the points, in the best size and in tokens from FLOPs."""
    n, d = np.geomspace(1e8, 1e10, 5), np.full(5, 1e10)
    points = {"n": n.tolist(), "d": d.tolist(), "c": (40 * n**0.9 * d).tolist()}
    content = make("chinchilla", CHINCHILLA, points=points)
    answer = one(content, flops=1e21)
    loss = SURFACES["chinchilla"][1]
    expected = cheapest(loss, 1e21, 40.0, 0.9)
    assert [answer["n_opt"]["value"], answer["d_opt"]["value"]] == pytest.approx(expected[1:], rel=1e-3)
    assert answer["flops_definition"] == "C = 40 N^0.9 D"
    assert one(content, flops=1e21, params=1e9)["at"]["tokens"] == pytest.approx(1e21 / (40 * 1e9**0.9))
    assert one(content, flops=1e21, tokens=1e10)["at"]["params"] == pytest.approx((1e11 / 40) ** (1 / 0.9))
    points["c"] = (6.03 * n * d).tolist()
    assert one(content, flops=1e21)["flops_definition"] == "C = 6 N D"


def test_laws_of_compute_and_sizes(make):
    power = one(make("power", {"l_coefficient": 2.0, "l_exponent": -0.1, "E": 1.5}), flops=1e3 * DAY, loss=2.0)
    assert power["loss"]["value"] == pytest.approx(1.5 + 2 * 1e3**-0.1)
    assert power["target"]["flops"]["value"] == pytest.approx(0.25**-10 * DAY)
    assert power["n_opt"] is None
    lines = {"l_coefficient": 3.0, "l_exponent": -0.1, "n_opt_coefficient": 2e8, "n_opt_exponent": 0.6}
    lines |= {"d_opt_coefficient": 4e10, "d_opt_exponent": 0.5}
    isoflop = one(make("isoflop", lines), params=1e9, tokens=1e11)
    days = 6e20 / DAY
    assert isoflop["loss"]["value"] == pytest.approx(3 * days**-0.1)
    assert isoflop["n_opt"]["value"] == pytest.approx(2e8 * days**0.6)
    assert "allocation_ignored" in warned(isoflop)
    pac = make("pac", {"coefficient": 0.01, "exponent": 0.6})
    assert one(pac, tokens=1e12)["n_opt"]["value"] == pytest.approx(0.01 * 1e12**0.6)
    assert one(pac, params=5e8)["d_opt"]["value"] == pytest.approx((5e8 / 0.01) ** (1 / 0.6))
    budget = one(pac, flops=1e20)
    assert 6 * budget["n_opt"]["value"] * budget["d_opt"]["value"] == pytest.approx(1e20)
    assert budget["n_opt"]["value"] == pytest.approx(0.01 * budget["d_opt"]["value"] ** 0.6)


def test_intervals_are_percentiles_of_the_resamples(make):
    random = np.random.default_rng(0)
    draws = {name: value * (1 + 0.01 * random.normal(size=500)) for name, value in CHINCHILLA.items()}
    answer = one(make("chinchilla", CHINCHILLA, draws), params=1e9, tokens=1e11, loss=2.4)
    d = draws
    losses = d["E"] + d["A"] / 1e9 ** d["alpha"] + d["B"] / 1e11 ** d["beta"]
    assert [answer["loss"][end] for end in ("low", "high")] == pytest.approx(np.percentile(losses, [2.5, 97.5]))
    assert answer["target"]["probability"] == pytest.approx((losses <= 2.4).mean())
    assert answer["loss"]["new_low"] is None  # no residuals in the file


@pytest.mark.parametrize("space", ["log", "linear"])
def test_a_new_run_has_the_scatter_of_the_points(make, space):
    """Residuals are prediction minus observation: a run that always comes out 1% higher has residuals of -1%."""
    random = np.random.default_rng(0)
    residual = -0.01 + 0.02 * random.normal(size=2000)
    draws = {name: np.full(300, value) for name, value in CHINCHILLA.items()}
    name = "sum of half the square of residuals of " + {"log": "log L", "linear": "L"}[space]
    content = make("chinchilla", CHINCHILLA, draws, points={"residual": residual.tolist()}, objective={"name": name})
    loss = one(content, params=1e9, tokens=1e11, loss=2.4)["loss"]
    assert loss["low"] == loss["high"] == pytest.approx(loss["value"])
    ends = 0.01 + 0.02 * 1.96 * np.array([-1, 1])
    expected = loss["value"] * np.exp(ends) if space == "log" else loss["value"] + ends
    assert [loss["new_low"], loss["new_high"]] == pytest.approx(expected, abs=0.005)


def test_a_stretch_moves_predictions_and_not_parameters(make):
    draws = {name: np.array([value, value]) for name, value in CHINCHILLA.items()} | {"E": np.array([1.6, 1.8])}
    plain = one(make("chinchilla", CHINCHILLA, draws), params=1e9, tokens=1e11)["loss"]
    moved = one(make("chinchilla", CHINCHILLA, draws, bootstrap={"prediction_stretch": 1.5}), params=1e9, tokens=1e11)[
        "loss"
    ]
    rest = plain["value"] - 1.7
    ends = np.log(np.array([1.6, 1.8]) + rest) - np.log(plain["value"])
    low, high = plain["value"] * np.exp(np.percentile(1.5 * ends, [0, 100]))
    assert moved["low"] == pytest.approx(low + 0.025 * (high - low))
    assert moved["high"] == pytest.approx(high - 0.025 * (high - low))
    assert moved["value"] == plain["value"]


def test_a_loss_below_the_law_is_never_reached(make):
    draws = {name: np.full(100, value) for name, value in CHINCHILLA.items()} | {"E": np.linspace(1.5, 1.9, 100)}
    answer = one(make("chinchilla", CHINCHILLA, draws), loss=1.65)
    assert answer["target"]["flops"]["value"] == np.inf
    assert answer["target"]["flops"]["low"] < np.inf
    assert answer["target"]["flops"]["high"] == np.inf
    assert answer["target"]["reachable"] == pytest.approx(0.38)
    assert "unreachable" in warned(answer)


def test_exponents_of_nothing_have_no_best_size(make):
    values = {**CHINCHILLA, "beta": 0.0}
    draws = {name: np.full(4, value) for name, value in CHINCHILLA.items()} | {
        "beta": np.array([0.28, 0.28, 0.0, 0.28])
    }
    flat = one(make("chinchilla", values), flops=1e21)
    assert flat["loss"]["value"] is None
    assert flat["n_opt"]["value"] is None
    assert "no_best_use" in warned(flat)
    some = one(make("chinchilla", CHINCHILLA, draws), flops=1e21)
    assert some["loss"]["low"] == pytest.approx(some["loss"]["value"])
    (caution,) = [each for each in some["warnings"] if each["name"] == "undefined_resamples"]
    assert caution["detail"] == "25.0%"
    assert one(make("chinchilla", values), params=1e9, tokens=1e10)["loss"]["value"] == pytest.approx(
        1.7 + 400 / 1e9**0.34 + 410
    )


def test_huge_coefficients_and_compute_do_not_overflow(make):
    values = {"E": 1e-9, "A": 1e300, "B": 1e-300, "alpha": 4.0, "beta": 4.0}
    answer = one(make("chinchilla", values), flops=1e300, loss=0.5)
    assert 6 * answer["n_opt"]["value"] * answer["d_opt"]["value"] == pytest.approx(1e300)
    assert np.isfinite(answer["target"]["flops"]["value"])


def test_what_lies_outside_is_named_with_its_distance(make):
    points = {"n": [1e8, 1e9], "d": [1e9, 1e10]}
    answer = one(make("chinchilla", CHINCHILLA, points=points), params=2e10, tokens=1e8)
    (caution,) = [each for each in answer["warnings"] if each["name"] == "extrapolation"]
    assert caution["detail"] == "N 2e+10 is 20x the most, 1e+09; D 1e+08 is 10x below the least, 1e+09"
    inside = one(make("chinchilla", CHINCHILLA, points=points), params=5e8, tokens=5e9)
    assert warned(inside) == ["no_intervals"]


def test_laws_through_minima_know_the_compute_and_the_scatter_of_these_alone(make):
    """Most checkpoints of an envelope's curves are far off it, and end far beyond it."""
    lines = {"l_coefficient": 3.0, "l_exponent": -0.1}
    minima = {"compute": [0.1, 1.0, 10.0], "loss": [3 * 0.1**-0.1 * 1.01, 3.0 * 0.99, 3 * 10**-0.1]}
    points = {"c": [1e-3 * DAY, 1e3 * DAY], "residual": [-0.5, -0.5]}
    draws = {name: np.full(300, value) for name, value in lines.items()}
    content = make("envelope", lines, draws, minima=minima, points=points, bootstrap={"seed_noise": 0.003})
    answer = one(content, flops=100 * DAY)
    (caution,) = [each for each in answer["warnings"] if each["name"] == "extrapolation"]
    assert caution["detail"] == "C 8.64e+21 is 10x the most, 8.64e+20"
    assert warned(one(content, flops=5 * DAY)) == []
    ends = np.log([answer["loss"][key] / answer["loss"]["value"] for key in ("new_low", "new_high")])
    assert ends == pytest.approx(np.sqrt(3) * np.array([-0.01, 0.01]) + [-0.005, 0.005], abs=0.003)


def test_what_the_fit_does_not_vouch_for_is_repeated(make):
    content = make("chinchilla", CHINCHILLA)
    content["groups"][0]["parameters"]["E"] |= {"at_bound": True, "identified": False}
    content["groups"][0]["parameters"]["A"]["identified"] = False
    content["groups"][0]["warnings"] = [
        {"name": "few_units", "text": "few", "detail": "4"},
        {"name": "duplicates", "text": "twice", "detail": "row 3"},
    ]
    answer = one(content, flops=1e20)
    assert {"at_bound", "not_identified", "few_units", "no_intervals"} == set(warned(answer))
    assert [each["detail"] for each in answer["warnings"] if each["name"] == "not_identified"] == ["A"]
    few = one(
        make("power", {"l_coefficient": 3, "l_exponent": -0.1}, {"l_coefficient": [3], "l_exponent": [-0.1]}),
        flops=1e20,
    )
    assert warned(few) == ["few_resamples"]
    content = make("power", {"l_coefficient": 3, "l_exponent": -0.1}, top={"columns": {"c": "flops"}})
    assert "flops_assumed" in warned(one(content, params=1e9, tokens=1e10))
    assert "flops_assumed" not in warned(one(content, flops=1e20))


@pytest.mark.parametrize(
    ("law", "asked", "message"),
    [
        ("chinchilla", {"params": 1e9}, "all: params alone say nothing of the loss: give --tokens or --flops too"),
        ("chinchilla", {"bpb": 1.0}, "--bpb is for a sigmoid"),
        ("sigmoid", {"flops": 1e20}, "all: a sigmoid reads bits per byte: give --bpb"),
        ("pac", {"loss": 2.0}, "all: the pac law is of sizes, not of losses"),
        ("repeat", {"loss": 2.0, "unique": 1e9}, "loss and unique"),
    ],
)
def test_questions_that_a_law_cannot_answer(make, law, asked, message):
    values = {
        "sigmoid": {"low": 0.25, "span": 0.6, "slope": 6.0, "midpoint": 0.9},
        "pac": {"coefficient": 0.01, "exponent": 0.6},
        "repeat": REPEAT,
    }.get(law, CHINCHILLA)
    with pytest.raises(UserError, match=message):
        one(make(law, values), **asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "nothing asked: give --flops"),
        ({"unique": 1e9}, "nothing asked"),
        ({"flops": 1e20, "params": 1e9, "tokens": 1e9}, "two of them give the third"),
        ({"loss": -1.0}, "loss = -1: expected a positive number"),
        ({"bpb": float("inf")}, "bpb = inf: expected a positive number"),
    ],
)
def test_questions_that_are_none(asked, message):
    with pytest.raises(UserError, match=message):
        Question(**asked)


def test_groups_that_cannot_answer_are_refused_and_the_others_answer(make):
    (law,) = groups_of(make("chinchilla", CHINCHILLA, group="a"), "f")
    (sigmoid,) = groups_of(make("sigmoid", {"low": 0, "span": 1, "slope": 5, "midpoint": 1}, group="b"), "f")
    result = forecast_all([law, sigmoid], Question(flops=1e20), [])
    assert [each["group"] for each in result["predictions"]] == ["a"]
    assert [each["group"] for each in result["refused"]] == ["b"]
    with pytest.raises(UserError, match="b: a sigmoid reads bits per byte"):
        forecast_all([sigmoid], Question(flops=1e20), [])
    with pytest.raises(UserError, match="law = chinchilla: expected the JSON of --law sigmoid"):
        forecast_all([law], Question(flops=1e20), [law])


@pytest.mark.slow
def test_resamples_of_a_short_ladder_are_fits_and_predict_as_such():
    """16 runs leave E open. Vectors stretched along a straight line would miss the very points by far more."""
    truth = (0.5, 11.0, 60.0, 0.1955, 0.2565)
    n, ratio = (each.ravel() for each in np.meshgrid([1.9e8, 3.7e8, 7.6e8, 1.28e9], [20, 40, 100, 200]))
    loss = chinchilla(n, ratio * n, *truth) * np.exp(0.002 * np.random.default_rng(0).normal(size=16))
    table = Points({"n": n, "d": ratio * n, "loss": loss}, {}, np.arange(16), np.full(16, "all"), {}, ())
    (fitted,) = groups_of({"source": "t", **fit_points(table, PointFit("chinchilla", Loss("l2"), bootstrap=200))}, "f")
    assert fitted.stretch > 1.1
    p = {name: values[1:, None] for name, values in fitted.values.items()}
    at_points = p["E"] + p["A"] / n ** p["alpha"] + p["B"] / (ratio * n) ** p["beta"]
    assert np.abs(np.log(at_points / loss)).max() < 0.05
    far = forecast(fitted, Question(params=1.32e10, tokens=5e12))["loss"]
    assert far["low"] < chinchilla(1.32e10, 5e12, *truth) < far["high"]
    assert np.log(far["high"] / far["low"]) < 0.15
