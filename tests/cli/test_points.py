"""linscale points, and fit on what it reads, as a user calls them."""

import json
from pathlib import Path

import numpy as np
import pytest

from linscale.cli import main
from linscale.study.table.definitions import DEFINITIONS
from linscale.study.table.surfaces import chinchilla

FIXTURES = Path(__file__).parent.parent / "study" / "sources" / "fixtures"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """20 points with shapes, one of them far off; FLOPs of 6 N D."""
    random = np.random.default_rng(0)
    lines = ["params,tokens,flops,loss,arch,d_model,n_layers,n_heads,d_ff,vocab_size,length"]
    for width in (256, 512, 768, 1024):
        n, heads = 12 * width**2 * (width // 64), width // 64
        for d in np.geomspace(1e9, 1e11, 5):
            loss = chinchilla(n, d, 1.7, 400, 410, 0.34, 0.28) * np.exp(0.003 * random.normal())
            shape = f"llama,{width},{width // 64},{heads},{8 * width // 3},50304,2048"
            lines.append(f"{n},{d},{6 * n * d},{loss + (width == 512 and d < 2e9) * 0.8},{shape}")
    path = tmp_path / "points.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_source_is_shown_written_and_fitted(tmp_path, capsys):
    out = tmp_path / "points.csv"
    assert main(["points", str(FIXTURES / "wandb"), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert "2 local run(s) of W&B, 6 rows" in captured.err
    assert "note" not in captured.out
    assert out.read_text().startswith("run,final,train/loss,val/loss,tokens")
    words = ["--law", "power", "--columns", "c=6nd", "--where", "final", "--bootstrap", "0"]
    assert main(["fit", str(FIXTURES / "wandb"), *words]) == 2
    assert "2 points: the power law has 2 parameters" in capsys.readouterr().err
    assert main(["points", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[5]["val/loss"] == pytest.approx(5.2 / 3 - 0.04)


def test_states_and_scores_of_one_model_are_joined(tmp_path, capsys):
    states, scores, both = (tmp_path / name for name in ("states.csv", "scores.csv", "both.csv"))
    assert main(["points", str(FIXTURES / "trainer"), "--out", str(states)]) == 0
    assert main(["points", str(FIXTURES / "lm_eval" / "runs__llama-a__checkpoint-6"), "--out", str(scores)]) == 0
    assert main(["points", str(states), str(scores), "--on", "step", "--out", str(both)]) == 2
    assert (
        "row 1 says run = runs/llama-a/checkpoint-6, but trainer is there already for step 6" in capsys.readouterr().err
    )
    scores.write_text(scores.read_text().replace("runs/llama-a/checkpoint-6", "trainer"))
    assert main(["points", str(states), str(scores), "--on", "run,step", "--out", str(both)]) == 0
    last = both.read_text().splitlines()[-1].split(",")
    assert len(both.read_text().splitlines()) == 5
    assert {"trainer", "6", "0.5"} <= set(last)


@pytest.mark.slow
def test_the_formula_is_printed_and_kept(table, tmp_path, capsys):
    out = tmp_path / "fit.json"
    assert main(["fit", str(table), "--columns", "c=exact+head", "--bootstrap", "0", "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "c by exact+head: C = every matrix product of each arch as linscale runs it, head included" in shown
    assert "; near " in shown
    result = json.loads(out.read_text())
    assert result["definitions"].keys() == {"c", "head_dim"}
    assert result["groups"][0]["compute"]["kappa"] < -0.05


@pytest.mark.slow
def test_sensitivity_changes_one_choice_at_a_time(table, capsys):
    words = ["fit", str(table), "--law", "power", "--where", "params > 0", "--drop", "highest:1", "--loss", "l2"]
    assert main([*words, "--bootstrap", "5", "--sensitivity", "--json", "-"]) == 0
    entries = json.loads(capsys.readouterr().out)["sensitivity"]
    changed = [entry["changed"] for entry in entries]
    assert changed[:5] == ["nothing", "without --where", "without --drop", "--loss huber:1e-3", "--loss lad"]
    assert {name.removeprefix("c = ") for name in changed[5:]} == set(DEFINITIONS["c"])
    by_name = {entry["changed"]: entry for entry in entries}
    slope = {name: each["parameters"]["l_exponent"]["value"] for name, each in by_name.items()}
    assert by_name["nothing"]["points_used"] == 19
    assert by_name["without --drop"]["points_used"] == 20
    assert slope["without --drop"] != slope["nothing"] == slope["without --where"]
    assert slope["c = 6nd"] == pytest.approx(slope["nothing"])
    assert slope["c = exact+head"] < slope["nothing"] - 0.001  # FLOPs that grow slower: a steeper law
    assert set(by_name["nothing"]["parameters"]) == {"l_exponent"}
    assert main([*words, "--bootstrap", "0", "--sensitivity"]) == 0
    assert "the same fit with one choice changed" in capsys.readouterr().out


@pytest.mark.slow
def test_counting_flops_moves_the_optimum_and_not_the_law(table, capsys):
    text = table.read_text().replace("arch,d_model,n_layers,n_heads", "a,d_model,b,c").replace(",flops,", ",e,")
    table.write_text(text.replace("d_ff", "f").replace(",length", ",context"))
    columns = "n_body=params"
    words = ["fit", str(table), "--columns", columns, "--bootstrap", "5", "--sensitivity", "--json", "-"]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out)
    by_name = {entry["changed"]: entry["parameters"] for entry in result["sensitivity"]}
    assert set(by_name) == {"nothing", "--loss l2", "--loss lad", "c = kaplan", "c = 6nd+head"}
    best = {name: each["n_opt_exponent"]["value"] for name, each in by_name.items()}
    assert by_name["c = 6nd+head"]["alpha"] == by_name["nothing"]["alpha"]
    assert best["c = kaplan"] == pytest.approx(best["nothing"])
    assert best["c = 6nd+head"] > best["nothing"] + 0.02


@pytest.mark.slow
def test_what_cannot_be_fitted_without_a_condition_is_refused_not_fatal(table, capsys):
    text = table.read_text().replace("arch,", "a,").replace("n_heads", "b").replace("vocab_size,length", "c,e")
    table.write_text(text + "1e8,1e9,6e17,nan" + "," * 7 + "\n")  # what is left of shapes makes few counts of FLOPs
    words = ["fit", str(table), "--law", "power", "--where", "not isnan(loss)", "--bootstrap", "0", "--sensitivity"]
    assert main([*words, "--json", "-"]) == 0
    entries = {each["changed"]: each for each in json.loads(capsys.readouterr().out)["sensitivity"]}
    assert "loss is not a positive number in row 21 (nan)" in entries["without --where"]["refused"]
    assert "parameters" in entries["c = kaplan"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name at least one file or folder"),
        (["nope.csv"], "nope.csv: no such file; expected a table with one row a point, or a folder of runs"),
        (["TABLE", "--out", "x.xlsx"], "out = x.xlsx: unknown kind of file"),
        (["TABLE", "--out", "nope/x.csv"], "out = nope/x.csv: no such folder"),
        (["TABLE", "--on", "size"], "on = size: "),
    ],
)
def test_bad_input_is_one_line(table, words, message, capsys):
    assert main(["points", *(str(table) if word == "TABLE" else word for word in words)]) == 2
    error = capsys.readouterr().err.splitlines()
    assert message in error[-1]
