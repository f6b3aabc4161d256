"""Multipliers and crossings of planted laws, against scipy's root finder, and how often intervals hold the truth."""

import numpy as np
import pytest

from linscale.config import UserError
from linscale.study.prediction.compute_law import compute_law, paper_groups
from linscale.study.prediction.contest import contest, labelled
from linscale.study.prediction.fit_file import groups_of
from linscale.study.prediction.multiplier import At
from linscale.study.table.fit import fit_points
from linscale.study.table.group import PointFit
from linscale.study.table.points import Points
from linscale.study.table.surface_fit import Loss
from tests.lazy import Lazy

optimize = Lazy("scipy.optimize")

DAY = 8.64e19
SPEC_CROSSINGS = {"cosformer2": 2.7e3, "hgrn2": 1.5e6, "tnl": 6e6}  # PFLOP/s-days, where LLaMA overtakes


def test_the_papers_laws_against_the_papers_llama():
    result = contest(paper_groups(), "", At(losses=(3.0,)))
    assert result["baseline"] == "paper:llama"
    assert {pair["group"] for pair in result["pairs"]} == {"paper:tnl", "paper:hgrn2", "paper:cosformer2"}
    for pair in result["pairs"]:
        (meeting,) = pair["crossings"]
        assert meeting["overtakes"] == "paper:llama"
        assert meeting["flops"]["value"] / DAY == pytest.approx(SPEC_CROSSINGS[pair["group"][6:]], rel=0.02)
        assert not meeting["within"]
        (row,) = pair["rows"]
        assert row["verdict"] == "no interval"
        assert row["outside"] == {}
        assert not pair["warnings"]
    tnl = next(pair for pair in result["pairs"] if pair["group"] == "paper:tnl")["rows"][0]["multiplier"]["value"]
    assert tnl == pytest.approx((3.0 / 3.7087) ** (1 / -0.0798) / (3.0 / 3.5391) ** (1 / -0.0768))


def test_a_multiplier_is_the_ratio_of_the_compute_to_one_loss(power):
    x, y = power("x", 2.0, -0.2, 1.5), power("llama", 2.4, -0.25, 1.4)
    result = contest([x, y], "", At(losses=(2.5,), flops=(3 * DAY,)))
    at_loss, at_flops = result["pairs"][0]["rows"]

    def flops(coefficient, exponent, floor, loss):
        root = optimize.brentq(lambda t: floor + coefficient * np.exp(exponent * t) - loss, -50, 50)
        return np.exp(root) * DAY

    expected = flops(2.4, -0.25, 1.4, 2.5) / flops(2.0, -0.2, 1.5, 2.5)
    assert at_loss["multiplier"]["value"] == pytest.approx(expected)
    loss = 1.4 + 2.4 * 3**-0.25
    assert at_flops["multiplier"]["value"] == pytest.approx(3 * DAY / flops(2.0, -0.2, 1.5, loss))
    assert at_flops["difference"]["value"] == pytest.approx(1.5 + 2 * 3**-0.2 - loss)
    assert at_flops["baseline_flops"]["value"] == pytest.approx(3 * DAY)


def test_an_interval_that_holds_one_tells_nothing_apart(power):
    scatter = np.random.default_rng(0).normal(size=400)

    def at(name, coefficient):
        draws = {
            "E": np.zeros(400),
            "l_coefficient": coefficient * np.exp(0.01 * scatter),
            "l_exponent": np.full(400, -0.1),
        }
        return power(name, coefficient, -0.1, draws=draws)

    def verdict(coefficient):
        result = contest([at("x", coefficient), at("llama", 3.0)], "", At(losses=(2.8,)))
        return result["pairs"][0]["rows"][0]["verdict"]

    assert [verdict(c) for c in (2.8, 2.99, 3.01, 3.2)] == [
        "less compute", "not distinguished", "not distinguished", "more compute",
    ]  # fmt: skip


def test_losses_lie_in_what_both_were_fitted_to(power):
    x = power("x", 3.0, -0.1, points={"c": [0.1 * DAY, 10 * DAY]})
    y = power("y", 3.1, -0.1, points={"c": [1 * DAY, 1000 * DAY]})
    rows = contest([x, y], "y", At())["pairs"][0]["rows"]
    low, high = compute_law(x).loss(10 * DAY)[0], compute_law(y).loss(DAY)[0]
    assert len(rows) == 5
    assert all(low < row["value"] < high and row["outside"] == {} for row in rows)
    far = power("y", 1.0, -0.1)
    pair = contest([x, far], "y", At())["pairs"][0]
    assert {"no_common_losses", "extrapolation"} <= {each["name"] for each in pair["warnings"]}
    outside = contest([x, y], "y", At(losses=(1.5,)))["pairs"][0]
    assert outside["rows"][0]["outside"] == pytest.approx({"x": 102.4, "y": 1.42}, rel=0.01)
    (caution,) = [each for each in outside["warnings"] if each["name"] == "extrapolation"]
    assert caution["detail"] == "x up to 102x beyond the compute fitted; y up to 1.4x beyond the compute fitted"


def test_losses_that_one_or_neither_reaches(power):
    x, y = power("x", 2.0, -0.1, 2.0), power("y", 2.0, -0.1, 1.0)
    rows = contest([x, y], "y", At(losses=(1.5, 0.5)))["pairs"][0]["rows"]
    assert [row["verdict"] for row in rows] == ["not reached", "undefined"]
    assert contest([y, x], "x", At(losses=(1.5,)))["pairs"][0]["rows"][0]["verdict"] == "baseline not reached"


def test_equal_downstream_scores(make, power):
    values = {"E": 1.8, "a": 120.0, "a_prime": 300.0, "b": -0.25, "E_error": 0.85, "k": 2.0, "g": 0.7}
    (x,) = groups_of(make("overtrain", values, group="x"), "x")
    (y,) = groups_of(make("overtrain", values | {"k": 2.2, "a": 100.0}, group="y"), "y")
    (row,) = contest([x, y], "y", At(scores=(0.6,)))["pairs"][0]["rows"]
    laws = compute_law(x), compute_law(y)
    losses = [-np.log(0.25 / k) / 0.7 for k in (2.0, 2.2)]
    expected = laws[1].compute(losses[1])[0] / laws[0].compute(losses[0])[0]
    assert row["multiplier"]["value"] == pytest.approx(expected)
    with pytest.raises(UserError, match="x: its law gives no losses of the compute fitted"):
        contest([x, y], "y", At())
    (sigmoid,) = groups_of(make("sigmoid", {"low": 0.25, "span": 0.6, "slope": 6.0, "midpoint": 2.6}), "s")
    chained = contest([power("x", 3.0, -0.1), power("y", 3.1, -0.1)], "y", At(scores=(0.5,)), [sigmoid])
    loss = 2.6 + np.log(0.6 / 0.25 - 1) / 6
    assert chained["pairs"][0]["rows"][0]["multiplier"]["value"] == pytest.approx((3.1 / 3.0) ** 10)
    assert chained["pairs"][0]["rows"][0]["flops"]["value"] == pytest.approx((loss / 3.0) ** -10 * DAY)
    kinds = [
        row["at"]
        for row in contest([power("x", 3.0, -0.1), power("y", 3.1, -0.1)], "y", At(), [sigmoid])["pairs"][0]["rows"]
    ]
    assert kinds == ["loss"] * 5 + ["score"] * 3
    with pytest.raises(UserError, match="x: at-score: its fit has no score: give --downstream"):
        contest([power("x", 3.0, -0.1), power("y", 3.1, -0.1)], "y", At(scores=(0.5,)))


def test_a_law_without_a_best_use_of_compute(make, power):
    flat = {"E": 1.7, "A": 400.0, "B": 410.0, "alpha": 0.34, "beta": 0.0}
    points = {"n": [1e8, 1e9], "d": [1e9, 1e10]}
    (x,) = groups_of(make("chinchilla", flat, group="x", points=points), "x")
    y = power("y", 3.0, -0.1)
    with pytest.raises(UserError, match=r"x: its law gives no losses of the compute fitted .* or an exponent of 0"):
        contest([x, y], "y", At())
    pair = contest([x, y], "y", At(losses=(2.5,), flops=(DAY,)))["pairs"][0]
    assert [row["verdict"] for row in pair["rows"]] == ["undefined", "undefined"]
    assert pair["crossings"] == []


def test_scores_that_no_loss_reaches(make, power):
    (sigmoid,) = groups_of(make("sigmoid", {"low": 0.25, "span": 0.6, "slope": 6.0, "midpoint": 2.6}), "s")
    x, y = power("x", 3.0, -0.1), power("y", 3.1, -0.1)
    rows = contest([x, y], "y", At(scores=(0.9, 0.2)), [sigmoid])["pairs"][0]["rows"]
    assert [row["flops"]["value"] for row in rows] == [np.inf, 0.0]
    assert [row["verdict"] for row in rows] == ["undefined", "undefined"]


def test_names_baselines_and_the_paper_beside(make, power):
    tnl, llama = power("tnl", 3.4, -0.08), power("llama", 3.6, -0.08)
    result = contest([tnl, llama, *paper_groups()], "", At(losses=(3.0,)))
    assert result["baseline"] == "llama"
    pairs = [(pair["group"], pair["baseline"]) for pair in result["pairs"]]
    assert ("tnl", "llama") in pairs
    assert ("tnl", "paper:tnl") in pairs
    assert ("llama", "paper:llama") in pairs
    assert ("paper:hgrn2", "paper:llama") in pairs
    assert len(pairs) == 1 + 3 + 2
    beside = result["pairs"][pairs.index(("tnl", "paper:tnl"))]
    assert "different_tables" in [each["name"] for each in beside["warnings"]]
    assert contest([tnl, llama], "tnl", At(losses=(3.0,)))["pairs"][0]["group"] == "llama"
    with pytest.raises(UserError, match="baseline = gla: no such group; expected one of tnl, llama"):
        contest([tnl, llama], "gla", At())
    with pytest.raises(
        UserError, match="tnl: one group has nothing to be compared with; name a second file, or --paper"
    ):
        contest([tnl], "", At())
    (pac,) = groups_of(make("pac", {"coefficient": 0.01, "exponent": 0.6}, group="pac"), "p")
    assert contest([tnl, llama, pac], "", At(losses=(3.0,)))["refused"][0]["group"] == "pac"
    with pytest.raises(UserError, match="pac: the pac law is not of loss and compute"):
        contest([pac, llama], "", At())


def test_groups_of_several_files_get_names_that_differ(make):
    def names(*files):
        return [
            each.name
            for each in labelled(
                [
                    groups_of(make("power", {"l_coefficient": 3, "l_exponent": -0.1}, group=group), path)
                    for group, path in files
                ]
            )
        ]

    assert names(("tnl", "a.json"), ("llama", "b.json")) == ["tnl", "llama"]
    assert names(("tnl", "a.json"), ("tnl", "b.json")) == ["a:tnl", "b:tnl"]
    assert names(("all", "a.json"), ("all", "b.json")) == ["a", "b"]
    assert names(("all", "x/a.json"), ("all", "y/a.json")) == ["x/a", "y/a"]
    assert names(("all", "a.json")) == ["all"]


@pytest.mark.slow
def test_intervals_of_a_multiplier_hold_the_truth():
    """20 pairs of tables of planted laws with 1% noise: about 95% of 60 intervals, of which runs at once are alike."""
    compute = np.geomspace(0.01, 10, 30)
    held = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        numbers, groups = {"c": [], "loss": []}, []
        for name, coefficient, exponent in (("x", 3.0, -0.10), ("llama", 3.2, -0.11)):
            numbers["c"] += [*(compute * DAY)]
            numbers["loss"] += [*(coefficient * compute**exponent * np.exp(0.01 * random.normal(size=30)))]
            groups += [name] * 30
        table = Points(
            {key: np.array(each) for key, each in numbers.items()}, {}, np.arange(60), np.array(groups), {"c": "c"}, ()
        )
        fitted = fit_points(table, PointFit("power", Loss("l2"), bootstrap=150, seed=0))
        result = contest(groups_of({"source": "t.csv", **fitted}, "f.json"), "", At(losses=(2.6, 3.0, 4.0)))
        for row in result["pairs"][0]["rows"]:
            truth = (row["value"] / 3.2) ** (1 / -0.11) / (row["value"] / 3.0) ** (1 / -0.10)
            held.append(row["multiplier"]["low"] <= truth <= row["multiplier"]["high"])
    assert 0.87 <= np.mean(held) <= 1.0
    assert len(held) == 60
