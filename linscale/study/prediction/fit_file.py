"""The JSON of `linscale fit`, or a study's fits.json, checked and read into `Fitted` groups."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from linscale.config import UserError
from linscale.study.prediction.fitted import Fitted

Array = np.ndarray
VERSION = 1
COUNT = 1000
SEED = 0
NORMAL = 1.959964  # 97.5% quantile
LINES = {"l": "loss", "n_opt": "params", "d_opt": "tokens"}
PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "chinchilla": ("E", "A", "B", "alpha", "beta"),
    "gamma": ("E", "A", "B", "alpha", "beta", "gamma"),
    "overtrain": ("E", "a", "a_prime", "b"),
    "repeat": ("E", "A", "B", "alpha", "beta", "r_d"),
    "power": ("l_coefficient", "l_exponent"),
    "envelope": ("l_coefficient", "l_exponent"),
    "isoflop": ("l_coefficient", "l_exponent"),
    "sigmoid": ("low", "span", "slope", "midpoint"),
    "pac": ("coefficient", "exponent"),
}
"""By law, what a group must hold to be used."""


def read_fit(path: Path) -> list[Fitted]:
    """The groups of a file. Raises UserError, in one line, for what is not such a file or cannot be used."""
    return groups_of(read_content(path), str(path))


def read_content(path: Path) -> dict[str, Any]:
    """What is in the file of a fit. Raises UserError, in one line, for what is not such a file."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected a file, the JSON of linscale fit or a study's fits.json")
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; expected the JSON that linscale fit --json writes, or a study's fits.json"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON, or cut short ({error}); write it again with linscale fit --json") from None
    return _checked(content, str(path))


def groups_of(content: Any, source: str) -> list[Fitted]:
    """The groups of a file's content. Raises UserError naming `source`."""
    return [fitted_of(entry, content, source) for entry in _checked(content, source)["groups"]]


def _checked(content: Any, source: str) -> dict[str, Any]:
    groups = content.get("groups") if isinstance(content, dict) else None
    if not isinstance(groups, list) or not all(isinstance(entry, dict) for entry in groups) or not groups:
        raise UserError(f"{source}: no fitted groups in it; expected the JSON of linscale fit or a study's fits.json")
    version = content.get("version")
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        remedy = "it is from a newer linscale: update, or fit again" if newer else "fit again"
        raise UserError(f"{source}: version = {version!r}, and this linscale reads version {VERSION}; {remedy}")
    return dict(content)


def select(groups: list[Fitted], names: tuple[str, ...]) -> list[Fitted]:
    """The groups of these names, or all where no name is given. Raises UserError for a name that none has."""
    known = [group.name for group in groups]
    for name in names:
        if name not in known:
            raise UserError(f"group = {name}: no such group; expected one of {', '.join(dict.fromkeys(known))}")
    return [group for group in groups if not names or group.name in names]


def fitted_of(entry: Mapping[str, Any], content: Mapping[str, Any], source: str) -> Fitted:
    """A group of the content of a file. Raises UserError naming `source`."""
    name, law = str(entry.get("group")), str(entry.get("law"))
    if law not in PARAMETERS:
        raise UserError(f"{source}: group {name}: law = {law}: expected one of {', '.join(PARAMETERS)}")
    table = entry.get("parameters")
    table = table if isinstance(table, dict) else {}
    for needed in PARAMETERS[law]:
        if needed not in table:
            raise UserError(f"{source}: group {name}: no parameter {needed}, which the {law} law needs; fit again")
    draws = entry.get("draws") or {}
    try:
        fit = {key: float(each["value"]) for key, each in table.items()}
        drawn = {key: np.array(draws[key], dtype=float) for key in fit if key in draws}
        if not drawn and "compute" in (entry.get("band") or {}):  # that of the pac law is another thing
            drawn = drawn_from_band(entry["band"])
    except (TypeError, ValueError, KeyError):
        raise UserError(f"{source}: group {name}: a parameter or a draw is not a number; fit again") from None
    lengths = {len(each) for each in drawn.values()} if set(drawn) == set(fit) else {0}
    if len(lengths) > 1:
        raise UserError(f"{source}: group {name}: draws of unequal length; fit again")
    values = {key: np.concatenate([[fit[key]], drawn[key] if lengths != {0} else []]) for key in fit}
    settings = content.get("settings")
    table_file = {"table": content.get("source"), "columns": content.get("columns") or {}, "settings": settings or {}}
    return Fitted(name, source, law, values, entry, table_file)


def drawn_from_band(band: Mapping[str, Any]) -> dict[str, Array]:
    """(COUNT,) by parameter of the three power laws of an envelope, from `band` as in docs/reference/fits.md.

    Resamples in the place of those that a study's fits.json does not keep. Each law is a line, log y = intercept +
    exponent log C. The variance of a fitted line is a quadratic of log C, and its three coefficients are the
    covariance of intercept and exponent: a quadratic through the squared half-widths of the band gives it, and normal
    deviates of that covariance give the band back.
    """
    generator = np.random.default_rng(SEED)
    x = np.log(np.array(band["compute"], dtype=float))
    middle = float(x.mean())
    drawn = {}
    for law, name in LINES.items():
        low, high = (np.log(np.array(band[f"{name}_{end}"], dtype=float)) for end in ("low", "high"))
        tilt, level = np.polyfit(x - middle, (low + high) / 2, 1)  # where resamples lie, which may be beside the fit
        slopes, levels = _deviates(generator, x - middle, (high - low) / (2 * NORMAL))
        exponents = tilt + slopes
        drawn[f"{law}_coefficient"] = np.exp(level + levels - exponents * middle)
        drawn[f"{law}_exponent"] = exponents
    return drawn


def _deviates(generator: np.random.Generator, x: Array, sigma: Array) -> tuple[Array, Array]:
    """(COUNT,) deviates of the slope and of the level at x = 0 of a line that is known to sigma (g,) at x (g,)."""
    curve, tilt, height = np.polyfit(x, sigma**2, 2)
    curve, height = max(curve, 0.0), max(height, 0.0)
    most = np.sqrt(curve * height)
    shared = float(np.clip(tilt / 2, -most, most))
    covariance = np.array([[curve, shared], [shared, height]])
    slopes, levels = generator.multivariate_normal(np.zeros(2), covariance, size=COUNT, method="eigh").T
    return slopes, levels
