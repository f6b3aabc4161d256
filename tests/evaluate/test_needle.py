"""Needle in a haystack, graded on a planted truth: a model that looks its text up, and some that do not."""

import re
from pathlib import Path

import pytest
import torch

from linscale.cli import main
from linscale.config import UserError
from linscale.data.tokenizer import load_tokenizer, train_bpe
from linscale.evaluate import facts, memory
from linscale.evaluate.facts import FORMS, WORDS, draw_fact, grade
from linscale.evaluate.haystack import Haystack
from linscale.evaluate.needle import MODES, Needle

BYTES, BPE = load_tokenizer("byte"), train_bpe(["the cat sat on a warm mat. " * 9], 270)
TEXT = (
    "\n\n" + "The cat sat on a mat, which was warm. It ran! Did it? Far, far away it was 3.14 degrees. " * 4 + "Ends."
)
HAYSTACK = Haystack(TEXT)
LENGTHS, DEPTHS = (400, 700, 1000), (0, 30, 55, 100)
FILLER = "builtin:tinyshakespeare"
MODE = pytest.mark.parametrize("mode", MODES)
GOLDEN = ("The password of Paula from Quito is spider hammer velvet.", "spider hammer velvet")
STATEMENT = re.compile(r"(?:is|are) ([a-z0-9- ]+)\.")


def look_up(text: str) -> str:
    """What stood behind the same question before, else the end of a statement about the same who and where."""
    question = text[text.rindex("Question:") :]
    if question in text[: -len(question)]:
        return " " + text[text.index(question) + len(question) :].split(".")[0].strip()
    asked = re.findall(r"the \w+ in \w+|\w+ from \w+", question)[-1]
    return " " + STATEMENT.findall(text[text.index(asked) :])[0]


def values(task, model, tokenizer=BYTES):
    with torch.no_grad():
        results = task.run(model, tokenizer)
    assert [result.metric for result in results] == list(task.metrics)
    return {result.metric: result for result in results}


@MODE
def test_a_model_that_looks_up_has_all_and_one_that_does_not_none(mode, finder):
    task = Needle(mode, HAYSTACK, LENGTHS, DEPTHS)
    found = values(task, finder(look_up))
    assert all(result.value == pytest.approx(1.0) for name, result in found.items() if name not in task.metrics[-2:])
    assert found["acc_700"].cells == (1.0,) * 4
    found = values(task, finder(lambda text: " I do not know, 012-345 or a zebra."))
    assert all(result.value == 0.0 for name, result in found.items() if name not in task.metrics[-2:])


@pytest.mark.slow
def test_a_model_that_remembers_its_last_text_finds_deep_needles_alone(finder):
    """And a part of a key counts as a part: the map's axes and grades are not mixed up."""

    def recent(text):
        return look_up(text) if text.rindex("Question:") - text.index("Question:") < 230 else " no"

    task = Needle("easy", HAYSTACK, LENGTHS, DEPTHS)
    found = values(task, finder(recent))
    assert [found[f"acc_{length}"].cells for length in LENGTHS] == [(0, 0, 1, 1), (0, 0, 0, 1), (0, 0, 0, 1)]
    first = values(task, finder(lambda text: re.split(r"[- ]", look_up(text).strip())[0]))
    assert first["average"].value == pytest.approx(1 / 3)
    whole = values(task, finder(lambda text: f" It is written that it is{look_up(text).upper()}"))
    assert whole["average"].value == pytest.approx(1.0)


def test_what_is_reported_of_places_and_repeats(finder):
    task = Needle("easy", HAYSTACK, (400,), (50,))
    found = values(task, finder(look_up))
    prompt = task.prompts(HAYSTACK.filler(BYTES), 400)[0]
    assert found["depth_error"].value == pytest.approx(abs(100 * prompt.place / prompt.filler - 50))
    assert found["filler_repeats"].value == pytest.approx(prompt.filler / len(TEXT))
    longer = values(Needle("easy", Haystack(" One. Two."), (400,), (50,)), finder(look_up))
    assert longer["filler_repeats"].value == pytest.approx(prompt.filler / 10)
    assert longer["average"].value == 1.0


def test_a_cell_is_the_same_in_every_grid_and_another_with_another_seed():
    wide, narrow = Needle("easy", HAYSTACK, LENGTHS, DEPTHS), Needle("standard", HAYSTACK, (700,), (55,))
    assert wide.fact(700, 55) == narrow.fact(700, 55)
    drawn = {wide.fact(length, depth) for length in range(300) for depth in (0, 50)}
    assert len({fact.key for fact in drawn}) > 595
    assert Needle("easy", HAYSTACK, (700,), (55,), seed=1).fact(700, 55) != wide.fact(700, 55)
    fact = draw_fact("0-1000-0")  # for good: a change here changes what is recorded
    assert (fact.statement, fact.key) == GOLDEN
    versions = {task.version(tokenizer) for task in (wide, narrow) for tokenizer in (BYTES, BPE)}
    versions |= {Needle("easy", HAYSTACK, LENGTHS, DEPTHS, seed=1).version(BYTES)}
    versions |= {Needle("easy", Haystack(TEXT + " More."), LENGTHS, DEPTHS).version(BYTES)}
    assert len(versions) == 6
    assert wide.version(BYTES).endswith("-lengths400,700,1000-depths0,30,55,100-seed0")


def test_grades():
    fact = facts.Fact("The password of Anna from Oslo is acorn beetle comet.", "", "acorn beetle comet")
    graded = {
        "": 1, " acorn": 4, "beetle": 4, " comet acorn": 4, " acorn comet": 7, " Acorn-Beetle, then comet!": 10,
        "The password of Anna from Oslo is acorn beetle comet. I": 10, "acorns beetles comets": 1, "comet beetle": 4,
        "acorn acorn beetle": 7, "acornbeetlecomet": 1,
    }  # fmt: skip
    assert {text: grade(fact, text) for text in graded} == graded
    number = facts.Fact("", "", "123-456-789")
    assert [grade(number, text) for text in (" 123-456-789.", "123456789", "123-456-7890", "456")] == [10, 1, 7, 4]


def test_no_question_says_a_part_of_a_key():
    said = " ".join(statement + question for statement, question, _ in FORMS).lower()
    said += " ".join([*facts.TRADES, *facts.CITIES, *facts.NAMES]).lower()
    assert not set(WORDS) & set(re.findall(r"\w+", said))
    assert len(set(WORDS)) == 64


def test_what_does_not_fit_is_an_obstacle_and_what_is_no_grid_an_error(monkeypatch, finder):
    task, model = Needle("easy", HAYSTACK, (100, 700), DEPTHS), finder(look_up)
    found = task.obstacle(model, BYTES)
    assert re.fullmatch(r"length 100: needle and question take 1\d\d tokens; set longer lengths", found)
    task = Needle("easy", HAYSTACK, LENGTHS, DEPTHS)
    assert task.obstacle(model, BYTES) is None
    assert task.obstacle(model, BPE) == f"the tokenizer has {BPE.vocab_size} tokens, the model 257"
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1_000_000)
    found = task.obstacle(model, BYTES)
    assert re.match(r"softmax attention needs about .*B for the keys and values of 10\d\d tokens, cpu has 1MB", found)
    for lengths, depths, message in (
        ((), (0,), "lengths = : expected one or more"), ((9, 8), (0,), "lengths = 9,8: expected one or more"),
        ((9,), (0, 101), "depths = 0,101: expected 0 to 100"), ((0, 9), (0,), "lengths = 0,9: expected at least 1"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            Needle("easy", HAYSTACK, lengths, depths)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--suite", "needle"],
            "suite needle: no filler; name a text with --filler, or make paul_graham_essays for --data",
        ),
        (
            ["--suite", "needle", "--data", "."],
            "suite needle: no filler; name a text with --filler, or make paul_graham_essays for --data",
        ),
        (["--suite", "needle", "--filler", "none.txt"], "input 'none.txt': no such file or folder"),
        (
            ["--suite", "needle", "--filler", FILLER, "--lengths", "1,a"],
            "lengths = '1,a': expected whole numbers such as",
        ),
        (["--suite", "needle", "--filler", FILLER, "--depths", "0,101"], "depths = 0,101: expected 0 to 100"),
        (["--passkey-lengths", "0"], "passkey_lengths = 0: expected at least 1"),
    ],
)
def test_bad_options_are_one_line_before_any_run_is_looked_for(words, message, capsys):
    assert main(["evaluate", "no-such-run", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_page_names_every_metric():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "evaluate.md").read_text(encoding="utf-8")
    grid = re.compile(r"acc_\d+|acc(@|<=)\w+")
    names = {name for name in Needle("easy", HAYSTACK, LENGTHS, DEPTHS).metrics if not grid.fullmatch(name)}
    assert names == {"average", "weighted_average", "niah_score", "depth_error", "filler_repeats"}
    assert all(f"`{name}`" in page for name in (*names, "acc_LENGTH", "acc@2k", "acc<=4k", "cells"))
