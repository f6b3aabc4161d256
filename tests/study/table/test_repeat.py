"""The law of repeated data as a table gives it: planted truths, and what few repetitions do not determine."""

import json
from pathlib import Path

import numpy as np
import pytest

from linscale.config import UserError
from linscale.study.flops import Flops
from linscale.study.table.fit import TABLE_LAWS, fit_points
from linscale.study.table.group import PointFit
from linscale.study.table.points import read_points
from linscale.study.table.repeat import repeat
from linscale.study.table.surface_fit import Loss
from linscale.study.table.surfaces import chinchilla
from tests.quick import quick

TRUTH = (1.87, 521.0, 1488.0, 0.353, 0.353, 15.4, 5.3)


def write(path: Path, epochs: tuple[float, ...], noise: float = 0.003, excess: bool = True) -> Path:
    """Six sizes on three amounts of unique tokens, so often each."""
    random = np.random.default_rng(0)
    lines = ["params,tokens,unique_tokens,loss"]
    for n in np.geomspace(1e7, 4e9, 6):
        for unique in (1e8, 1e9, 1e10):
            for times in epochs:
                loss = repeat(n, unique * times, unique, *(TRUTH if excess else TRUTH[:-1]))
                lines.append(f"{n},{unique * times},{unique},{loss * np.exp(noise * random.normal())}")
    path.write_text("\n".join(lines) + "\n")
    return path


def fit(path: Path, law: str = "repeat", where: str = "", columns: dict[str, str] | None = None, **settings):
    points = read_points(path, columns=columns or {}, needed=TABLE_LAWS[law].roles, where=where)
    return fit_points(points, PointFit(law, **{"loss": Loss("l2"), "bootstrap": 0, **settings}))["groups"][0]


def test_the_law_itself():
    n, unique = np.geomspace(1e7, 1e11, 9), 1e9
    _, A, B, alpha, beta, r_d, r_n = TRUTH
    once = repeat(n, np.full(9, unique), np.full(9, unique), *TRUTH[:6])
    np.testing.assert_allclose(once, chinchilla(n, unique, *TRUTH[:5]))
    tokens = unique * (1 + r_d)  # what repetition without end comes to
    np.testing.assert_allclose(repeat(n, 1e16, unique, *TRUTH[:6]), chinchilla(n, tokens, *TRUTH[:5]))
    a, log_n, log_d = Flops().optimum(np.log(A), np.log(B), alpha, beta)
    flops = (unique / np.exp(log_d)) ** (1 / (1 - a))
    cheapest = np.exp(log_n) * flops**a  # as `optimum` has it, for which D = unique
    small, huge = cheapest / 2, cheapest * 1e8
    assert repeat(small, unique, unique, *TRUTH) == pytest.approx(chinchilla(small, unique, *TRUTH[:5]))
    assert repeat(huge, unique, unique, *TRUTH) == pytest.approx(chinchilla(cheapest * (1 + r_n), unique, *TRUTH[:5]))
    assert repeat(1e8, 1e9, 2e9, *TRUTH) == repeat(1e8, 1e9, 1e9, *TRUTH)


@pytest.mark.parametrize("law", quick(["repeat", "repeat_no_excess"], "repeat_no_excess"))
def test_a_planted_law_is_within_its_intervals(tmp_path, law):
    path = write(tmp_path / "p.csv", (1, 3, 10, 30, 100), excess=law == "repeat")
    group = fit(path, law, bootstrap=200)
    json.dumps(group, allow_nan=False)
    truth = TRUTH if law == "repeat" else TRUTH[:-1]
    assert len(group["parameters"]) == len(truth)
    for (name, each), value in zip(group["parameters"].items(), truth, strict=True):
        assert each["profile"][0] < each["value"] < each["profile"][1], name
        assert each["low"] < value < each["high"], name
        assert each["identified"], name
    assert group["law"] == "repeat"
    assert group["derived"]["n_opt_exponent"]["value"] == pytest.approx(0.5, abs=0.03)
    assert group["warnings"] == []
    assert list(group["points"]) == ["row", "n", "d", "unique", "loss", "residual"]


@pytest.mark.slow
def test_few_repetitions_do_not_determine_their_decay(tmp_path):
    """As for the publication's 15.4: the points fit about as well with any large value."""
    group = fit(write(tmp_path / "p.csv", (1, 2, 3), noise=0.01))
    decay = group["parameters"]["r_d"]
    assert not decay["identified"]
    assert decay["profile"][1] is None
    names = {each["name"]: each["detail"] for each in group["warnings"]}
    assert "r_d" in names.get("not_identified", "") + names.get("at_bound", "")


@pytest.mark.slow
def test_without_excess_in_the_table_its_decay_is_not_determined(tmp_path):
    path = write(tmp_path / "p.csv", (1, 3, 10, 30, 100))
    group = fit(path, where="params < 3e7 and unique_tokens > 5e8 or params < 3e8 and unique_tokens > 5e9")
    assert not group["parameters"]["r_n"]["identified"]


@pytest.mark.slow
def test_bad_tables(tmp_path):
    path = write(tmp_path / "p.csv", (1, 2, 4))
    with pytest.raises(UserError, match=r"no row has more tokens than unique tokens.*use --law chinchilla"):
        fit(path, where="tokens = unique_tokens")
    with pytest.raises(UserError, match="7 points: the repeat law has 7 parameters and needs at least 8"):
        fit(path, where="params < 2e8 and tokens in (2e8, 2e9) or params > 3e9 and tokens = 4e10")
    with pytest.raises(UserError, match="n has 1 distinct values: the repeat law needs at least 3"):
        fit(path, where="params < 2e7")
    lines = path.read_text().splitlines()
    n, d, unique, loss = lines[1].split(",")
    path.write_text("\n".join([*lines, f"{n},{float(d) / 2},{unique},{loss}"]))
    names = {each["name"]: each["detail"] for each in fit(path, "repeat_no_excess")["warnings"]}
    assert names["unique_above_tokens"] == "row 55"
