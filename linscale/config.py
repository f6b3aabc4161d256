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
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

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
        raise UserError(f"{source}: {explain(error, cls)}") from None


def explain(error: pydantic.ValidationError, cls: Any = None) -> str:
    """One line for all problems found in the values of a `cls`, in the words of the field's name and value."""
    return "; ".join(_problem(item, *_resolve(cls, item["loc"])) for item in error.errors())


def _problem(item: pydantic_core.ErrorDetails, owner: Any, field: str) -> str:
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    message = item["msg"].removeprefix("Value error, ")
    if kind == "unexpected_keyword_argument":
        known = f" (expected one of {', '.join(f.name for f in dataclasses.fields(owner))})" if owner else ""
        return f"unknown key '{field}'{known}"
    if kind in ("missing", "missing_argument"):
        return f"'{field}' is required"
    if kind == "union_tag_not_found":
        return f"'{field}.{context['discriminator'].strip(chr(39))}' is required"
    if kind == "union_tag_invalid":
        tag = context["discriminator"].strip("'")
        return f"{field}.{tag} = {context['tag']!r}: expected one of {context['expected_tags']}"
    if dataclasses.is_dataclass(value) or isinstance(value, (dict, pydantic_core.ArgsKwargs)):
        return f"{field}: {message}" if field else message
    return f"{field or 'value'} = {value!r}: {message[0].lower()}{message[1:]}"


def _resolve(cls: Any, loc: tuple[int | str, ...]) -> tuple[Any, str]:
    """The config class that a problem's last key belongs to, None where that is not known, and the path of the key."""
    owner, names = None, []
    for part in loc:
        cls = _unwrapped(cls)
        arguments = get_args(cls)
        members = [each for each in arguments if dataclasses.is_dataclass(each)]
        if get_origin(cls) in (Union, UnionType) and members:  # `part` is not a key but tells the members apart
            cls = next((each for each in members if part in _tags(each)), None)
            continue
        names.append(str(part))
        owner = cls if dataclasses.is_dataclass(cls) else None
        items = [each for each in arguments if each is not Ellipsis]
        cls = get_type_hints(owner, include_extras=True).get(str(part)) if owner else items[-1] if items else None
    return owner, ".".join(names)


def _unwrapped(cls: Any) -> Any:
    """The type inside Annotated and beside None."""
    if get_origin(cls) is Annotated:
        return _unwrapped(get_args(cls)[0])
    inside = [each for each in get_args(cls) if each is not type(None)]
    if get_origin(cls) in (Union, UnionType) and len(inside) == 1:
        return _unwrapped(inside[0])
    return cls


def _tags(cls: Any) -> set[Any]:
    """The values of the Literal fields of a config class: how a union tells it from others."""
    return {value for hint in get_type_hints(cls).values() if get_origin(hint) is Literal for value in get_args(hint)}


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


def amount(text: str, field: str) -> float:
    """A number as people write it: "1e24", "7B", "300e9", "1.5T", with the prefixes of `human`.

    Raises UserError naming `field` for anything else, and for what is not positive and finite.
    """
    prefixes = {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21, "Y": 1e24}
    digits = text.strip().replace("_", "")
    unit = prefixes.get(digits[-1:], 0.0)
    try:
        value = float(digits[:-1]) * unit if unit else float(digits)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(
            f"{field} = {text!r}: expected a positive number, as in 1e24, 7B or 300e9 (prefixes K M B T P E Z Y)"
        )
    return value


def clock(seconds: float) -> str:
    """A time left, for people: 95 -> '1:35', 7384 -> '2:03:04', 1e6 -> '11 d 13:46:40'."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if hours == 0:
        return f"{minute}:{second:02d}"
    return (f"{days} d " if days else "") + f"{hour}:{minute:02d}:{second:02d}"
