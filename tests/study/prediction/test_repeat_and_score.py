"""Repeated data and downstream scores."""

import numpy as np
import pytest

from linscale.config import UserError
from linscale.study.prediction.answer import Question
from linscale.study.prediction.fit_file import groups_of
from linscale.study.prediction.forecast import forecast
from tests.lazy import Lazy

optimize = Lazy("scipy.optimize")

DAY = 8.64e19
CHINCHILLA = {"E": 1.7, "A": 400.0, "B": 410.0, "alpha": 0.34, "beta": 0.28}
OVERTRAIN = {"E": 1.8, "a": 120.0, "a_prime": 300.0, "b": -0.25}
REPEAT = {**CHINCHILLA, "r_d": 15.0, "r_n": 5.0}


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


def repeated(n, d, unique):
    """Muennighoff et al. 2023, equations 5 and 6, with U_N the best size for U_D tokens of the same law."""
    e, a, b, alpha, beta, r_d, r_n = REPEAT.values()
    seen = min(unique, d)
    best = min((alpha * a / (beta * b) * seen**beta) ** (1 / alpha), n)
    tokens = seen + seen * r_d * (1 - np.exp(-(d / seen - 1) / r_d))
    size = best + best * r_n * (1 - np.exp(-(n / best - 1) / r_n))
    return e + a / size**alpha + b / tokens**beta


def test_repeated_data(make):
    content = make("repeat", REPEAT)
    for n, d in ((1e9, 1e11), (1e11, 1e11), (1e8, 5e9)):
        found = one(content, params=n, tokens=d, unique=1e10)["loss"]["value"]
        assert found == pytest.approx(repeated(n, d, 1e10), rel=1e-12)
        assert one(content, params=n, tokens=d)["loss"]["value"] == pytest.approx(repeated(n, d, d), rel=1e-12)
    limited = one(content, flops=1e22, unique=1e10)
    expected = cheapest(lambda n, d: repeated(n, d, 1e10), 1e22)
    assert limited["loss"]["value"] == pytest.approx(expected[0], rel=1e-6)
    assert [limited["n_opt"]["value"], limited["d_opt"]["value"]] == pytest.approx(expected[1:], rel=5e-3)
    fresh = one(content, flops=1e22)
    assert fresh["loss"]["value"] == pytest.approx(cheapest(lambda n, d: repeated(n, d, d), 1e22)[0], rel=1e-9)
    assert fresh["loss"]["value"] < limited["loss"]["value"]
    assert one(content, flops=1e22, unique=1e10, loss=2.2)["target"]["flops"] is None
    with pytest.raises(UserError, match="unique: the chinchilla law knows no repeated data"):
        one(make("chinchilla", CHINCHILLA), flops=1e20, unique=1e9)
    without = {name: value for name, value in REPEAT.items() if name != "r_n"}
    big = one(make("repeat", without), params=1e11, tokens=1e11, unique=1e10)["loss"]["value"]
    assert big < one(content, params=1e11, tokens=1e11, unique=1e10)["loss"]["value"]


def test_downstream_scores(make):
    error = {"E_error": 0.85, "k": 2.0, "g": 0.7}
    answer = one(make("overtrain", OVERTRAIN | error), params=1e9, tokens=1e11)
    assert answer["score"]["kind"] == "error"
    assert answer["score"]["value"] == pytest.approx(0.85 - 2 * np.exp(-0.7 * answer["loss"]["value"]))
    sigmoid = {"low": 0.25, "span": 0.6, "slope": 6.0, "midpoint": 0.9}
    alone = one(make("sigmoid", sigmoid), bpb=0.8)
    assert alone["score"]["value"] == pytest.approx(0.25 + 0.6 / (1 + np.exp(-0.6)))
    law = {"l_coefficient": 0.9, "l_exponent": -0.05}
    random = np.random.default_rng(0)
    (first,) = groups_of(
        make("power", law, {"l_coefficient": 0.9 + 0.01 * random.normal(size=400), "l_exponent": np.full(400, -0.05)}),
        "a",
    )
    drawn = {name: np.full(1000, value) for name, value in sigmoid.items()}
    drawn["midpoint"] = 0.9 + 0.02 * random.normal(size=1000)
    (second,) = groups_of(make("sigmoid", sigmoid, drawn), "b")
    score = forecast(first, Question(flops=DAY), second)["score"]
    slope = 6.0 * 0.6 / 4  # of accuracy at the midpoint
    assert score["value"] == pytest.approx(0.55)
    assert score["high"] - score["low"] == pytest.approx(2 * 1.96 * slope * np.hypot(0.01, 0.02), rel=0.1)
    assert score["new_low"] is None
    assert warned(forecast(first, Question(flops=DAY), second)) == []
