"""An axis of a grid in words: 1000,2000,4000 or 1000..16000x35, which is 35 values at equal distances, rounded."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from linscale.config import UserError

SHORT = 4  # values that are always written out
RANGE = re.compile(r"(\d+)\.\.(\d+)x(\d+)")


def parse_axis(name: str, text: str) -> tuple[int, ...]:
    """Whole numbers, ascending and each once. Raises UserError, which calls the axis `name`."""
    if match := RANGE.fullmatch(text.strip()):
        first, last, count = map(int, match.groups())
        values = _spaced(first, last, count) if 1 < count <= last - first + 1 else ()
    elif re.fullmatch(r"\d+(,\d+)*", text.strip()):
        values = tuple(sorted({int(value) for value in text.split(",")}))
    else:
        values = ()
    if not values:
        raise UserError(f"{name} = {text!r}: expected whole numbers such as 1000,2000,4000 or 1000..16000x35")
    return values


def axis_text(values: Sequence[float]) -> str:
    """What `parse_axis` takes: the short form where many are at equal distances."""
    if len(values) > SHORT and tuple(values) == _spaced(values[0], values[-1], len(values)):
        return f"{values[0]:.15g}..{values[-1]:.15g}x{len(values)}"
    return ",".join(f"{value:.15g}" for value in values)


def _spaced(first: float, last: float, count: int) -> tuple[int, ...]:
    return tuple(int(value) for value in np.linspace(first, last, count).round())
