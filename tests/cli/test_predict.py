"""linscale predict and linscale compare as a user calls them."""

import json

import numpy as np
import pytest

from linscale.cli import main
from linscale.config import UserError, amount, human
from linscale.study.table.surfaces import chinchilla

TRUTH = (1.7, 400.0, 410.0, 0.34, 0.28)


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two groups of 36 runs with 0.2% noise, llama with an A that is 10% larger."""
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("fit")
    lines = ["arch,params,tokens,loss"]
    for arch, larger in (("llama", 1.1), ("tnl", 1.0)):
        for n in np.geomspace(1e7, 1e10, 6):
            for d in np.geomspace(1e9, 1e12, 6):
                loss = chinchilla(n, d, 1.7, 400 * larger, 410, 0.34, 0.28) * np.exp(0.002 * random.normal())
                lines.append(f"{arch},{n},{d},{loss}")
    (folder / "points.csv").write_text("\n".join(lines) + "\n")
    words = ["fit", str(folder / "points.csv"), "--group", "arch", "--bootstrap", "200", "--loss", "l2"]
    assert main([*words, "--json", str(folder / "fit.json")]) == 0
    return str(folder / "fit.json")


def predicted(capsys, *words):
    assert main(["predict", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["predictions"]


@pytest.mark.slow
def test_a_prediction_holds_the_truth_and_says_which_interval_is_which(fit, capsys):
    (answer,) = predicted(capsys, fit, "--group", "tnl", "--params", "5B", "--tokens", "300B")
    loss, truth = answer["loss"], chinchilla(5e9, 3e11, *TRUTH)
    assert loss["new_low"] < loss["low"] < truth < loss["high"] < loss["new_high"]
    assert loss["high"] - loss["low"] < 0.01 * truth
    assert answer["warnings"] == []
    assert main(["predict", fit, "--flops", "1e24", "--loss", "1.9"]) == 0
    shown = capsys.readouterr().out
    assert "95% of the law" in shown
    assert "95% of a new run" in shown
    assert "llama (chinchilla): 1e+24 FLOPs" in shown
    assert "best N" in shown
    assert "FLOPs to reach 1.9" in shown
    assert "warning extrapolation: outside of what was fitted" in shown
    assert "the most, 6e+22" in shown
    assert "C = 6 N D FLOPs" in shown


def test_go_or_no_go(fit, capsys):
    at = ["--group", "tnl", "--flops", "1e21"]
    (answer,) = predicted(capsys, fit, *at)
    value, high = answer["loss"]["value"], answer["loss"]["high"]
    even, sure, never = (
        predicted(capsys, fit, *at, "--loss", str(loss))[0]["target"] for loss in (value, high * 1.01, 1.0)
    )
    assert 0.2 < even["probability"] < 0.8
    assert even["flops"]["low"] < 1e21 < even["flops"]["high"]
    assert (sure["probability"], sure["new_probability"]) == (1.0, 1.0)
    assert (never["probability"], never["flops"]["value"], never["reachable"]) == (0.0, None, 0.0)


def test_a_comparison_of_two_groups(fit, capsys):
    assert main(["compare", fit]) == 0
    shown = capsys.readouterr().out
    assert "tnl against llama" in shown
    assert "less compute" in shown
    assert main(["compare", fit, "--at-loss", "2.6", "--at-flops", "1e21", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    (pair,) = result["pairs"]
    assert [row["at"] for row in pair["rows"]] == ["loss", "flops"]
    assert pair["rows"][0]["multiplier"]["low"] > 1
    assert main(["compare", fit, "--paper", "--group", "tnl,paper:tnl", "--baseline", "paper:tnl"]) == 0
    assert "tnl against paper:tnl" in capsys.readouterr().out  # and no emoji for :tnl:


def test_the_published_laws_alone(capsys):
    assert main(["compare", "--paper"]) == 0
    shown = capsys.readouterr().out
    assert "paper:llama overtakes at 2.32e+23 FLOPs (2.69e+03 PFLOP/s-days); outside of the compute" in shown
    assert "paper:hgrn2 against paper:llama" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "FIT"], "nothing asked: give --flops, or --params and --tokens"),
        (["predict", "FIT", "--flops", "lots"], "flops = 'lots': expected a positive number, as in 1e24, 7B or 300e9"),
        (["predict", "FIT", "--params", "7B"], "params alone say nothing of the loss: give --tokens or --flops too"),
        (["predict", "FIT", "--flops", "1e21", "--group", "gla"], "group = gla: no such group; expected one of llama"),
        (["predict", "nope.json", "--flops", "1e21"], "nope.json: no such file; expected the JSON"),
        (["compare"], "fits: name at least one JSON of linscale fit, or --paper"),
        (["compare", "FIT", "--group", "tnl"], "tnl: one group has nothing to be compared with"),
        (["compare", "FIT", "--baseline", "gla"], "baseline = gla: no such group; expected one of llama, tnl"),
        (["compare", "FIT", "--at-loss", "3,x"], "at-loss = 'x': expected a positive number"),
        (["compare", "FIT", "--at-score", "0.5"], "at-score: its fit has no score: give --downstream"),
        (["compare", "FIT", "--downstream", "FIT"], "law = chinchilla: expected the JSON of --law sigmoid"),
    ],
)
def test_bad_input_is_one_line(fit, capsys, words, message):
    assert main([fit if word == "FIT" else word for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_numbers_as_people_write_them():
    texts = {"7B": 7e9, "300e9": 3e11, "1.5T": 1.5e12, "70M": 7e7, "4k": 4e3, "1e24": 1e24, " 1_000 ": 1e3, "2E": 2e18}
    assert {text: amount(text, "n") for text in texts} == pytest.approx(texts)
    for value in (1.0, 1234.0, 5.5e7, 3e10, 7e12, 4e16, 2e19, 6e22, 8e25):
        assert amount(human(value), "n") == pytest.approx(value, rel=0.005)
    for text in ("", "-1", "0", "B", "nan", "inf", "1e400", "7 x"):
        with pytest.raises(UserError, match=r"n = .*: expected a positive number"):
            amount(text, "n")


@pytest.mark.slow
def test_flops_of_the_table_are_those_of_the_best_size(tmp_path, capsys):
    """C = 20 N D instead of 6 N D: 1e21 FLOPs are spent as 3e20 of the others would be."""
    n, d = (each.ravel() for each in np.meshgrid(np.geomspace(1e7, 1e10, 5), np.geomspace(1e9, 1e12, 5)))
    rows = zip(n, d, 20 * n * d, chinchilla(n, d, *TRUTH), strict=True)
    (tmp_path / "p.csv").write_text("params,tokens,flops,loss\n" + "".join(f"{a},{b},{c},{e}\n" for a, b, c, e in rows))
    found = {}
    for c in ("flops", "6nd"):
        out = str(tmp_path / f"{c}.json")
        words = ["--columns", f"c={c}", "--loss", "l2", "--bootstrap", "0", "--json", out]
        assert main(["fit", str(tmp_path / "p.csv"), *words]) == 0
        capsys.readouterr()
        (found[c],) = predicted(capsys, out, "--flops", {"flops": "1e21", "6nd": "3e20"}[c])
    assert found["flops"]["flops_definition"] == "C = 20 N D"
    for key in ("loss", "n_opt", "d_opt"):
        assert found["flops"][key]["value"] == pytest.approx(found["6nd"][key]["value"], rel=1e-6)
