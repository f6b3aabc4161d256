"""What a request may ask for: ranges, and one clear line for what is out of them."""

import dataclasses
import re
from pathlib import Path

import pytest

from linscale.config import UserError, parse
from linscale.generate.sampling import Sampling

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "generate.md"
BAD = [
    ({"max_tokens": 0}, "max_tokens = 0: expected at least 1"),
    ({"max_tokens": None}, "max_tokens = None: input should be a valid integer"),
    ({"temperature": -0.1}, "temperature = -0.1: expected a number of at least 0"),
    ({"temperature": float("nan")}, "temperature = nan: input should be a finite number"),
    ({"temperature": float("inf")}, "temperature = inf: input should be a finite number"),
    ({"top_k": 0}, "top_k = 0: expected at least 1, or none for all tokens"),
    ({"top_p": 1.01}, "top_p = 1.01: expected 0 to 1"),
    ({"min_p": -1}, "min_p = -1: expected 0 to 1"),
    ({"repetition_penalty": 0}, "repetition_penalty = 0: expected 0.01 to 100"),
    ({"seed": 2**63}, "seed = 9223372036854775808: expected 0 to 2^63 - 1"),
    ({"stop": ["a", ""]}, "stop = ['a', '']: expected at most 16 strings, none of them empty"),
    ({"stop": ["a"] * 17}, "expected at most 16 strings"),
    ({"stop": [1]}, "stop.0 = 1: input should be a valid string"),
    ({"logprobs": 21}, "logprobs = 21: expected 0 to 20"),
    ({"top": 1}, "unknown key 'top' (expected one of max_tokens, temperature, "),
    ({"top_p": 2, "min_p": 2}, "top_p = 2: expected 0 to 1; min_p = 2: expected 0 to 1"),
]


@pytest.mark.parametrize(("values", "message"), BAD)
def test_values_out_of_range_are_refused_by_field(values, message):
    for build in (lambda: Sampling(**values), lambda: parse(Sampling, values)):
        with pytest.raises(UserError, match=re.escape(message)):
            build()


def test_edges_are_accepted():
    edges = {"max_tokens": 1, "temperature": 0, "top_k": 1, "top_p": 0, "min_p": 1, "seed": 2**63 - 1, "logprobs": 0}
    assert parse(Sampling, edges) == Sampling(**edges)
    assert Sampling(stop="a").stop == Sampling(stop=["a"]).stop == ("a",)
    assert Sampling(stop=None).stop == ()


def test_the_page_names_every_option_with_its_default():
    rows = dict(re.findall(r"^\| `--([a-z-]+)` \| `?([^`|]*?)`? \|", PAGE.read_text(encoding="utf-8"), re.M))
    for field in dataclasses.fields(Sampling):
        value = field.default
        shown = "unset" if value is None or value == () else "off" if value is False else str(value)
        assert rows[field.name.replace("_", "-")] == shown, field.name
