"""Accuracy from bits per byte: planted truths, chance, bad tables, and the published ladder."""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from linscale.config import UserError
from linscale.study.table.fit import TABLE_LAWS, fit_points
from linscale.study.table.form import FormProblem
from linscale.study.table.form_fit import minimum
from linscale.study.table.group import PointFit
from linscale.study.table.options import LawOptions
from linscale.study.table.points import read_points
from linscale.study.table.sigmoid import sigmoid, sigmoid_form, sigmoid_starts
from linscale.study.table.surface_fit import Loss, Problem
from linscale.study.table.surface_fit import fit as surface_minimum
from linscale.study.table.surfaces import LAWS, chinchilla
from tests.lazy import Lazy

optimize = Lazy("scipy.optimize")

ROOT = Path(__file__).parents[3]
SCALING = next((p for at in (ROOT, ROOT.parent) if (p := at / "shared" / "data" / "scaling").is_dir()), Path("none"))
published = pytest.mark.skipif(not SCALING.is_dir(), reason="the published points are not on this machine")
TRUTH = (0.25, 0.7, 4.0, 0.9)


def write(path: Path, bpb: np.ndarray, accuracy: np.ndarray) -> Path:
    rows = "".join(f"{x},{y}\n" for x, y in zip(bpb, accuracy, strict=True))
    path.write_text("bits_per_byte,accuracy\n" + rows)
    return path


def planted(path: Path, noise: float = 0.01) -> Path:
    bpb = np.linspace(0.5, 2.2, 60)
    return write(path, bpb, sigmoid(bpb, *TRUTH) + noise * np.random.default_rng(0).normal(size=60))


def fit(path: Path, law: str = "sigmoid", columns: dict[str, str] | None = None, where: str = "", **settings):
    points = read_points(path, columns=columns or {}, needed=TABLE_LAWS[law].roles, where=where)
    return fit_points(points, PointFit(law, **{"loss": Loss("l2", space="linear"), "bootstrap": 0, **settings}))[
        "groups"
    ][0]


def test_a_planted_sigmoid_is_within_its_intervals(tmp_path):
    group = fit(planted(tmp_path / "p.csv"), bootstrap=200)
    json.dumps(group, allow_nan=False)
    for (name, each), value in zip(group["parameters"].items(), TRUTH, strict=True):
        assert each["low"] - each["se"] < value < each["high"] + each["se"], name
        assert each["identified"], name
    assert group["derived"]["high"]["low"] < 0.95 < group["derived"]["high"]["high"]
    assert group["objective"]["name"].endswith("of residuals of accuracy")
    assert group["warnings"] == []


@pytest.mark.slow
def test_the_low_end_at_chance(tmp_path):
    path = planted(tmp_path / "p.csv")
    free, held = fit(path, bootstrap=100), fit(path, bootstrap=100, options=LawOptions(chance=0.25))
    assert list(held["parameters"]) == ["low", "span", "slope", "midpoint"] == list(held["draws"])
    low = held["parameters"]["low"]
    assert (low["value"], low["se"], low["low"], low["high"]) == (0.25, 0.0, 0.25, 0.25)
    assert held["parameters"]["slope"]["se"] < free["parameters"]["slope"]["se"]
    assert held["objective"]["value"] >= free["objective"]["value"]
    assert fit(path, options=LawOptions(chance=0.25))["parameters"]["low"]["se"] is None
    high = fit(path, options=LawOptions(chance=0.4))
    assert high["parameters"]["span"]["value"] + 0.4 <= 1
    assert high["objective"]["value"] > 2 * free["objective"]["value"]


@pytest.mark.slow
def test_what_does_not_saturate_is_said(tmp_path):
    bpb = np.linspace(0.4, 0.9, 40)
    accuracy = sigmoid(bpb, *TRUTH) + 0.01 * np.random.default_rng(1).normal(size=40)
    low = fit(write(tmp_path / "p.csv", bpb, accuracy))
    assert not low["parameters"]["low"]["identified"]
    assert {"not_identified", "at_bound"} & {each["name"] for each in low["warnings"]}
    bpb = np.linspace(1.6, 2.2, 40)
    accuracy = sigmoid(bpb, *TRUTH) + 0.01 * np.random.default_rng(1).normal(size=40)
    high = fit(write(tmp_path / "p.csv", bpb, accuracy))["parameters"]["span"]
    assert high["profile"][0] < 0.04  # the foot of the curve says little of its top, which cannot be above 1
    assert 0.7 < high["profile"][1] < 0.8


def test_bad_tables(tmp_path):
    bpb = np.linspace(0.5, 2.2, 20)
    path = tmp_path / "p.csv"
    with pytest.raises(UserError, match=r"accuracy is above 1 in row 1 \(8\d.* divide percentages by 100"):
        fit(write(path, bpb, 100 * sigmoid(bpb, *TRUTH)))
    with pytest.raises(UserError, match=r"accuracy is not a number from 0 in row 16 \(-0"):
        fit(write(path, bpb, sigmoid(bpb, *TRUTH) - 0.27))
    with pytest.raises(UserError, match="accuracy does not fall with bits per byte"):
        fit(write(path, bpb, 1 - sigmoid(bpb, *TRUTH)))
    with pytest.raises(UserError, match="4 points: the sigmoid law has 4 parameters and needs at least 5"):
        fit(write(path, bpb[::6], sigmoid(bpb[::6], *TRUTH)))
    with pytest.raises(UserError, match="bpb has 2 distinct values: the sigmoid law needs at least 3"):
        fit(write(path, np.repeat([1.0, 2.0], 5), np.repeat([0.6, 0.3], 5)))
    zero = write(path, bpb, np.maximum(sigmoid(bpb, -0.1, 0.9, 4.0, 0.9), 0))
    assert fit(zero)["parameters"]["low"]["at_bound"]
    with pytest.raises(UserError, match=r"accuracy is 0 in row 1[0-9], which has no logarithm: use --space linear"):
        fit(zero, loss=Loss())
    with pytest.raises(UserError, match="drop = highest:2: the law reads no loss to rank by"):
        fit(zero, drop=("highest", 2))


def averaged(values: list[float]) -> np.ndarray:
    """The moving average of five that the publication takes."""
    return np.array([np.mean(values[max(0, at - 4) : at + 1]) for at in range(len(values))])


def as_published(x: np.ndarray, a: float, x_0: float, k: float, b: float) -> np.ndarray:
    return a / (1 + np.exp(-k * (x - x_0))) + b


@pytest.mark.slow
@published
def test_the_published_accuracies_of_the_olmo_ladder_come_back(tmp_path):
    """Step 2, and chained: bits per byte by the chinchilla law, then the sigmoid. (0, 1) is a point of the authors."""
    folder = SCALING / "olmo-ladder"
    with open(folder / "ladder_checkpoints.csv", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: float(row["tokens"]))
    answers = {}
    for step in ("step2", "chained", "step1"):
        with open(folder / f"published_{step}_main.csv", encoding="utf-8") as file:
            answers[step] = {row["Task"]: float(row["Pred"]) for row in csv.DictReader(file)}
    sizes = itertools.product(("190M", "370M", "760M", "1B"), ("1xC", "2xC", "5xC", "10xC"))
    runs = [[row for row in rows if row["run"] == "-".join(each)] for each in sizes]
    target = [row for row in rows if row["run"] == "peteish13_eval_final"]
    assert len(answers["step2"]) == 8
    for task, answer in answers["step2"].items():
        points, ends = [(1e-12, 1.0)], []
        for run in runs:
            bpb, accuracy = ([float(row[f"{task}.{each}"]) for row in run] for each in ("bpb", "acc"))
            skipped = int(np.ceil(0.1 * len(run)))
            points += zip(averaged(bpb[skipped:]), averaged(accuracy[skipped:]), strict=True)
            ends.append((run[-1]["params"], run[-1]["tokens"], np.mean(bpb[-5:])))
        x, y = np.array(points).T
        problem = FormProblem(sigmoid_form(x, None), Loss("l2", space="linear"), y)
        second = minimum(problem, sigmoid_starts(problem, x, None)[::3])
        law = problem.form.numbers(second.vector)
        begin, bounds = (-0.75, 0.9, 3.0, 1.0), ([-1, 0, 0, 0], [0, np.inf, np.inf, 1])
        theirs, _ = optimize.curve_fit(as_published, x, y, p0=begin, bounds=bounds)
        assert second.objective <= ((as_published(x, *theirs) - y) ** 2).sum() / 2 * (1 + 1e-6)
        bits = averaged([float(row[f"{task}.bpb"]) for row in target])[-1]
        assert sigmoid(bits, *law) == pytest.approx(answer, abs=1e-5), task
        n, d, values = np.array(ends, dtype=float).T
        ladder = Problem(LAWS["chinchilla"], Loss(), np.array([n, d]), values)
        first = ladder.numbers(surface_minimum(ladder).vector)
        bits = chinchilla(float(target[-1]["params"]), float(target[-1]["tokens"]), *first)
        assert bits == pytest.approx(answers["step1"][task], rel=3e-4)
        assert sigmoid(bits, *law) == pytest.approx(answers["chained"][task], rel=1e-3), task
        if task == "csqa_val_5shot":
            lines = ["params,tokens,bits_per_byte", *(",".join(map(str, end)) for end in ends)]
            (tmp_path / "bits.csv").write_text("\n".join(lines))
            group = fit(tmp_path / "bits.csv", "chinchilla", columns={"loss": "bits_per_byte"}, loss=Loss())
            assert {each["name"]: each["detail"] for each in group["warnings"]}["at_bound"] == "E"


def test_settings_say_what_the_residuals_are_of(tmp_path):
    points = read_points(planted(tmp_path / "p.csv"), columns={}, needed=("bpb", "accuracy"))
    result = fit_points(points, PointFit("sigmoid", Loss("l2", space="linear"), bootstrap=0))
    assert result["settings"]["loss"] == result["groups"][0]["objective"]["name"]
    assert "embeddings" not in str(result["units"])
