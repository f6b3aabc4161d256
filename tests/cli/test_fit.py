"""linscale fit as a user calls it."""

import json
from pathlib import Path

import numpy as np
import pytest

from linscale.cli import main
from linscale.study.table.overtrain import downstream, overtrain
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


@pytest.mark.slow
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


@pytest.fixture
def budgets(tmp_path: Path) -> str:
    """Seven sizes at five budgets, some 3% off what was planned, and FLOPs of their own."""
    random, lines = np.random.default_rng(0), ["params,tokens,flops,budget,loss"]
    for c in np.geomspace(1e18, 1e21, 5):
        for n in 0.55 * (c / 6) ** 0.45 * np.geomspace(0.25, 4, 7):
            d = c / 6 / n * np.exp(0.03 * random.normal())
            loss = chinchilla(n, d, 1.7, 400, 410, 0.34, 0.28) * np.exp(0.001 * random.normal())
            lines.append(f"{n},{d},{6 * n * d},{c:g},{loss}")
    path = tmp_path / "budgets.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_an_isoflop_law_from_the_command(budgets, tmp_path, capsys):
    assert main(["fit", budgets, "--law", "isoflop"]) == 2
    assert "choose --abscissa nominal" in capsys.readouterr().err
    out = tmp_path / "fit.json"
    words = ["fit", budgets, "--law", "isoflop", "--abscissa", "achieved", "--minimum", "cubic-log", "--irreducible"]
    assert main([*words, "--json", str(out), "--bootstrap", "100"]) == 0
    shown = capsys.readouterr().out
    assert "L = E + l_coefficient" in shown
    assert "minima: 5" in shown
    assert "with minimum akima: l_exponent" in shown
    assert "C is what the points achieved there" in shown
    written = json.loads(out.read_text())
    assert written["settings"]["abscissa"] == "achieved"
    assert written["settings"]["loss"] is None
    assert "tolerance" not in written["settings"]
    (group,) = written["groups"]
    row = group["parameters"]["n_opt_exponent"]
    assert row["low"] < 0.28 / 0.62 < row["high"]
    assert "minima: 5" not in capsys.readouterr().out


def test_a_pac_law_from_the_command(table, capsys):
    assert main(["fit", table, "--columns", "n=size", "--law", "pac", "--bootstrap", "50", "--tolerance", "3%"]) == 0
    shown = capsys.readouterr().out
    assert "N = coefficient * D^exponent" in shown
    assert "with tolerance 1.5%: exponent" in shown
    assert "the exponent's interval" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--law", "cubic"], "invalid choice 'cubic'"),
        ([], "no column for n; name it with --columns n=NAME"),
        (["--columns", "n=size", "--drop", "highest:31"], "5 points: the chinchilla law has 5 parameters"),
        (["--columns", "n=size", "--irreducible"], "irreducible: the chinchilla law has E already"),
        (["--columns", "n=size", "--no-excess"], "no-excess: an option of --law repeat, not of chinchilla"),
        (
            ["--columns", "n=size", "--chance", "0.25"],
            "chance: the chinchilla law does not read it; it is an option of --law sigmoid",
        ),
        (["--law", "sigmoid", "--chance", "25"], "chance = 25.0: expected an accuracy from 0 to below 1, as in 0.25"),
        (["--law", "sigmoid", "--columns", "bpb=loss"], "no column for accuracy"),
        (["--law", "repeat", "--columns", "n=size"], "no column for unique; name it with --columns unique=NAME"),
        (["--columns", "n=size", "--bootstrap", "-1"], "expected numbers that are not negative"),
        (["--columns", "n=size", "--by", "run"], "no column tells runs apart"),
        (["--columns", "n=size", "--loss", "huber:0"], "loss = 'huber:0': expected huber:DELTA"),
        (["--columns", "n=size", "--minimum", "akima"], "minimum: the chinchilla law does not read it"),
        (["--columns", "n=size", "--law", "pac", "--tolerance", "x"], "tolerance = 'x': expected nats per token"),
        (["--columns", "n=size", "--law", "pac", "--irreducible"], "the pac law has no form with E"),
        (["--columns", "n=size", "--law", "pac", "--loss", "l2"], "leave --loss and --space out"),
        (["--columns", "n=size", "--law", "isoflop"], "or --columns c=6nd"),
        (["--columns", "n=size,c=6nd", "--law", "envelope"], "--columns run=NAME"),
        (["--columns", "n=size,weight=loss", "--law", "pac"], "weight: the pac law does not weight its points"),
        (["--columns", "n=size", "--law", "pac", "--by", "seed"], "this law is resampled by run, point or budget"),
        (["--columns", "n=size", "--law", "pac", "--seed-noise", "-1"], "seed_noise = -1.0: expected"),
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


@pytest.mark.slow
def test_every_parameter_of_every_law_is_shown(tmp_path, capsys):
    """Also `a`, which is a derived number of other laws and the same there as n_opt_exponent."""
    lines = ["params,tokens,unique_tokens,loss,error,bits_per_byte,accuracy"]
    for n in np.geomspace(1e7, 1e10, 5):
        for d in np.geomspace(1e9, 1e12, 5):
            loss = overtrain(n, d, 1.8, 166, 367, -0.27)
            error = downstream(loss, 0.86, 2.2, 0.7)
            lines.append(f"{n},{d},{d / 8},{loss},{error},{loss / 3},{1 - error}")
    path = tmp_path / "p.csv"
    path.write_text("\n".join(lines))
    for words, names, formula in (
        (["overtrain"], "E a a_prime b E_error k g tokens_per_parameter", "error = E_error - k exp(-g L)"),
        (["repeat", "--no-excess"], "E A B alpha beta r_d n_opt_exponent", "N' = N"),
        (["sigmoid", "--chance", "0.1"], "low span slope midpoint high", "low = 0.1"),
    ):
        assert main(["fit", str(path), "--bootstrap", "0", "--law", *words]) == 0
        shown = capsys.readouterr().out
        for name in names.split():
            assert f"\n  {name} " in shown or f"\n   {name} " in shown or f" {name} " in shown, name
        assert formula in " ".join(shown.split())


@pytest.mark.slow
def test_a_page_of_the_fit(table, tmp_path, capsys):
    out = tmp_path / "new" / "fit.html"
    assert main(["fit", table, "--columns", "n=size", "--bootstrap", "20", "--html", str(out)]) == 0
    assert capsys.readouterr().out.endswith(f"page: {out}\n")
    page = out.read_text(encoding="utf-8")
    assert "Chinchilla law of points.csv" in page
    assert "residual-predicted" in page
