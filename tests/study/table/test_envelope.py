"""Envelope laws from a table of checkpoints: the same numbers as a study's, and rows that are no curves are refused."""

import json

import numpy as np
import pytest

from linscale.config import UserError
from linscale.study.fit import FitConfig, fit_group
from linscale.study.laws import PARAMETERS
from linscale.study.results import Curve
from linscale.study.table.envelope import fit_envelope
from linscale.study.table.group import Group, PointFit
from linscale.study.table.options import LawOptions
from linscale.study.table.surface_fit import Loss

SIZES = np.geomspace(2e7, 6.5e9, 6)
TOKENS = np.geomspace(3e9, 3e11, 40)


def loss_of(n, tokens):
    return 406.4 * n**-0.34 + 410.7 * tokens**-0.28


def table(seeds=1, noise=0.0):
    """Checkpoints of every size, shuffled, and the curves that they are."""
    random = np.random.default_rng(0)
    rows, curves = [], []
    for n in SIZES:
        for seed in range(seeds):
            loss = loss_of(n, TOKENS) * np.exp(noise * random.normal())
            name = f"m{n:.0f}" + (f" seed {seed}" if seeds > 1 else "")
            curves.append(Curve(name, "all", f"{n:g}", n, 6 * n, TOKENS, 6 * n * TOKENS, loss))
            rows += [(n, d, 6 * n * d, value, f"m{n:.0f}", seed) for d, value in zip(TOKENS, loss, strict=True)]
    order = random.permutation(len(rows))
    n, d, c, loss, run, seed = (np.array(each)[order] for each in zip(*rows, strict=True))
    labels = {"run": run} | ({"seed": seed.astype(str)} if seeds > 1 else {})
    return Group("all", {"n": n, "d": d, "c": c, "loss": loss}, labels, np.arange(1, n.size + 1), {"c": "6nd"}), curves


def settings(bootstrap=0, by="run", **options):
    return PointFit("envelope", Loss(), bootstrap=bootstrap, by=by, options=LawOptions(**options))


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_table_gives_what_a_study_of_the_same_curves_gives(seeds):
    group, curves = table(seeds, noise=0.002)
    found = fit_envelope(group, settings(60, seed_noise=0.004))
    study = fit_group(sorted(curves, key=lambda each: each.run), FitConfig(bootstrap=60, seed_noise=0.004))
    for name in PARAMETERS:
        row, other = found["parameters"][name], study["parameters"][name]
        for key in ("value", "low", "high"):
            assert row[key] == pytest.approx(other[key], rel=1e-6)
        assert len(found["draws"][name]) == study["bootstrap"]["fitted"]
        assert np.percentile(found["draws"][name], 97.5) == pytest.approx(row["high"], rel=1e-6)
    assert found["bootstrap"]["seed_noise_source"] == ("measured" if seeds == 2 else "assumed")
    assert ("assumed_noise" in {each["name"] for each in found["warnings"]}) == (seeds == 1)
    assert found["bootstrap"]["units"] == 6 * seeds
    json.dumps(found, allow_nan=False)


def test_planted_laws_come_back_and_points_lie_above_them():
    found = fit_envelope(table()[0], settings())
    values = {name: each["value"] for name, each in found["parameters"].items()}
    assert values["n_opt_exponent"] == pytest.approx(0.28 / 0.62, rel=0.01)
    assert values["l_exponent"] == pytest.approx(-0.34 * 0.28 / 0.62, rel=0.01)
    assert found["minima"]["loss"] == sorted(found["minima"]["loss"], reverse=True)
    assert max(found["points"]["residual"]) < 0.005  # the law is the lowest loss
    assert found["points_used"] + len(found["dropped"]) == 240 == len(found["points"]["row"]) + len(found["dropped"])
    rules = {each["rule"] for each in found["dropped"]}
    assert rules == {"warm_up: first 2% of a run"}
    assert {each["rule"] for each in found["left_out"]} >= {"edge", "no_competitor"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": None}, r"which rows are checkpoints of one run; --columns run=NAME"),
        ({"by": "point"}, r"by = point: an envelope resamples runs"),
        ({"n": 3.0}, r"run m20000000: n goes from"),
        ({"d": 3e9}, r"has the tokens of another row; leave it out"),
    ],
)
def test_rows_that_are_no_curves_are_refused(change, message):
    group, _ = table()
    for role in ("n", "d"):
        if role in change:
            group.numbers[role][np.flatnonzero(group.labels["run"] == "m20000000")[:2]] = change[role]
    labels = {} if "run" in change else group.labels
    group = Group("all", group.numbers, labels, group.rows, group.columns)
    with pytest.raises(UserError, match=message):
        fit_envelope(group, settings(10, by=change.get("by", "run")))


def test_runs_too_short_to_bend_are_left_out_row_by_row():
    group, _ = table()
    keep = (group.labels["run"] != "m20000000") | (group.numbers["d"] > 2.5e11)
    numbers = {role: values[keep] for role, values in group.numbers.items()}
    labels = {role: values[keep] for role, values in group.labels.items()}
    found = fit_envelope(Group("all", numbers, labels, group.rows[keep], group.columns), settings())
    rules = [each["rule"] for each in found["dropped"] if each["rule"].startswith("too_few_values")]
    assert len(rules) == 2
    assert found["bootstrap"]["units"] == 5
