"""The law of over-training and of errors downstream, as a table gives it, and its published answers."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from linscale.config import UserError
from linscale.study.table.fit import TABLE_LAWS, fit_points
from linscale.study.table.group import PointFit
from linscale.study.table.overtrain import downstream, overtrain
from linscale.study.table.points import read_points
from linscale.study.table.surface_fit import Loss

ROOT = Path(__file__).parents[3]
SCALING = next((p for at in (ROOT, ROOT.parent) if (p := at / "shared" / "data" / "scaling").is_dir()), Path("none"))
published = pytest.mark.skipif(not SCALING.is_dir(), reason="the published points are not on this machine")
TRUTH, ERROR = (1.84, 166.0, 367.0, -0.27), (0.86, 2.2, 0.7)


def fit(path: Path, **settings):
    law = TABLE_LAWS["overtrain"]
    points = read_points(path, columns={}, needed=law.roles, optional=law.optional)
    return fit_points(points, PointFit("overtrain", **{"loss": Loss("l2"), "bootstrap": 0, **settings}))["groups"][0]


def write(path: Path, errors: int | None, scale: float = 1.0) -> Path:
    """30 runs with half a percent of noise, the last `errors` of them with an error; None for no such column."""
    random = np.random.default_rng(0)
    lines = ["run,params,tokens,loss" + ("" if errors is None else ",error")]
    for row in range(30):
        n, d = 1e7 * 4 ** (row % 5), 2e8 * 5 ** (row // 5)
        loss = overtrain(n, d, *TRUTH) * np.exp(0.005 * random.normal())
        error = scale * (downstream(loss, *ERROR) + 0.003 * random.normal())
        cell = "" if errors is None else f",{error if row >= 30 - errors else ''}"
        lines.append(f"r{row},{n},{d},{loss}{cell}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_losses_and_errors_of_one_table(tmp_path):
    group = fit(write(tmp_path / "p.csv", 20), bootstrap=200, by="run")
    json.dumps(group, allow_nan=False)
    assert list(group["parameters"]) == ["E", "a", "a_prime", "b", "E_error", "k", "g"] == list(group["draws"])
    for (name, each), truth in zip(group["parameters"].items(), TRUTH + ERROR, strict=True):
        assert each["low"] < truth < each["high"], name
        assert each["identified"], name
    draws = {name: np.array(values) for name, values in group["draws"].items()}
    loss = overtrain(1e9, 1e11, *(draws[name] for name in ("E", "a", "a_prime", "b")))
    low, high = np.percentile(downstream(loss, *(draws[name] for name in ("E_error", "k", "g"))), [2.5, 97.5])
    assert low < downstream(overtrain(1e9, 1e11, *TRUTH), *ERROR) < high < low + 0.1
    assert group["downstream"]["points_used"] == 20
    assert group["points"]["error"][:11].count(None) == 10
    assert group["points"]["error_residual"][9] is None
    best = group["derived"]["tokens_per_parameter"]["value"]
    assert best == pytest.approx((367 / 166) ** (1 / 0.27) / 6**0.5, rel=0.2)
    n, d = (group["derived"][f"{each}_opt_coefficient"]["value"] for each in "nd")
    assert d / n == pytest.approx(best)
    assert group["derived"]["n_opt_exponent"]["value"] == 0.5


@pytest.mark.slow
def test_tables_without_errors_and_with_too_few(tmp_path):
    assert list(fit(write(tmp_path / "p.csv", None))["parameters"]) == ["E", "a", "a_prime", "b"]
    texts = write(tmp_path / "t.csv", 30)
    lines = [line.rsplit(",", 1)[0] for line in texts.read_text().splitlines()[1:]]
    texts.write_text("run,params,tokens,loss,error\n" + "".join(f"{line},out of memory\n" for line in lines))
    assert list(fit(texts)["parameters"]) == ["E", "a", "a_prime", "b"]
    group = fit(write(tmp_path / "q.csv", 3))
    assert list(group["parameters"]) == ["E", "a", "a_prime", "b"]
    assert {each["name"]: each["detail"] for each in group["warnings"]} == {"few_errors": "3"}


def test_bad_tables(tmp_path):
    with pytest.raises(UserError, match=r"error is above 1 in row 11 \(7\d.*divide percentages by 100"):
        fit(write(tmp_path / "p.csv", 20, scale=100.0))
    path = write(tmp_path / "q.csv", 30)
    lines = path.read_text().splitlines()
    (tmp_path / "few.csv").write_text("\n".join([lines[0], lines[1], lines[7], lines[13], lines[20]]))
    with pytest.raises(UserError, match="4 points: the overtrain law has 4 parameters and needs at least 5"):
        fit(tmp_path / "few.csv")
    (tmp_path / "one.csv").write_text("\n".join([lines[0], *lines[1::5]]))
    with pytest.raises(UserError, match="n has 1 distinct values: the overtrain law needs at least 2"):
        fit(tmp_path / "one.csv")
    path.write_text(path.read_text().replace("\n", ",x\n").replace("error,x", "error,y").replace("0.8", "-0.8"))
    with pytest.raises(UserError, match="error is not a number from 0 in row"):
        fit(path)


@pytest.mark.slow
@published
def test_the_published_answers_of_redpajama_come_back(tmp_path):
    with open(SCALING / "gadre" / "runs.csv", encoding="utf-8") as file:
        runs = {row["name"].removeprefix("rpj-"): row for row in csv.DictReader(file) if row["dataset"] == "rpj"}
    five = [f"{shape}-1.0" for shape in ("d=96_l=8_h=4", "d=512_l=8_h=4", "d=576_l=24_h=8", "d=1024_l=24_h=8")]
    five.append("d=96_l=8_h=4-16.0")

    def fitted(names: list[str]) -> dict[str, float]:
        columns = ("params", "tokens", "loss_c4_val", "err_avg17")
        lines = [",".join(runs[name][column] for column in columns) for name in names]
        (tmp_path / "p.csv").write_text("params,tokens,loss,error\n" + "\n".join(lines))
        group = fit(tmp_path / "p.csv", loss=Loss("l2", space="linear"))
        assert group["objective"]["value"] * 2 <= 4.256494e-4 or len(names) > 5
        return {name: each["value"] for name, each in group["parameters"].items()}

    loss_law = fitted(five)
    answers = {"a": 166.211, "a_prime": 366.687, "b": -0.272851, "E": 1.83665}
    assert {name: loss_law[name] for name in answers} == pytest.approx(answers, rel=1e-4)
    errors = fitted([*five, "open_lm_1b-1.0"])
    answers = {"k": 2.20649, "g": 0.714591, "E_error": 0.856992}
    assert {name: errors[name] for name in answers} == pytest.approx(answers, rel=1e-4)
    for name, of_loss, of_error in (("open_lm_1b-32.0", 0.7103, 3.6365), ("open_lm_7b-1.0", 0.7320, 0.0464)):
        row = {key: float(runs[name][key]) for key in ("params", "tokens", "loss_c4_val", "err_avg17")}
        loss = overtrain(row["params"], row["tokens"], *(loss_law[each] for each in ("E", "a", "a_prime", "b")))
        error = downstream(loss, *(errors[each] for each in ("E_error", "k", "g")))
        assert 100 * abs(loss / row["loss_c4_val"] - 1) == pytest.approx(of_loss, abs=1e-3)
        assert 100 * abs(error / row["err_avg17"] - 1) == pytest.approx(of_error, abs=1e-3)
