"""SQL over planted run folders, and the command."""

import csv
import io
import json
from pathlib import Path

import duckdb
import pytest

from linscale.cli import main
from linscale.config import UserError
from linscale.study.query import query


@pytest.fixture
def folder(tmp_path):
    """Two runs of a study, one of them with a record written twice and half a last line; a run without records."""
    for name, arch, losses in (("a", "tnl", [3.0, 2.0]), ("b's", "llama", [4.0, 2.5]), ("c", "hgrn2", [])):
        run = tmp_path / "study" / name
        run.mkdir(parents=True)
        model, params = {"arch": arch, "d_model": 8}, {"non_embedding": 10, "total": 20}
        config = {"run": name, "study": "study", "size": "s", "model": model, "params": params, "device": "cpu"}
        (run / "config.json").write_text(json.dumps(config))
        (run / "status.json").write_text(json.dumps({"state": "done", "step": 2, "steps": 2}))
        head = {"run": name, "tokens": 100, "flops": 1e6, "code": "0"}
        lines = [json.dumps({**head, "step": k + 1, "metric": "loss", "value": loss}) for k, loss in enumerate(losses)]
        if lines:
            again = json.dumps({**head, "step": 2, "metric": "loss", "value": losses[1] - 0.5})
            (run / "metrics.jsonl").write_text("\n".join([*lines, again, lines[0][:30]]))
        task = {
            **head,
            "step": 2,
            "task": "validation",
            "task_version": "1",
            "metric": "loss",
            "value": 9.0,
            "se": None,
        }
        if name == "a":
            (run / "evaluations.jsonl").write_text(json.dumps({**task, "count": 7}) + "\n")
    return tmp_path


@pytest.mark.parametrize("place", [".", "study"])
def test_records_know_their_run_and_the_later_one_counts(folder, place):
    rows = query(folder / place, "select run, arch, step, value from metrics order by run, step").fetchall()
    assert rows == [("a", "tnl", 1, 3.0), ("a", "tnl", 2, 1.5), ("b's", "llama", 1, 4.0), ("b's", "llama", 2, 2.0)]
    assert query(folder / place, "select run, value, se, count from evaluations").fetchall() == [("a", 9.0, None, 7)]
    assert query(folder / place, "select arch, state, params from runs order by arch").fetchall() == [
        ("hgrn2", "done", 10), ("llama", "done", 10), ("tnl", "done", 10),
    ]  # fmt: skip


def test_a_run_alone_and_one_without_records(folder):
    assert query(folder / "study" / "c", "select count(*) from metrics").fetchall() == [(0,)]
    assert query(folder / "study" / "c", "select count(*) from evaluations").fetchall() == [(0,)]


def test_bad_questions_are_told_in_a_line(folder, tmp_path):
    with pytest.raises(UserError, match=r"^query: Parser Error: .*selct.*; tables are runs, metrics, evaluations$"):
        query(folder, "selct 1")
    with pytest.raises(UserError, match="asks for nothing"):
        query(folder, " ")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no runs in it"):
        query(tmp_path / "empty", "select 1")


def test_the_command_writes_tables_json_csv_and_parquet(folder, tmp_path, capsys):
    ask = ["results", "select run, min(value) as best from metrics group by run order by run", "--folder", str(folder)]
    assert main(ask) == 0
    assert "1.5" in capsys.readouterr().out
    assert main([*ask, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"run": "a", "best": 1.5}, {"run": "b's", "best": 2.0}]
    assert main([*ask, "--format", "csv"]) == 0
    assert list(csv.reader(io.StringIO(capsys.readouterr().out))) == [["run", "best"], ["a", "1.5"], ["b's", "2.0"]]
    assert main([*ask, "--format", "parquet"]) == 2
    assert "needs a file; name one with --out" in capsys.readouterr().err
    assert main([*ask, "--format", "parquet", "--out", str(tmp_path / "best.parquet")]) == 0
    assert duckdb.read_parquet(str(tmp_path / "best.parquet")).fetchall() == [("a", 1.5), ("b's", 2.0)]


def test_a_run_that_the_command_stands_in(folder, monkeypatch):
    monkeypatch.chdir(folder / "study" / "a")
    assert query(Path("."), "select folder, run, value from evaluations").fetchall() == [(".", "a", 9.0)]


@pytest.mark.parametrize("how", [[], ["--format", "csv"], ["--json"], ["--format", "csv", "--out", "x.csv"]])
def test_a_query_that_fails_on_what_it_meets_is_told_in_a_line(folder, how, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["results", "select cast(run as int) from runs", "--folder", ".", *how]) == 2
    said = capsys.readouterr().err
    assert said.startswith("linscale: query: Conversion Error: Could not convert string")
    assert said.count("\n") == 1


def test_an_answer_for_a_folder_that_is_not_there_is_told(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["results", "select 1", "--folder", ".", "--format", "csv", "--out", "none/x.csv"]) == 2
    assert capsys.readouterr().err == "linscale: out = none/x.csv: no such folder; make none first\n"


def test_json_has_what_json_has_alone(folder, capsys):
    ask = "select 1.5 as a, 'nan'::double as b, [1.0, 'inf'::double] as c, date '2026-01-02' as d, true as e, null as f"
    assert main(["results", ask, "--folder", str(folder), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == {"a": 1.5, "b": None, "c": [1.0, None], "d": "2026-01-02", "e": True, "f": None}
