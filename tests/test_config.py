"""Configs: every problem named in one line; fingerprints by content."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from linscale.config import UserError, clock, config, fingerprint, human, load_toml, parse, to_dict


@config
class Inner:
    rate: Annotated[float, Field(gt=0)] = 1.0
    count: int


@config
class Square:
    form: Literal["square"] = "square"
    side: int = 1


@config
class Circle:
    form: Literal["circle"] = "circle"
    radius: Annotated[int, Field(gt=0)] = 1


@config
class Outer:
    inner: Inner
    kind: Literal["a", "b"] = "a"
    shape: Annotated[Square | Circle, Field(discriminator="form")] = Circle()
    more: tuple[Inner, ...] | None = None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"inner": {"count": 1, "size": 2}}, "unknown key 'inner.size' (expected one of rate, count)"),
        ({"inner": {"count": 1}, "shape": {"form": "cube"}}, "shape.form = 'cube': expected one of 'square', 'circle'"),
        ({"inner": {"count": 1}, "shape": {}}, "'shape.form' is required"),
        ({"inner": {"count": 1}, "shape": {"form": "circle", "radius": -1}}, "shape.radius = -1: input should be"),
        (
            {"inner": {"count": 1}, "shape": {"form": "square", "radius": 1}},
            "'shape.radius' (expected one of form, side)",
        ),
        (
            {"inner": {"count": 1}, "more": [{"count": 1}, {"cont": 1}]},
            "unknown key 'more.1.cont' (expected one of rate,",
        ),
        ({"inner": {"count": 1}, "rest": 1}, "unknown key 'rest' (expected one of inner, kind, shape, more)"),
        ({"inner": {}}, "'inner.count' is required"),
        ({"inner": {"count": 1, "rate": -2}}, "inner.rate = -2: input should be greater than 0"),
        ({"inner": {"count": "x"}}, "inner.count = 'x'"),
        ({"inner": {"count": 1}, "kind": "c"}, "kind = 'c': input should be 'a' or 'b'"),
        ({"inner": {"count": 1, "rate": float("nan")}}, "inner.rate = nan"),
        ({}, "'inner' is required"),
    ],
)
def test_problems_name_field_value_and_what_is_accepted(values, words):
    with pytest.raises(UserError) as error:
        parse(Outer, values, source="some.toml")
    assert str(error.value).startswith("some.toml: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_round_trip_and_fingerprint():
    value = parse(Outer, {"inner": {"count": 3}})
    assert parse(Outer, to_dict(value)) == value
    assert fingerprint(value) == fingerprint(parse(Outer, {"kind": "a", "inner": {"rate": 1.0, "count": 3}}))
    assert fingerprint(value) != fingerprint(parse(Outer, {"inner": {"count": 4}}))


def test_toml_errors(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_toml(tmp_path / "none.toml", Outer)
    bad = tmp_path / "bad.toml"
    bad.write_text("inner = {")
    with pytest.raises(UserError, match="not valid TOML"):
        load_toml(bad, Outer)


def test_human_numbers():
    assert [human(x) for x in (0, 12, 999.6, 12_345_678, 3e9)] == ["0", "12", "1k", "12.3M", "3B"]
    assert human(2.5e12, "FLOP") == "2.5TFLOP"
    assert [clock(x) for x in (0, 95, 7384, 1e6)] == ["0:00", "1:35", "2:03:04", "11 d 13:46:40"]
