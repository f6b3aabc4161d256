"""Exact match, F1 and ROUGE against published examples."""

import sys

import pytest

from linscale.config import UserError
from linscale.evaluate import overlap
from linscale.evaluate.overlap import exact_match, f1, normalize, rouge, rouge_scorer

# The example in the documentation of SCROLLS' own metric (tau/scrolls, metrics/scrolls.py).
PREDICTIONS = ("exact match example", "hello there", "general kenobi")
REFERENCES = (["exact match example"], ["hello", "hi there"], ["commander kenobi"])


def mean(metric):
    return sum(map(metric, PREDICTIONS, REFERENCES)) / len(PREDICTIONS)


def test_the_example_of_scrolls_metric() -> None:
    assert mean(exact_match) == pytest.approx(33.3333, abs=1e-4)
    assert mean(f1) == pytest.approx(72.2222, abs=1e-4)


@pytest.mark.slow
def test_rouge_gives_the_example_of_scrolls_metric() -> None:
    pytest.importorskip("rouge_score")
    published = {"rouge1": 72.2222, "rouge2": 33.3333, "rougeL": 72.2222}
    for name, value in published.items():
        assert mean(lambda text, others, name=name: rouge(text, others)[name]) == pytest.approx(value, abs=1e-4)


@pytest.mark.slow
def test_rouge_gives_the_examples_of_the_package_s_own_tests() -> None:
    """rouge_scorer_test.py: testRouge1, testRougeAllMulti; and no stemming."""
    pytest.importorskip("rouge_score")
    assert rouge("testing", ["testing one two"])["rouge1"] == pytest.approx(50)
    several = rouge("text first", ["first text", "first something"])
    assert several == pytest.approx({"rouge1": 100, "rouge2": 0, "rougeL": 50})
    assert rouge("running dogs", ["run dog"])["rouge1"] == 0
    assert rouge("", ["run dog"]) == {"rouge1": 0, "rouge2": 0, "rougeL": 0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("a an the", ""),
        ("Theatre, another", "theatre another"),
        ("U.S.A.", "usa"),  # punctuation goes before words are looked at
        ("well-known", "wellknown"),
        ("the “Sun”", "“sun”"),  # punctuation of ASCII alone
        ("x\n\ty", "x y"),
    ],
)
def test_texts_are_normalized_as_squad_does(text, expected) -> None:
    assert normalize(text) == expected


def test_f1_and_exact_match_at_their_edges() -> None:
    assert f1("in the year 1998", ["1998"]) == pytest.approx(200 / 4)  # 1 of 3 words, 1 of 1: 2/3 * 1 / (4/3)
    assert f1("cat cat cat", ["cat dog"]) == pytest.approx(100 * 2 / 5)  # a word counts as often as both have it
    assert f1("x", ["y", "x z", "x"]) == 100
    assert f1("", [""]) == f1("the", ["a"]) == 0  # SQuAD 1.1, unlike 2.0
    assert exact_match("The cat.", ["dog", "cat"]) == 100
    assert exact_match("cats", ["dog", "cat"]) == 0


def test_without_rouge_score_one_line_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    rouge_scorer.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'linscale\[eval\]'"):
        overlap.rouge("a", ["b"])
