"""Suites by name, and everything that is wrong with their options and files: said before a run is looked into."""

import pytest

from linscale.cli import main
from linscale.cli.evaluate import csr_means
from linscale.cli.suite_options import Options, RecallOptions, SetOptions, TextOptions
from linscale.cli.suites import CSR, SINGLE, SUITES, build_tasks, suite_names
from linscale.config import UserError
from linscale.evaluate import questions
from linscale.evaluate.questions import FORMS


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ((), ["recall"]),
        ((("text,csr",),), ["text", "csr"]),
        ((("text", "csr"), ("recall,text",)), ["text", "csr", "recall"]),
    ],
)
def test_names_come_with_commas_with_spaces_and_again(words, names):
    assert suite_names(words) == names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--suite nonsense", "suite = 'nonsense': no such suite; there are ppl, csr, recall, text"),
        ("--suite recall,", "suite: a name is empty; there are ppl"),
        ("--suite", "suite: a name is empty"),
        ("--suite sciq", "sciq_validation.jsonl: does not ship (licence: CC BY-NC 3.0); get it with: linscale tasks"),
        ("--suite piqa --data none", "data = none: no such folder"),
        ("--suite ppl --data data", "wikitext2_raw_test.txt: its content has sha256"),
        ("--suite csr --data data", "piqa_valid.jsonl: its content has sha256"),
        ("--suite text", "suite text: no file; name some with --text"),
        ("--suite text --text none.txt", "input 'none.txt': no such file or folder"),
        ("--suite text --text builtin:tinyshakespeare --window 4 --stride 5", "stride = 5: expected 1 to window = 4"),
        ("--sizes 1", "sizes.0 = 1: input should be greater than or equal to 2"),
        ("--examples 0", "examples = 0: input should be greater than or equal to 1"),
        ("--window 0", "window = 0"),
        ("--limit 0", "limit = 0"),
        (
            "--suite needle --filler builtin:tinyshakespeare --modes",
            "suite needle: its options leave nothing to measure",
        ),
        ("--steps some", "steps = 'some': expected all, last, or numbers such as 1000,2000"),
    ],
)
def test_what_is_wrong_is_one_line(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("piqa_valid.jsonl", "wikitext2_raw_test.txt"):
        (tmp_path / "data" / name).write_text("altered\n")
    (tmp_path / "config.json").write_text("not even JSON")  # nobody reads it
    assert main(["evaluate", str(tmp_path), *options.split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_a_task_that_two_suites_share_is_one_task(tmp_path):
    options = Options(recall=RecallOptions(sizes=(4,), examples=3))
    assert len(build_tasks(["recall", "recall"], options)) == 4 + 3
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "story.txt").write_text(folder)
    files = (tmp_path / "a" / "story.txt", tmp_path / "b" / "story.txt")
    with pytest.raises(UserError, match="suite text: text-story stands for two different things"):
        build_tasks(["text"], Options(text=TextOptions(text=files)))


def test_the_help_explains_every_suite(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    text = capsys.readouterr().out
    assert all(f"{name}: " in text for name in set(SUITES) - set(CSR) - {"lambada_openai", "sciq"})


def test_csr_is_the_seven_and_what_is_there_of_the_others(capsys):
    tasks = build_tasks(["csr", "ppl", "piqa"], Options(sets=SetOptions(limit=3)))
    assert [task.name for task in tasks] == [*CSR, "text-wikitext2_raw_test"]
    assert set(SINGLE) == set(FORMS)
    assert SINGLE[:7] == CSR == tuple(questions.CSR)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == ["lambada_openai", "sciq"]
    assert all("left out; its set does not ship" in line for line in lines)


def test_the_mean_of_the_seven_is_shown_where_all_are_there():
    records = [
        {"run": "a", "step": 1, "task": task, "metric": metric, "value": number / 10, "se": 0.7,
         "task_version": "1-a-b"}
        for number, task in enumerate(CSR) for metric in ("acc", "acc_norm")
        if metric == questions.CSR[task]
    ]  # fmt: skip
    others = [{**record, "step": 2} for record in records[1:]]
    assert csr_means([*records, *others]) == [("a", 1, pytest.approx(0.3), pytest.approx(0.7 / 7**0.5))]
    assert csr_means([{**record, "se": None} for record in records])[0][3] is None
    assert csr_means([{**record, "task_version": "1-a-b-first9"} for record in records]) == []
