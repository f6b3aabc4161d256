"""Where laws cross, against scipy's root finder, and how resamples are paired."""

import numpy as np
import pytest

from linscale.study.prediction.contest import contest
from linscale.study.prediction.fitted import paired
from linscale.study.prediction.multiplier import At
from tests.lazy import Lazy

optimize = Lazy("scipy.optimize")

DAY = 8.64e19
SPEC_CROSSINGS = {"cosformer2": 2.7e3, "hgrn2": 1.5e6, "tnl": 6e6}  # PFLOP/s-days, where LLaMA overtakes


@pytest.mark.slow
def test_laws_with_constants_cross_twice_once_or_never(power):
    """L_x - L_y = 0.1 + 2 C^-0.3 - 2.09 C^-0.2: positive, negative, positive."""
    x, y = power("x", 2.0, -0.3, 1.6), power("llama", 2.09, -0.2, 1.5)

    def difference(t):
        return 0.1 + 2 * np.exp(-0.3 * t) - 2.09 * np.exp(-0.2 * t)

    falls, rises = optimize.brentq(difference, -5, 2), optimize.brentq(difference, 5, 30)
    found = {each["overtakes"]: each for each in contest([x, y], "", At(losses=(2.5,)))["pairs"][0]["crossings"]}
    assert found["x"]["flops"]["value"] == pytest.approx(np.exp(falls) * DAY, rel=1e-9)
    assert found["llama"]["flops"]["value"] == pytest.approx(np.exp(rises) * DAY, rel=1e-9)
    assert found["x"]["within"]
    assert not found["llama"]["within"]
    assert found["x"]["share"] is None
    parallel = contest([power("x", 2.0, -0.2), power("llama", 2.5, -0.2)], "", At(losses=(2.5,)))["pairs"][0]
    assert parallel["crossings"] == []
    assert parallel["no_crossing"] == 1.0
    same = contest([power("x", 2.0, -0.2), power("y", 2.0, -0.2)], "y", At(losses=(2.5,)))["pairs"][0]
    assert same["crossings"] == []
    assert same["rows"][0]["multiplier"]["value"] == pytest.approx(1)


def test_crossings_have_intervals_and_a_share_without(power):
    """Of 1000 resamples the 200 whose slope is the baseline's do not cross."""
    exponent = np.where(np.arange(1000) < 200, -0.08, -0.1)
    scatter = np.random.default_rng(0).normal(size=1000)
    draws = {"E": np.zeros(1000), "l_coefficient": 3.2 * np.exp(0.001 * scatter), "l_exponent": exponent}
    x, y = power("x", 3.2, -0.1, draws=draws), power("llama", 3.0, -0.08)
    pair = contest([x, y], "", At(losses=(2.8,)))["pairs"][0]
    (meeting,) = pair["crossings"]
    assert meeting["overtakes"] == "x"
    centre = np.log(3.2 / 3.0) / 0.02
    assert np.log(meeting["flops"]["value"] / DAY) == pytest.approx(centre)
    width = np.log(meeting["flops"]["high"] / meeting["flops"]["low"])
    assert width == pytest.approx(2 * 1.96 * 0.001 / 0.02, rel=0.1)
    assert meeting["share"] == pytest.approx(0.8)
    assert pair["no_crossing"] == pytest.approx(0.2)
    assert "exact_reference" in [each["name"] for each in pair["warnings"]]


def test_groups_are_paired_at_random_and_laws_of_the_same_rows_by_number(power):
    """The same deviates in both: by number they cancel, at random the variance is twice one's."""
    deviates = np.exp(0.01 * np.random.default_rng(0).normal(size=2000))
    draws = {"E": np.zeros(2000), "l_coefficient": 3.0 * deviates, "l_exponent": np.full(2000, -0.1)}

    def pair(**entry):
        x, y = (power(name, 3.0, -0.1, draws=draws, **entry) for name in ("x", "y"))
        return contest([x, y], "y", At(losses=(2.8,)))["pairs"][0]

    apart, same = pair(), pair(points={"row": [1, 2], "c": [DAY, 9 * DAY]})
    assert (apart["paired"], same["paired"]) == ("at random", "same rows")
    width = np.log(apart["rows"][0]["multiplier"]["high"] / apart["rows"][0]["multiplier"]["low"])
    assert width == pytest.approx(2 * 1.96 * np.sqrt(2) * 0.01 / 0.1, rel=0.07)
    assert same["rows"][0]["multiplier"]["high"] == pytest.approx(1)


def test_fits_of_unequal_resamples_are_joined(power):
    few = power("x", 3, -0.1, draws={"E": [0.0] * 5, "l_coefficient": range(5), "l_exponent": [-0.1] * 5})
    many = power("y", 3, -0.1, draws={"E": [0.0] * 50, "l_coefficient": range(50), "l_exponent": [-0.1] * 50})
    none = power("z", 7, -0.1)
    joined = paired([few, many, none])
    assert [each.resamples for each in joined] == [50, 50, 50]
    assert set(joined[0].values["l_coefficient"][1:]) == set(range(5))
    assert sorted(joined[1].values["l_coefficient"][1:]) == list(range(50))
    assert set(joined[2].values["l_coefficient"]) == {7.0}
