"""What a law promises: sizes, losses, intervals, and what is wrong with a file; what is known of a surface from it."""

from pathlib import Path

import numpy as np
import pytest

from linscale.config import UserError
from linscale.study.design import best_size, gradients
from linscale.study.knowledge import knowledge
from linscale.study.laws import PAPER_LAWS, PFLOP_S_DAY
from linscale.study.prediction.compute_law import surface_loss
from linscale.study.prediction.fit_file import groups_of
from linscale.study.prediction.surface import effective
from linscale.study.prospect import Interval, fitted, published
from linscale.study.table.surfaces import chinchilla

SURFACE = {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.3}


def entry(group="hgrn2", law="chinchilla", values=SURFACE, spread=0.01, **more):
    random = np.random.default_rng(0)
    draws = {name: (value * np.exp(spread * random.normal(size=200))).tolist() for name, value in values.items()}
    parameters = {name: {"value": value, "at_bound": False, "identified": True} for name, value in values.items()}
    return {"group": group, "law": law, "parameters": parameters, "draws": draws, **more}


def content(*groups, **more):
    return {"version": 1, "units": {}, "columns": {"n": "params", "d": "tokens"}, "groups": list(groups), **more}


def points(noise=0.004, seeds=1):
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 1e11, 5)))
    n, d = np.tile(n, seeds), np.tile(d, seeds)
    loss = chinchilla(n, d, *SURFACE.values()) * np.exp(noise * np.random.default_rng(1).normal(size=n.size))
    return {"n": n.tolist(), "d": d.tolist(), "loss": loss.tolist()}


def test_the_published_law_gives_the_published_optimum_without_an_interval():
    law, prospect = PAPER_LAWS["tnl"], published("tnl")
    n, d = prospect.optimal(10 * PFLOP_S_DAY)
    assert (n, d) == (Interval(pytest.approx(law.params(10.0))), Interval(pytest.approx(law.tokens(10.0))))
    assert prospect.loss(1, 1, 10 * PFLOP_S_DAY) == Interval(pytest.approx(law.loss(10.0)))
    assert prospect.fitted.definition == "paper"


def test_a_surface_gives_the_cheapest_size_and_intervals_of_its_draws():
    prospect = fitted(Path("f.json"), content(entry()), "hgrn2")
    n, d = prospect.optimal(1e21)
    assert 6 * n.value * d.value == pytest.approx(1e21)
    grid = n.value * np.geomspace(0.5, 2, 2001)
    best = grid[np.argmin(chinchilla(grid, 1e21 / 6 / grid, *SURFACE.values()))]
    assert n.value == pytest.approx(best, rel=1e-3)
    assert n.low < n.value < n.high
    loss = prospect.loss(1e9, 1e11, 6e20)
    expected = chinchilla(1e9, 1e11, *(prospect.fitted.values[name][1:] for name in SURFACE))
    assert (loss.low, loss.high) == pytest.approx(tuple(np.percentile(expected, [2.5, 97.5])))
    assert loss.value == pytest.approx(chinchilla(1e9, 1e11, *SURFACE.values()))


def test_an_overtraining_law_is_the_surface_of_its_own_formula():
    p = {"E": 1.8, "a": 141.0, "a_prime": 190.0, "b": -0.24}
    n, d = 4e8, 9e9
    written = p["E"] + p["a"] * n ** p["b"] + p["a_prime"] * 6 ** (p["b"] / 2) * (d / n * n) ** p["b"]
    (law,) = groups_of(content(entry("all", "overtrain", p, draws=None)), "f.json")
    assert surface_loss(law, n, d) == pytest.approx([written])


def test_the_band_of_a_study_is_carried_on_beyond_its_ends():
    """A line known by its value and slope: its variance is a quadratic, which three values determine."""
    log_c = np.linspace(-2, 2, 25)
    half = 1.96 * np.sqrt(0.01**2 + (0.004 * (log_c - 0.5)) ** 2)
    loss = 3 * np.exp(-0.1 * log_c)
    band = {"compute": np.exp(log_c).tolist()}
    for name, line in (("loss", loss), ("params", 1e8 * np.exp(0.6 * log_c)), ("tokens", 1e10 * np.exp(0.5 * log_c))):
        band |= {f"{name}_low": (line * np.exp(-half)).tolist(), f"{name}_high": (line * np.exp(half)).tolist()}
    values = {name: getattr(PAPER_LAWS["tnl"], name) for name in vars(PAPER_LAWS["tnl"])}
    study = content(entry("tnl", "envelope", values, band=band, draws=None))
    del study["columns"]
    prospect = fitted(Path("f.json"), study, "tnl")
    assert prospect.fitted.definition == "paper"
    far = prospect.loss(1, 1, np.exp(6.0) * PFLOP_S_DAY)
    width = 1.96 * np.sqrt(0.01**2 + (0.004 * 5.5) ** 2)
    assert np.log(far.high / far.low) / 2 == pytest.approx(width, rel=0.08)  # of 1000 drawn from it
    n, _ = prospect.optimal(np.exp(0.5) * PFLOP_S_DAY)
    assert np.log(n.high / n.low) / 2 == pytest.approx(1.96 * 0.01, rel=0.08)


@pytest.mark.parametrize(
    ("groups", "arch", "message"),
    [
        ([entry("tnl")], "hgrn2", "no group 'hgrn2'; it has tnl"),
        ([entry("hgrn2/a"), entry("hgrn2/b")], "hgrn2", r"2 groups are of hgrn2 \(hgrn2/a, hgrn2/b\)"),
        ([entry(law="power", values={"l_coefficient": 3.0, "l_exponent": -0.1})], "hgrn2", "no optimal size"),
        ([entry(values={**SURFACE, "beta": 0.0})], "hgrn2", "an exponent is 0"),
        ([], "hgrn2", "it has none"),
    ],
)
def test_a_fit_that_is_of_no_use_is_one_line(groups, arch, message):
    with pytest.raises(UserError, match=message):
        fitted(Path("f.json"), content(*groups), arch)


def test_a_refused_group_says_why():
    with pytest.raises(UserError, match="hgrn2 could not be fitted: 3 points"):
        fitted(Path("f"), content(entry("tnl"), refused=[{"group": "hgrn2", "reason": "3 points"}]), "hgrn2")


def test_groups_of_several_columns_one_group_for_all_and_doubts_about_parameters():
    assert fitted(Path("f"), content(entry("slim/hgrn2"), entry("slim/tnl")), "hgrn2").fitted.name == "slim/hgrn2"
    only = fitted(Path("f"), content(entry("all")), "llama")
    assert [each["name"] for each in only.warnings] == ["one_law"]
    doubtful = entry()
    doubtful["parameters"]["E"]["at_bound"] = True
    doubtful["parameters"]["beta"]["identified"] = False
    found = fitted(Path("f"), content(doubtful), "hgrn2").warnings
    assert {(each["name"], each["detail"]) for each in found} == {
        ("law_at_bound", "hgrn2 E"),
        ("law_not_identified", "hgrn2 beta"),
    }


def test_the_surface_that_touches_power_laws_has_their_value_slope_and_split():
    prospect, flops = published("hgrn2"), 3 * PFLOP_S_DAY
    known = knowledge(prospect, 5e8, 9e10, flops)
    assert known.basis == "prior"
    law = PAPER_LAWS["hgrn2"]
    assert np.exp(gradients(known.vector, np.zeros((2, 1)))[0][0]) == pytest.approx(law.loss(3.0))
    assert best_size(known.vector)[0] == pytest.approx(0, abs=1e-9)  # the target itself is optimal

    def lowest(log_c):
        n = best_size(known.vector, log_c)[0]
        return gradients(known.vector, np.array([[n], [log_c - n]]))[0][0], n

    slope, split = (np.array(lowest(1e-4)) - np.array(lowest(-1e-4))) / 2e-4
    assert slope == pytest.approx(law.l_exponent, rel=1e-4)
    assert split == pytest.approx(law.n_opt_exponent / (law.n_opt_exponent + law.d_opt_exponent), rel=1e-6)


def test_points_are_known_by_their_residuals_and_a_run_counts_once():
    target = (2e9, 6e10, 7.2e20)
    once = knowledge(fitted(Path("f"), content(entry(points=points())), "hgrn2"), *target)
    assert once.basis == "points"
    assert once.noise == pytest.approx(0.004, rel=0.35)
    here = [np.array([1e8]), np.array([1e10])]
    variance = once.question(*here).now
    twice = points(seeds=2)
    independent = knowledge(fitted(Path("f"), content(entry(points=twice)), "hgrn2"), *target)
    assert independent.question(*here).now[0] == pytest.approx(variance[0] / 2, rel=0.35)
    twice["run"] = [str(number % 30) for number in range(60)]
    together = knowledge(fitted(Path("f"), content(entry(points=twice)), "hgrn2"), *target)
    assert together.question(*here).now[0] == pytest.approx(variance[0], rel=0.35)


@pytest.mark.slow
def test_the_linear_variance_is_about_that_of_refitted_tables():
    """The half-width that the design reports, against the spread of predictions over tables with new noise."""
    from linscale.study.table.surface_fit import Loss, Problem, fit
    from linscale.study.table.surfaces import LAWS

    known = knowledge(fitted(Path("f"), content(entry(points=points())), "hgrn2"), 2e9, 6e10, 7.2e20)
    table, found = points(0), []
    random = np.random.default_rng(3)
    for _ in range(12):
        loss = np.array(table["loss"]) * np.exp(known.noise * random.normal(size=30))
        problem = Problem(LAWS["chinchilla"], Loss("l2"), np.array([table["n"], table["d"]]), loss)
        found.append(np.log(chinchilla(2e9, 6e10, *problem.numbers(fit(problem).vector))))
    said = np.sqrt(known.question(np.array([1e8]), np.array([1e10])).now[0])
    assert 0.5 * said < np.std(found) < 1.6 * said


def test_intervals_of_power_laws_count_as_what_is_known():
    values = {name: getattr(PAPER_LAWS["tnl"], name) for name in vars(PAPER_LAWS["tnl"])}
    prospect = fitted(Path("f"), content(entry("tnl", "isoflop", values, spread=0.002)), "tnl")
    assert prospect.fitted.definition == "6nd"
    known = knowledge(prospect, 5e8, 9e10, 3 * PFLOP_S_DAY)
    assert known.basis == "law"
    said = prospect.loss(5e8, 9e10, 3 * PFLOP_S_DAY)
    half = np.log(said.high / said.low) / 2
    assert 1.96 * np.sqrt(known.question(np.array([1e8]), np.array([1e10])).now[0]) == pytest.approx(half, rel=0.05)


def test_repeated_tokens_count_in_the_design_for_what_they_are_worth():
    """The law has the points exactly, and so their residuals are none, unless repeated tokens are taken as new ones."""
    values, seen = SURFACE | {"r_d": 15.0, "r_n": 5.0}, points()
    seen["unique"] = (np.array(seen["d"]) / np.resize([1.0, 8.0, 40.0], len(seen["d"]))).tolist()
    columns = {name: np.array([value]) for name, value in values.items()}
    n, d = effective(columns, *(np.array(seen[role])[None] for role in ("n", "d", "unique")))
    seen["loss"] = chinchilla(n[0], d[0], *SURFACE.values()).tolist()
    prospect = fitted(Path("f.json"), content(entry(law="repeat", values=values, points=seen)), "hgrn2")
    assert knowledge(prospect, 1e9, 2e10, 1.2e20).noise < 0.001
