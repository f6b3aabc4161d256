"""The page of a fit draws planted laws where they are, with bands, residuals and provenance, and keeps text text."""

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from linscale.config import UserError
from linscale.study.laws import PAPER_LAWS, PFLOP_S_DAY, UNITS
from linscale.study.report import write_fit_report
from linscale.study.report.figures import Mark
from linscale.study.report.fit_figures import fit_figures
from linscale.study.table.fit import TABLE_LAWS, fit_points
from linscale.study.table.group import PointFit
from linscale.study.table.points import read_points
from linscale.study.table.surface_fit import Loss
from linscale.study.table.surfaces import chinchilla

TRUTH = {"E": 1.7, "A": 400.0, "B": 410.0, "alpha": 0.34, "beta": 0.28}
HOSTILE = "</script><img src=x onerror=alert(1)>&amp;"


def write_table(path: Path, groups: tuple[str, ...] = ("tnl",), noise: float = 0.0) -> Path:
    random = np.random.default_rng(0)
    lines = ["arch,params,tokens,loss"]
    for arch in groups:
        for n in np.geomspace(1e7, 1e10, 6):
            for d in np.geomspace(1e9, 1e12, 6):
                lines.append(f"{arch},{n},{d},{chinchilla(n, d, **TRUTH) * np.exp(noise * random.normal())}")
    path.write_text("\n".join(lines) + "\n")
    return path


def fitted(path: Path, law: str = "chinchilla", columns: dict[str, str] | None = None, **rest: Any) -> dict[str, Any]:
    table = read_points(path, columns=columns or {}, needed=TABLE_LAWS[law].roles, group=("arch",), **rest)
    return {"source": str(path), **fit_points(table, PointFit(law, Loss(), bootstrap=40))}


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """A law without noise, and two with some, of which large losses are left out."""
    folder = tmp_path_factory.mktemp("fits")
    both = write_table(folder / "points.csv", ("tnl", "other"), noise=0.01)
    return {"exact": fitted(write_table(folder / "exact.csv")), "both": fitted(both, where="loss < 4")}


@pytest.fixture
def exact(fits: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return copy.deepcopy(fits["exact"])


@pytest.fixture
def both(fits: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return copy.deepcopy(fits["both"])


@pytest.fixture
def noisy(both: dict[str, Any]) -> dict[str, Any]:
    return both | {"groups": [each for each in both["groups"] if each["group"] == "tnl"]}


def marks(result: dict[str, Any], figure: str, kind: str, space: str = "log") -> list[Mark]:
    found = {each.id: each for each in fit_figures(result["groups"], space)}
    return [mark for mark in found[figure].marks if mark.kind == kind]


@pytest.mark.slow
def test_the_frontier_is_where_6nd_flops_are_spent_best(exact: dict[str, Any]) -> None:
    result = exact
    (line,) = marks(result, "loss-compute", "line")
    (n_opt,) = marks(result, "n-opt", "line")
    (d_opt,) = marks(result, "d-opt", "line")
    for at in (0, 16, 32):
        flops = line.x[at] * PFLOP_S_DAY
        n = np.geomspace(1e6, 1e12, 40_001)
        loss = chinchilla(n, flops / 6 / n, **TRUTH)  # the whole slice, not the formula of its minimum
        assert line.y[at] == pytest.approx(loss.min(), rel=1e-3)
        assert n_opt.y[at] == pytest.approx(n[loss.argmin()], rel=0.02)
        assert 6 * n_opt.y[at] * d_opt.y[at] == pytest.approx(flops, rel=1e-4)
    (points,) = marks(result, "loss-compute", "points")
    assert (len(points.x), points.extra["row"][:3]) == (36, [1, 2, 3])
    assert points.x[0] == pytest.approx(6 * 1e7 * 1e9 / PFLOP_S_DAY, rel=1e-5)
    published = marks(result, "loss-compute", "dotted")[0]
    assert published.y == pytest.approx(PAPER_LAWS["tnl"].loss(np.array(published.x)), rel=1e-5)
    assert (min(published.x), max(published.x)) == pytest.approx((0.01, 6e22 / PFLOP_S_DAY), rel=1e-5)  # where both are


def test_flops_other_than_6nd_move_the_frontier(exact: dict[str, Any]) -> None:
    result = exact
    said = {
        "definition": "6nd+head",
        "formula": "6 (N + V d_model) D",
        "k": 40.0,
        "kappa": -0.1,
        "largest_deviation": 0.02,
    }
    result["groups"][0]["compute"] = said
    (line,), (n_opt,) = marks(result, "loss-compute", "line"), marks(result, "n-opt", "line")
    n = np.geomspace(1e6, 1e12, 40_001)
    loss = chinchilla(n, line.x[16] * PFLOP_S_DAY / 40 / n**0.9, **TRUTH)
    assert line.y[16] == pytest.approx(loss.min(), rel=1e-3)
    assert n_opt.y[16] == pytest.approx(n[loss.argmin()], rel=0.02)
    (points,) = marks(result, "loss-compute", "points")
    assert points.x[0] == pytest.approx(40 * 1e7**0.9 * 1e9 / PFLOP_S_DAY, rel=1e-5)


def test_bands_hold_the_line_and_the_middle_of_the_resamples(noisy: dict[str, Any]) -> None:
    result = noisy
    (band,) = marks(result, "n-opt", "band")
    (line,) = marks(result, "n-opt", "line")
    draws = result["groups"][0]["draws"]
    at = 20
    A, B, alpha, beta = (np.array(draws[name]) for name in ("A", "B", "alpha", "beta"))
    g = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    best = g * (band.x[at] * PFLOP_S_DAY / 6) ** (beta / (alpha + beta))
    stretch = result["groups"][0]["bootstrap"]["prediction_stretch"]
    assert stretch != 1
    best = line.y[at] * (best / line.y[at]) ** stretch
    assert (band.low[at], band.high[at]) == pytest.approx(tuple(np.percentile(best, [2.5, 97.5])), rel=1e-4)
    assert band.low[at] < line.y[at] < band.high[at]


def test_residuals_stand_against_inputs_and_predictions(noisy: dict[str, Any]) -> None:
    result = noisy
    group = result["groups"][0]
    found = {name: group["parameters"][name]["value"] for name in TRUTH}
    points = {name: np.array(values) for name, values in group["points"].items() if name != "row"}
    expected = chinchilla(points["n"], points["d"], **found)
    (against,) = marks(result, "residual-predicted", "points")
    assert against.x == pytest.approx(expected, rel=1e-5)
    assert against.y == pytest.approx(100 * (expected / points["loss"] - 1), abs=1e-3)
    assert marks(result, "residual-n", "points")[0].x == pytest.approx(points["n"], rel=1e-5)


def test_a_power_law_has_one_line_and_no_sizes(tmp_path: Path) -> None:
    result = fitted(write_table(tmp_path / "points.csv"), "power", {"c": "6nd"})
    ids = [figure.id for figure in fit_figures(result["groups"], "log")]
    assert ids == ["loss-compute", "residual-c", "residual-predicted"]
    (line,) = marks(result, "loss-compute", "line")
    row = result["groups"][0]["parameters"]
    assert line.y[3] == pytest.approx(row["l_coefficient"]["value"] * line.x[3] ** row["l_exponent"]["value"], rel=1e-5)


def envelope_group() -> dict[str, Any]:
    """An isoFLOP fit as the JSON has it: one budget used, one at an edge, one with too few sizes for a curve."""
    names = (
        "l_coefficient",
        "l_exponent",
        "n_opt_coefficient",
        "n_opt_exponent",
        "d_opt_coefficient",
        "d_opt_exponent",
    )
    values = dict(zip(names, (3.5, -0.08, 2e8, 0.6, 4e10, 0.4), strict=True))
    curve = {"params": [1e7, 1e8, 1e9], "tokens": [1e10, 1e9, 1e8], "loss": [3.2, 3.0, 3.3]}
    line = {"params": [1e7, 1e8, 1e9], "loss": [3.2, 3.0, 3.3]}
    minimum = {"params": 9e7, "tokens": 1.1e9, "loss": 2.99}
    curves = [
        {"compute": 0.1, **curve, "fitted": line, "minimum": minimum, "edge": False, "rule": None},
        {"compute": 1.0, **curve, "fitted": line, "minimum": None, "edge": True, "rule": "budget: minimum at an edge"},
        {"compute": 2.0, **curve, "fitted": None, "minimum": None, "edge": False, "rule": "budget: fewer than 4 sizes"},
    ]
    draws = {name: [value, value * 1.01, value * 0.99] for name, value in values.items()}
    minima = {"compute": [0.1, 1.0], "loss": [4.2, 3.5], "params": [5e7, 2e8], "tokens": [1.6e10, 4e10]}
    return group("isoflop", values, draws) | {"minima": minima, "curves": curves, "points": {}, "starts": None}


def group(law: str, values: dict[str, float], draws: dict[str, list[float]] | None = None) -> dict[str, Any]:
    row = {"se": None, "low": None, "high": None, "at_bound": False, "identified": True}
    return {
        "group": "a", "law": law, "formula": law, "parameters": {k: {"value": v, **row} for k, v in values.items()},
        "derived": {}, "objective": {"name": "root mean square", "value": 0.1}, "starts": None, "classical": None,
        "points_used": 3, "dropped": [], "warnings": [], "points": {}, "draws": draws or {},
        "bootstrap": {"replicates": 3, "settled": 3, "units": 3, "by": "point"},
    }  # fmt: skip


def test_isoflop_curves_have_points_lines_and_minima_where_they_are() -> None:
    result = {"groups": [envelope_group()]}
    assert [mark.extra["compute_pflop_s_days"] for mark in marks(result, "isoflop", "points")] == [0.1, 1.0, 2.0]
    assert len(marks(result, "isoflop", "curve")) == 2
    (minimum,) = marks(result, "isoflop", "minimum")
    assert (minimum.x, minimum.y) == ([9e7], [2.99])
    assert marks(result, "isoflop", "points")[1].extra["left_out"] == "budget: minimum at an edge"
    (line,), (band,) = marks(result, "n-opt", "line"), marks(result, "n-opt", "band")
    assert (line.x[0], line.x[-1]) == pytest.approx((0.1, 1.0))
    assert line.y == pytest.approx(2e8 * np.array(line.x) ** 0.6, rel=1e-5)
    assert len(band.low) == len(line.x)


def test_scores_repeats_and_the_pac_law_are_drawn_from_their_formulas() -> None:
    bpb = [1.2, 1.0, 0.8, 0.6]
    sigmoid = group("sigmoid", {"low": 0.25, "span": 0.7, "slope": 8.0, "midpoint": 0.8})
    accuracy = [0.25 + 0.7 / (1 + np.exp(8 * (x - 0.8))) for x in bpb]
    sigmoid["points"] = {"row": [1, 2, 3, 4], "bpb": bpb, "accuracy": accuracy, "residual": [0.0] * 4}
    (line,) = marks({"groups": [sigmoid]}, "accuracy", "line", "linear")
    assert line.y[0] == pytest.approx(accuracy[-1], rel=1e-4)
    assert line.y[-1] == pytest.approx(accuracy[0], rel=1e-4)
    assert marks({"groups": [sigmoid]}, "residual-predicted", "points", "linear")[0].x == pytest.approx(
        accuracy, rel=1e-5
    )

    overtrain = group(
        "overtrain", {"E": 1.8, "a": 160.0, "a_prime": 360.0, "b": -0.27, "E_error": 0.86, "k": 2.2, "g": 0.7}
    )
    overtrain["points"] = {"row": [1, 2, 3], "n": [1e7, 1e8, 1e9], "d": [1e9] * 3, "loss": [4.0, 3.0, 2.5],
                           "error": [None, 0.6, 0.5], "residual": [0.0] * 3}  # fmt: skip
    (line,) = marks({"groups": [overtrain]}, "error", "line")
    assert (line.x[0], line.x[-1]) == (2.5, 3.0)  # the row without an error is not part of it
    assert line.y[0] == pytest.approx(0.86 - 2.2 * np.exp(-0.7 * 2.5), rel=1e-5)
    (frontier_line,) = marks({"groups": [overtrain]}, "loss-compute", "line")
    n = np.geomspace(1e6, 1e11, 20_001)
    m = frontier_line.x[9] * PFLOP_S_DAY / 6 / n**2
    assert frontier_line.y[9] == pytest.approx(
        (1.8 + 160 * n**-0.27 + 360 * 6**-0.135 * (m * n) ** -0.27).min(), rel=1e-4
    )

    repeat = group("repeat", {"E": 1.8, "A": 400.0, "B": 400.0, "alpha": 0.3, "beta": 0.3, "r_d": 15.4, "r_n": 5.3})
    repeat["points"] = {"n": [1e8] * 2, "d": [1e9, 4e10], "unique": [1e9] * 2, "loss": [3.0, 2.8]}
    (line,) = marks({"groups": [repeat]}, "epochs", "line")
    assert (line.x[-1], line.y[-1]) == pytest.approx((40, 1 + 15.4 * (1 - np.exp(-39 / 15.4))), rel=1e-4)

    pac = group("pac", {"coefficient": 30.0, "exponent": 0.6})
    pac["minima"] = {"params": [30 * d**0.6 for d in (1e9, 1e10, 1e11)], "tokens": [1e9, 1e10, 1e11]}
    (band,) = marks({"groups": [pac]}, "pac", "band")
    (line,) = marks({"groups": [pac]}, "pac", "line")
    slope = np.diff(np.log([band.low[0], band.low[16], band.low[32]])) / np.diff(
        np.log([band.x[0], band.x[16], band.x[32]])
    )
    assert slope == pytest.approx([0.72, 0.44], rel=1e-3)  # the lower side is the steeper exponent before the middle
    assert band.low[16] == pytest.approx(line.y[16], rel=1e-4)
    (residual,) = marks({"groups": [pac]}, "residual-pac", "points")
    assert residual.y == pytest.approx([0, 0, 0], abs=1e-4)
    curve = {
        "tokens": 1e9,
        "params": [1e6, 1e7],
        "loss": [3.2, 3.0],
        "minimum": {"params": 1e7, "loss": 3.0},
        "edge": False,
    }
    pac["curves"] = [curve, curve | {"minimum": None}]
    assert [mark.x for mark in marks({"groups": [pac]}, "pac-sizes", "minimum")] == [[1e7]]


def test_a_line_without_resamples_has_no_band_and_odd_resamples_are_left_out() -> None:
    values = {"E": 1.0, "A": 100.0, "B": 100.0, "alpha": 0.3, "beta": 0.3}
    points = {"n": [1e8, 1e9], "d": [1e9, 1e11], "loss": [3.0, 2.0]}
    alone = group("chinchilla", values) | {"points": points}
    assert not marks({"groups": [alone]}, "n-opt", "band")
    odd = {name: [value, value, value] for name, value in values.items()} | {"alpha": [0.3, 0.3, -0.3]}
    drawn = group("chinchilla", values, odd) | {"points": points}
    (band,), (line,) = marks({"groups": [drawn]}, "n-opt", "band"), marks({"groups": [drawn]}, "n-opt", "line")
    assert band.low == pytest.approx(line.y) == band.high


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., str]:
    def written(result: dict[str, Any]) -> str:
        return write_fit_report(result, tmp_path / "page.html").read_text(encoding="utf-8")

    return written


def test_the_page_says_where_numbers_come_from_and_what_was_left_out(
    both: dict[str, Any], page: Callable[..., str]
) -> None:
    path = Path(both["source"])
    text = page(both)
    body = text.split("<script>")[0]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for words in (
        digest,
        "points.csv",
        "n = params",
        "where: loss &lt; 4",
        "identified",
        "64 of",
        "C = 6 N D",
        "TNL",
        "linscale 0.",
    ):
        assert words in body, words
    assert str(path.parent) not in text
    assert len(text) < 2_000_000
    assert (
        body.count(">0.647<") == 1
    )  # the paper's exponent of N_opt beside that of TNL, and nothing beside the other's
    assert page(both) == text
    power = page(fitted(path, "power", {"c": "6nd"}))
    assert "Published: Shen et al. 2024" in power
    assert "−0.0768" in power


def test_what_changed_choices_do_stands_in_tables(noisy: dict[str, Any], page: Callable[..., str]) -> None:
    result = noisy
    row = {"value": 0.3, "low": 0.2, "high": 0.4}
    result["sensitivity"] = [
        {"changed": "nothing", "group": "tnl", "points_used": 36, "parameters": {"alpha": row}},
        {"changed": "loss = l2", "group": "tnl", "refused": "too few"},
    ]
    result["groups"][0] |= {
        "sensitivity": [{"minimum": "akima", "budgets": 5, "l_exponent": -0.0712, "n_opt_exponent": None}],
        "compute": {"definition": "paper", "formula": "closed form", "k": 6.0, "kappa": 0.0, "largest_deviation": 0.0},
        "verdict": "below [0.44, 0.72]",
    }
    result |= {"definitions": {"c": "closed form"}, "notes": ["tokens are not known"]}
    body = page(result).split("<script>")[0]
    for words in (
        "loss = l2",
        "too few",
        "0.2 to 0.4",
        "akima",
        "−0.0712",
        "paper: closed form",
        "tokens are not known",
        "below [0.44, 0.72]",
    ):
        assert words in body, words


def test_warnings_and_refusals_stand_at_the_top(noisy: dict[str, Any], page: Callable[..., str]) -> None:
    result = noisy
    result["groups"][0]["warnings"] = [{"name": "at_bound", "text": "a parameter is on its bound", "detail": "E"}]
    result["refused"] = [{"group": "small", "reason": "3 points: needs 6"}]
    body = page(result)
    aside = body[body.index("<aside") : body.index("</aside>")]
    assert "A parameter is on its bound: <strong>TNL (E)</strong> <code>at_bound</code>" in aside
    assert "3 points: needs 6: <strong>small</strong>" in aside
    assert body.index("<aside") < body.index('class="plot')


def test_names_stay_text(page: Callable[..., str]) -> None:
    found = envelope_group() | {"group": HOSTILE, "formula": HOSTILE, "dropped": [{"row": 1, "rule": HOSTILE}]}
    found["warnings"] = [{"name": HOSTILE, "text": HOSTILE, "detail": HOSTILE}]
    result = {"source": HOSTILE, "columns": {"c": HOSTILE}, "settings": {"loss": HOSTILE}, "units": UNITS,
              "dropped": [], "groups": [found], "refused": [{"group": HOSTILE, "reason": HOSTILE}]}  # fmt: skip
    text = page(result)
    assert "<img" not in text
    data = text.split('id="figures">')[1].split("</script>")[0]
    assert json.loads(data)["groups"][0]["id"] == HOSTILE


def test_a_study_s_own_fits_can_be_drawn_too(page: Callable[..., str]) -> None:
    found = envelope_group()
    for key in ("minima", "curves", "draws", "starts", "classical", "points"):
        del found[key]
    compute = np.geomspace(0.1, 1, 50).tolist()
    band = {"compute": compute} | {
        f"{k}_{e}": [1.0] * 50 for k in ("loss", "params", "tokens") for e in ("low", "high")
    }
    envelope = {"compute": compute, "loss": [3.0] * 50, "params": [1e8] * 50, "tokens": [1e9] * 50}
    found |= {"band": band, "envelope": envelope, "bootstrap": {"replicates": 9, "fitted": 9, "distinct_resamples": 1},
              "dropped": [{"rule": "edge", "count": 7}],
              "objective": {"name": "rms", "value": [0.1, 0.2, 0.3]}}  # fmt: skip
    text = page({"source": "runs/x/fits.json", "columns": {}, "settings": {}, "units": UNITS, "dropped": [],
                 "groups": [found], "refused": []})  # fmt: skip
    figures = {f["id"]: f for f in json.loads(text.split('id="figures">')[1].split("</script>")[0])["figures"]}
    assert [mark["kind"] for mark in figures["n-opt"]["marks"]] == ["band", "line", "faint"]


def test_a_target_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = {
        "source": "x",
        "columns": {},
        "settings": {},
        "units": UNITS,
        "dropped": [],
        "groups": [envelope_group()],
        "refused": [],
    }
    with pytest.raises(UserError, match="cannot write the report"):
        write_fit_report(result, tmp_path / "file" / "page.html")


def test_captions_speak_of_what_is_there_alone(exact: dict[str, Any], page: Callable[..., str]) -> None:
    closed = page({"source": "t.csv", "columns": {}, "settings": {}, "units": UNITS, "dropped": [], "refused": [],
                   "groups": [envelope_group() | {"starts": None, "classical": None}]})  # fmt: skip
    assert "Diamonds: minima of the budgets" in closed
    assert "profile interval" not in closed
    assert "Starts agree" not in closed
    surface = page({**exact, "source": "t.csv"})
    assert "the profile interval of the likelihood with all others fitted anew" in surface
    assert "Starts agree" in surface
    assert "Diamonds" not in surface
