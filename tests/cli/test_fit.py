"""linscale fit as a user calls it."""

import json
from pathlib import Path

import numpy as np
import pytest

from linscale.cli import main
from linscale.study.table.surfaces import chinchilla, power


@pytest.fixture
def table(tmp_path: Path) -> str:
    random = np.random.default_rng(0)
    lines = ["size,tokens,loss"]
    for n in np.geomspace(1e7, 1e10, 6):
        for d in np.geomspace(1e9, 1e12, 6):
            lines.append(f"{n},{d},{chinchilla(n, d, 1.7, 400, 410, 0.34, 0.28) * np.exp(0.002 * random.normal())}")
    path = tmp_path / "points.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_a_table_for_people_and_json_for_machines(table, tmp_path, capsys):
    out = tmp_path / "deep" / "fit.json"
    words = ["fit", table, "--columns", "n=size", "--bootstrap", "50", "--drop", "highest:2", "--where", "loss < 9"]
    assert main([*words, "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "all: L = E + A / N^alpha + B / D^beta" in shown
    assert "n_opt_exponent" in shown
    assert "34 points" in shown
    assert "left out by drop: highest:2: 2: row 1, 2" in shown
    written = json.loads(out.read_text())
    alpha = written["groups"][0]["parameters"]["alpha"]
    assert alpha["low"] < alpha["value"] < alpha["high"]
    assert alpha["value"] == pytest.approx(0.34, abs=0.03)
    assert main([*words, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == written


def test_a_power_law_of_derived_compute_in_the_units_of_the_study(tmp_path, capsys):
    n = np.geomspace(1e7, 1e10, 12)
    loss = power(6 * n * 20 * n / 8.64e19, 2.2, -0.15, 1.5)
    path = tmp_path / "p.csv"
    path.write_text("params,tokens,loss\n" + "".join(f"{a},{20 * a},{b}\n" for a, b in zip(n, loss, strict=True)))
    words = [
        "fit",
        str(path),
        "--law",
        "power",
        "--columns",
        "c=6nd",
        "--irreducible",
        "--bootstrap",
        "0",
        "--json",
        "-",
    ]
    assert main(words) == 0
    parameters = json.loads(capsys.readouterr().out)["groups"][0]["parameters"]
    found = {name: each["value"] for name, each in parameters.items()}
    assert found == pytest.approx({"E": 1.5, "l_coefficient": 2.2, "l_exponent": -0.15}, rel=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--law", "cubic"], "invalid choice 'cubic'"),
        ([], "no column for n; name it with --columns n=NAME"),
        (["--columns", "n=size", "--drop", "highest:31"], "5 points: the chinchilla law has 5 parameters"),
        (["--columns", "n=size", "--irreducible"], "irreducible: the chinchilla law has E already"),
        (["--columns", "n=size", "--bootstrap", "-1"], "expected numbers that are not negative"),
        (["--columns", "n=size", "--by", "run"], "no column tells runs apart"),
        (["--columns", "n=size", "--loss", "huber:0"], "loss = 'huber:0': expected huber:DELTA"),
    ],
)
def test_bad_input_is_one_line(table, capsys, words, message):
    assert main(["fit", table, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_file_that_is_not_there(capsys):
    assert main(["fit", "nope.csv"]) == 2
    assert "nope.csv: no such file" in capsys.readouterr().err


def test_a_page_of_the_fit(table, tmp_path, capsys):
    out = tmp_path / "new" / "fit.html"
    assert main(["fit", table, "--columns", "n=size", "--bootstrap", "20", "--html", str(out)]) == 0
    assert capsys.readouterr().out.endswith(f"page: {out}\n")
    page = out.read_text(encoding="utf-8")
    assert "Chinchilla law of points.csv" in page
    assert "residual-predicted" in page
