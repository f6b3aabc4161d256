"""A study that ends with the law of efficient models: its points, its law, its page, and what is refused beforehand."""

import csv
import json
from pathlib import Path

import pytest

from linscale.cli import main
from linscale.config import UserError
from linscale.run_folder import read_json
from linscale.study.pac_study import best_rows
from linscale.study.plan import load_study

SHAPE = "d_model = {}\nn_layers = 1\nhead_dim = 4\nd_ff = {}\n"
AMOUNTS = (1_024, 8_192)
TINY = """
name = "tiny"
archs = ["llama"]

[data]
inputs = ["builtin:tinyshakespeare"]
options = { document_bytes = 4096, val_fraction = 0.06 }

[model]
init_std = 0.2

[train]
tokens = 10_240
batch_tokens = 256
length = 16
lr = 2e-2
checkpoints = 6
checkpoint_spacing = "linear"
validation_tokens = 4096
device = "cpu"

[fit]
law = "pac"
tolerance = "0.01"
bootstrap = 20

[sample]
max_tokens = 4
""" + "".join(
    f"""
[[sizes]]
name = "{width}-{amount}"
{SHAPE.format(width, 2 * width)}unique_tokens = {amount}
"""
    for amount in AMOUNTS
    for width in (4, 8, 32)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the study was run."""
    folder = tmp_path_factory.mktemp("pac")
    (folder / "tiny.toml").write_text(TINY)
    words = [str(folder / "tiny.toml"), "--out", str(folder), "--workers", "1"]
    assert main(["study", "run", *words]) == 0
    return folder


def call(capsys, *words, status=0):
    capsys.readouterr()
    found = main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert found == status, err
    return out if status == 0 else err


@pytest.mark.slow
def test_the_points_are_the_best_checkpoints(folder):
    """Against the records themselves, read without linscale."""
    with open(folder / "tiny" / "points.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    for row in rows:
        lines = (folder / "tiny" / row["run"] / "evaluations.jsonl").read_text().splitlines()
        losses = {r["step"]: r["value"] for r in map(json.loads, lines) if r["metric"] == "loss"}
        assert len(losses) == 6
        best = min(losses, key=losses.get)
        assert (int(row["best_step"]), float(row["loss"])) == (best, losses[best])
        assert float(row["last_loss"]) == losses[max(losses)]
        assert row["unique_tokens"] == row["run"].rsplit("-", 1)[1]
    assert any(row["loss"] != row["last_loss"] for row in rows)


@pytest.mark.slow
def test_the_law_is_that_of_linscale_fit(folder, capsys, tmp_path):
    study = folder / "tiny"
    columns = "n=params,d=unique_tokens,loss=loss"
    words = ("--columns", columns, "--group", "arch", "--tolerance", "0.01", "--bootstrap", 20)
    printed = call(capsys, "fit", study / "points.csv", "--law", "pac", *words, "--json", tmp_path / "fit.json")
    again = read_json(tmp_path / "fit.json")
    fits = read_json(study / "fits.json")
    assert fits["groups"] == again["groups"]
    assert fits["settings"] == again["settings"]

    reported = call(capsys, "study", "report", folder / "tiny.toml", "--out", folder)
    assert reported.startswith(printed.rstrip())
    assert "Nothing to do" in reported
    assert fits["groups"][0]["verdict"] in reported


@pytest.mark.slow
def test_what_reads_a_study_copes_with_the_law(folder, capsys):
    words = (folder / "tiny.toml", "--out", folder)
    found = json.loads(call(capsys, "study", "report", *words, "--json"))
    (item,) = found["architectures"]
    exponent = read_json(folder / "tiny" / "fits.json")["groups"][0]["parameters"]["exponent"]
    assert (found["law"], item["fit"]["parameters"]["exponent"], item["at_reference"]) == ("pac", exponent, None)
    assert "llama-32-1024" in call(capsys, "study", "status", *words)
    assert "best N" in call(capsys, "predict", folder / "tiny" / "fits.json", "--tokens", "4096")
    page = (folder / "tiny" / "report.html").read_text()
    for part in ("Whether the 95% interval of the exponent", "llama-32-1024", "tolerance = 0.01", 'id="pac-sizes"'):
        assert part in page
    assert "PFLOP/s-days. Under" not in page  # no table of laws of compute


@pytest.mark.slow
def test_points_without_a_law_are_kept(folder, capsys):
    """Where the smallest size is good enough nothing is fitted, and one line says what to do."""
    path = folder / "wide.toml"
    path.write_text(TINY.replace('tolerance = "0.01"', 'tolerance = "90%"'))
    before = (folder / "tiny" / "points.csv").read_bytes()
    (folder / "tiny" / "points.csv").unlink()
    (line,) = call(capsys, "study", "report", path, "--out", folder, status=2).strip().splitlines()[-1:]
    assert "the smallest size is good enough" in line
    assert line.endswith("points.csv has the points, for linscale fit")
    assert (folder / "tiny" / "points.csv").read_bytes() == before


@pytest.mark.slow
def test_more_text_than_there_is_is_refused_before_training(folder, capsys):
    path = folder / "more.toml"
    text = TINY.replace('name = "tiny"', 'name = "more"').replace('inputs = ["builtin:tinyshakespeare"]', "")
    text = text.replace("options = { document_bytes = 4096, val_fraction = 0.06 }", f"path = '{folder}/tiny/data'")
    path.write_text(text.replace("tokens = 10_240", "tokens = 4_096_000").replace("= 8192\n", "= 2_000_000\n"))
    refused = call(capsys, "study", "run", path, "--out", folder, "--workers", "1", status=2)
    assert "unique_tokens = 2000000, and the training split has only" in refused
    assert not list((folder / "more").glob("*/config.json"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("unique_tokens = 8192\n", "", "size '4-8192' has no unique_tokens; set it in every size"),
        ("= 8192\n", "= 100_000\n", "unique_tokens = 100000 is more than the 10240 tokens that it reads"),
        ("= 8192\n", "= 1_040\n", "llama has 1 amount(s) of unique_tokens with 3 sizes or more, and the law needs 2"),
        (SHAPE.format(32, 64), SHAPE.format(8, 16), "llama has 0 amount(s) of unique_tokens"),
        ('"0.01"', '"5 nats"', "tolerance = '5 nats': expected nats per token"),
        ('law = "pac"\n', "", "tolerance: the envelope law does not read it"),
        ('"pac"\n', '"pac"\nloss = "train"\n', 'law = "pac" compares validation losses'),
        ('"pac"\n', '"pac"\ngrid = 100\n', "the pac law does not read them"),
    ],
)
def test_what_cannot_be_fitted_is_refused_by_the_plan(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert old in TINY
    (tmp_path / "tiny.toml").write_text(TINY.replace(old, new))
    with pytest.raises(UserError) as caught:
        load_study(tmp_path / "tiny.toml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_best_checkpoint_stands_for_a_finished_run() -> None:
    def rows(run, losses, finished):
        count = len(losses)
        return [
            {"run": run, "step": step + 1, "final": finished and step == count - 1, "loss": loss, "params": 7}
            for step, loss in enumerate(losses)
        ]

    nan = float("nan")
    table = (*rows("overfits", [3.0, 2.0, None, nan, 2.5], True), *rows("unfinished", [1.0, 0.5], False))
    assert best_rows(table) == [{"run": "overfits", "params": 7, "loss": 2.0, "best_step": 2, "last_loss": 2.5}]
