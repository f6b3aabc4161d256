"""Configs: frozen dataclasses checked by pydantic, written in TOML by people and in JSON by machines.

A config class is declared with `@config` beside the code that reads it. `parse` turns a plain dict into
one and reports every problem in one line a problem: field, value, what is accepted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import pydantic
import pydantic_core

T = TypeVar("T")


class UserError(Exception):
    """Something the user can put right. The message is one line: field, value, and what is accepted.

    The command line prints it without a traceback and exits with status 2.
    """


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[T]) -> type[T]:
    """Declare a config: a frozen, keyword-only dataclass whose unknown keys and bad values are errors."""
    settings = pydantic.ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
    return pydantic.dataclasses.dataclass(cls, frozen=True, kw_only=True, config=settings)  # type: ignore[return-value]


def parse(cls: Any, values: Mapping[str, Any], *, source: str = "config") -> Any:
    """Build `cls` (a config class or a union of them) from plain values.

    Raises UserError naming `source`, then each field, its value and what would be accepted.
    """
    try:
        return pydantic.TypeAdapter(cls).validate_python(dict(values))
    except pydantic.ValidationError as error:
        raise UserError(f"{source}: {explain(error)}") from None


def explain(error: pydantic.ValidationError) -> str:
    """One line for all problems of a ValidationError, in the words of the field's name and value."""
    problems = []
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"]) or "value"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "unexpected_keyword_argument":
            problems.append(f"unknown key '{field}'")
        elif item["type"] in ("missing", "missing_argument"):
            problems.append(f"'{field}' is required")
        elif dataclasses.is_dataclass(item["input"]) or isinstance(item["input"], (dict, pydantic_core.ArgsKwargs)):
            problems.append(message if field == "value" else f"{field}: {message}")
        else:
            problems.append(f"{field} = {item['input']!r}: {message[0].lower()}{message[1:]}")
    return "; ".join(problems)


def load_toml(path: str | Path, cls: Any) -> Any:
    """Read a config from a TOML file. Raises UserError when the file is missing, not TOML, or not a valid `cls`."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a TOML file")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    return parse(cls, values, source=str(path))


def to_dict(value: Any) -> Any:
    """A config (or a container of them) as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_dict(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_dict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_dict(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def fingerprint(value: Any) -> str:
    """Sixteen hex digits that identify a config by its content: equal configs, equal digits."""
    text = json.dumps(to_dict(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def human(value: float, unit: str = "") -> str:
    """A number for people: 12345678 -> '12.3M'. Decimal prefixes, three significant digits."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}{unit}"
    for power, prefix in (
        (1e24, "Y"),
        (1e21, "Z"),
        (1e18, "E"),
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "G" if unit else "B"),
        (1e6, "M"),
        (1e3, "k"),
    ):
        if abs(value) >= power * 0.9995:
            return f"{value / power:.3g}{prefix}{unit}"
    return f"{value:.3g}{unit}"
