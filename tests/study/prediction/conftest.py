"""Fits as a file holds them, made of parameters."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from linscale.study.prediction.fit_file import groups_of
from linscale.study.prediction.fitted import Fitted

Content = dict[str, Any]


def content(law: str, values: dict[str, float], draws: dict[str, Any] | None = None, **entry: Any) -> Content:
    """The JSON of a fit of one group, `group` among `entry`; top-level keys by `top`."""
    top = entry.pop("top", {})
    group = {
        "group": entry.pop("group", "all"),
        "law": law,
        "formula": "",
        "parameters": {name: {"value": value, "at_bound": False, "identified": True} for name, value in values.items()},
        "objective": {"name": "sum of half the square of residuals of log L", "value": 0.0},
        "draws": {name: np.asarray(each).tolist() for name, each in (draws or {}).items()},
        "warnings": [],
        **entry,
    }
    return {"version": 1, "source": "t.csv", "columns": {}, "settings": {"seed": 0}, "groups": [group], **top}


@pytest.fixture
def make() -> Callable[..., Content]:
    return content


@pytest.fixture
def power() -> Callable[..., Fitted]:
    """A group with a power law of compute, fitted from 0.1 to 100 PFLOP/s-days unless `points` says otherwise."""

    def made(name: str, coefficient: float, exponent: float, E: float = 0.0, draws: Any = None, **entry: Any) -> Fitted:
        values = {"E": E, "l_coefficient": coefficient, "l_exponent": exponent}
        entry.setdefault("points", {"c": [0.1 * 8.64e19, 100 * 8.64e19]})
        (group,) = groups_of(content("power", values, draws, group=name, **entry), f"{name}.json")
        return group

    return made
