"""The PAC law: planted sizes come back, tolerances and edges are named, and intervals hold the truth."""

import json

import numpy as np
import pytest

from linscale.config import UserError
from linscale.study.table.efficient import data_sets, smallest
from linscale.study.table.group import Group, PointFit
from linscale.study.table.options import LawOptions, Tolerance
from linscale.study.table.pac import fit_pac
from linscale.study.table.pac_warnings import compared, verdict
from linscale.study.table.surface_fit import Loss
from tests.lazy import Lazy

optimize = Lazy("scipy.optimize")

AT = 1e8  # tokens at which the size of u = 0 has a million parameters


def excess(u):
    """Of loss, at N = N(D) e^u: too small on the left, too large for its data on the right."""
    return 0.15 * np.exp(-u) + 0.02 * np.exp(0.7 * u)


LOWEST = np.log(0.15 / (0.7 * 0.02)) / 1.7  # where the derivative is 0


def points(exponent=0.6, noise=0.0, *, sets=5, sizes=8, decades=3.0, seed=0, repeats=1, shift=0.5):
    d = np.repeat(AT * np.geomspace(1, 10**decades, sets), sizes * repeats)
    u = np.tile(np.repeat(np.linspace(-2.9, 2.9, sizes) + shift, repeats), sets)
    n = 1e6 * (d / AT) ** exponent * np.exp(u)
    loss = (2 + 40 * d**-0.2 + excess(u)) * np.exp(noise * np.random.default_rng(seed).normal(size=n.size))
    return {"n": n, "d": d, "loss": loss}


def fitted(numbers, *, bootstrap=0, by="point", tolerance="0.02", seed_noise=0.003, **labels):
    group = Group(
        "all", numbers, {k: np.array(v, dtype=str) for k, v in labels.items()}, np.arange(1, len(numbers["n"]) + 1), {}
    )
    options = LawOptions(tolerance=Tolerance.parse(tolerance), seed_noise=seed_noise)
    return fit_pac(group, PointFit("pac", Loss(), bootstrap=bootstrap, by=by, options=options))


def warned(result):
    return {each["name"]: each["detail"] for each in result["warnings"]}


@pytest.mark.parametrize("exponent", [0.44, 0.72, 1.0])
def test_planted_exponents_and_sizes_come_back(exponent):
    result = fitted(points(exponent, sizes=40))
    found = {name: each["value"] for name, each in result["parameters"].items()}
    u = optimize.brentq(lambda u: excess(u) - excess(LOWEST) - 0.02, -4, LOWEST)
    assert found["exponent"] == pytest.approx(exponent, abs=1e-3)
    assert found["coefficient"] * AT**exponent == pytest.approx(1e6 * np.exp(u), rel=0.02)
    assert result["derived"]["n_for_twice_data"]["value"] == pytest.approx(2**exponent, rel=1e-3)
    assert warned(result) == {}
    json.dumps(result, allow_nan=False)


def test_between_two_sizes_n_is_interpolated_in_its_logarithm():
    numbers = {"n": np.array([1e6, 1e7, 1e8, 1e9]), "d": np.full(4, 1e9), "loss": np.array([3.0, 2.5, 2.1, 2.0])}
    group = Group("all", numbers, {}, np.arange(4), {})
    (data,), _ = data_sets(group)
    log_loss = np.log(numbers["loss"])[None]
    found = smallest(data, log_loss, Tolerance(0.3, False))
    share = (np.log(2.5) - np.log(2.3)) / (np.log(2.5) - np.log(2.1))
    assert found.log_n[0] == pytest.approx(np.log(1e7) + share * np.log(10))
    assert np.exp(found.log_loss[0]) == pytest.approx(2.3)
    assert smallest(data, log_loss, Tolerance(0.15, True)).log_n[0] == pytest.approx(found.log_n[0])  # 15% of 2
    assert found.last[0]
    assert smallest(data, log_loss, Tolerance(1.5, False)).first[0]
    two = smallest(data, np.concatenate([log_loss, log_loss[:, ::-1]]), Tolerance(0.3, False))
    assert two.log_n[0] == found.log_n[0]
    assert two.first.tolist() == [False, True]


def test_repeats_of_a_size_are_averaged():
    once, twice = points(), points(repeats=2)
    twice["loss"] = twice["loss"] * np.tile([1.002, 1 / 1.002], 40)
    one, two = (fitted(each)["parameters"]["exponent"]["value"] for each in (once, twice))
    assert two == pytest.approx(one, rel=1e-6)


@pytest.mark.slow
def test_intervals_hold_the_planted_exponent():
    tables, hits = 40, {"point": 0, "budget": 0}
    for seed in range(tables):
        for by in hits:
            row = fitted(points(0.6, 0.002, seed=seed), bootstrap=200, by=by)["parameters"]["exponent"]
            hits[by] += row["low"] <= 0.6 <= row["high"]
            assert row["high"] - row["low"] < 0.6
    assert min(hits.values()) >= 33  # of 40 at 95%: a chance of 1 in 500


def test_the_verdict_compares_with_the_band_and_with_proportion():
    result = fitted(points(0.6, 0.001), bootstrap=200)
    assert "lies within [0.44, 0.72]; it excludes 1" in result["verdict"]
    assert [each["inside"] for each in result["compared"]] == [False, False, False]
    assert result["derived"]["share_within"]["value"] == pytest.approx(1.0)
    above = fitted(points(1.0, 0.001, shift=0.3), bootstrap=200)
    assert "lies wholly above [0.44, 0.72]; it holds 1" in above["verdict"]
    assert [each["inside"] for each in above["compared"]] == [False, False, True]
    assert above["derived"]["share_above"]["value"] == 1.0


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.1, 0.3, "lies wholly below"),
        (0.3, 0.5, "overlaps [0.44, 0.72] and reaches beyond it; it excludes 1"),
        (0.5, 1.1, "overlaps [0.44, 0.72] and reaches beyond it; it holds 1"),
        (0.2, 0.9, "holds all of [0.44, 0.72]"),
    ],
)
def test_verdicts(low, high, words):
    assert words in verdict({"value": (low + high) / 2, "low": low, "high": high})


def test_without_an_interval_the_verdict_says_so():
    row = {"value": 0.5, "low": None, "high": None}
    assert verdict(row) == "exponent 0.5 lies within [0.44, 0.72]; without an interval that says little"
    assert [each["inside"] for each in compared(row)] == [None, None, None]


def test_the_band_goes_through_the_middle_of_the_law():
    result = fitted(points())
    d, low, high = (np.array(result["band"][name]) for name in ("tokens", "low", "high"))
    assert np.log(low[1] / low[0]) / np.log(d[1] / d[0]) == pytest.approx(0.44)
    assert np.log(high[1] / high[0]) / np.log(d[1] / d[0]) == pytest.approx(0.72)
    law = {name: each["value"] for name, each in result["parameters"].items()}
    centre = law["coefficient"] * np.sqrt(d[0] * d[1]) ** law["exponent"]
    assert np.sqrt(low[0] * low[1]) == pytest.approx(centre) == pytest.approx(np.sqrt(high[0] * high[1]))


def test_sizes_at_the_end_are_named_and_the_smallest_not_used():
    small = points()
    lost = (small["d"] == small["d"][-1]) & (small["n"] < 3e6 * 1000**0.6)  # the smaller sizes at the largest D
    result = fitted({role: each[~lost] for role, each in small.items()})
    assert warned(result)["edge_size"] == "the smallest is good enough at 1e+11 tokens: not used"
    assert {each["rule"] for each in result["dropped"]} == {"data: the smallest size is good enough"}
    assert len(result["minima"]["tokens"]) == 4
    assert [each["edge"] for each in result["curves"]] == [False] * 4 + [True]
    large = points(shift=-1.2)
    assert "the largest is best at 1e+08" in warned(fitted(large))["edge_size"]


def test_few_amounts_of_data_and_short_ranges_are_named():
    found = warned(fitted(points(sets=3, decades=1.5)))
    assert found["few_data_sizes"] == "3"
    assert found["short_data_range"] == "a factor of 32"
    assert not {"few_data_sizes", "short_data_range"} & set(warned(fitted(points(sets=4, decades=2.0))))


def test_a_tolerance_that_decides_the_exponent_is_named():
    """Valleys that widen with D: the more is allowed, the less N grows."""
    numbers = points(sizes=16)
    decades = np.log10(numbers["d"] / AT)
    u = np.log(numbers["n"] / 1e6 / (numbers["d"] / AT) ** 0.6)
    random = np.random.default_rng(0)
    numbers["loss"] = (2 + excess(u / (1 + 0.3 * decades))) * np.exp(0.0002 * random.normal(size=u.size))
    result = fitted(numbers, bootstrap=100, tolerance="0.05")
    tight, middle, wide = (each["exponent"] for each in result["sensitivity"])
    assert tight > middle > wide
    assert middle == result["parameters"]["exponent"]["value"]
    assert warned(result)["tolerance_decides"] == f"0.025: {tight:.3g}, 0.1: {wide:.3g}"
    assert "tolerance_decides" not in warned(fitted(points(noise=0.001, sizes=16), bootstrap=100, tolerance="0.05"))
    refused = warned(fitted(points(sizes=12), tolerance="0.9"))  # at twice that the smallest size is always good enough
    assert refused["tolerance_decides"] == "1.8: not to be fitted"


def test_too_little_data_is_refused_with_a_remedy():
    with pytest.raises(
        UserError, match="at 5 the smallest size is good enough: add smaller ones, or lower --tolerance"
    ):
        fitted(points(), tolerance="9")
    one = {role: each[:8] for role, each in points().items()}
    with pytest.raises(UserError, match=r"1 amount.*needs 2; values of d less than 5% apart are one"):
        fitted(one)


def test_noise_of_repeats_of_three_sizes_is_measured_and_else_assumed():
    three = fitted(points(noise=0.001, sizes=3, shift=0.0), bootstrap=100, seed_noise=0.001)
    assert three["bootstrap"]["seed_noise_source"] == "assumed"
    assert warned(three)["assumed_noise"] == "0.1% of the loss"
    repeated = fitted(points(noise=0.001, sizes=3, shift=0.0, repeats=3), bootstrap=100)
    assert repeated["bootstrap"]["seed_noise"] == pytest.approx(0.001, rel=0.4)
    assert "assumed_noise" not in warned(repeated)
