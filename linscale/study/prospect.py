"""What a law promises one architecture for a budget: size, tokens and loss, with intervals where the law has them.

Laws are read from the JSON of `linscale fit`, from a study's fits.json, or are the published ones. Two kinds are of
use: surfaces, L(N, D), whose N_opt and D_opt follow from 6 N D FLOPs, and power laws of compute, which state L, N_opt
and D_opt each by itself.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from linscale.config import UserError
from linscale.study.laws import PAPER_LAWS, PARAMETERS, PFLOP_S_DAY, power_law
from linscale.study.table.group import INTERVAL, warning
from linscale.study.table.surfaces import gamma_form, optimum

Array = np.ndarray
Flops = Literal["paper", "6nd", "own"]
SURFACES = ("chinchilla", "gamma", "overtrain", "repeat")
POWERS = ("envelope", "isoflop")
PAPER_RANGE = (0.4, 180.0)  # PFLOP/s-days
PAPER = "arXiv 2406.16690"


@dataclass(frozen=True)
class Interval:
    """A number, and its 95% interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Prospect:
    """A law of one architecture."""

    arch: str
    source: str
    """The file, or the paper."""
    law: str
    flops: Flops
    """What a FLOP of the law is: the paper's closed form, 6 N D, or a column of the table, which only it knows."""
    values: Mapping[str, float]
    """Parameters of the law, by name."""
    entry: Mapping[str, Any]
    """The group in the file: its name, points, draws, band."""
    warnings: tuple[dict[str, str], ...] = ()

    @property
    def group(self) -> str:
        """Name of the group in the file."""
        return str(self.entry["group"])

    @functools.cached_property
    def draws(self) -> Mapping[str, Array]:
        """Values (r,) of the parameters in the resamples, by name; empty without."""
        found = self.entry.get("draws") or {}
        return {key: np.array(each, dtype=float) for key, each in found.items() if len(each) > 1}

    @property
    def is_surface(self) -> bool:
        """Whether the law is one of N and D."""
        return self.law in SURFACES

    def optimal(self, flops: float) -> tuple[Interval, Interval]:
        """N_opt and D_opt for training FLOPs as the law counts them."""
        every = [self.values, *([self.draws] if self.draws else [])]
        (n, d), *spread = [optimal(self.law, each, flops) for each in every]
        sizes, tokens = spread[0] if spread else (None, None)
        return _interval(float(n), sizes), _interval(float(d), tokens)

    def loss(self, n: float, d: float, flops: float) -> Interval:
        """Loss of N parameters after D tokens, which are so many FLOPs as the law counts them; nats per token.

        Of the law: a single run differs from it by its seed besides.
        """
        value = float(law_loss(self.law, self.values, n, d, flops))
        if not self.draws:
            return Interval(value, *_band(self.entry.get("band"), value, flops))
        return _interval(value, law_loss(self.law, self.draws, n, d, flops))


def surface_of(law: str, parameters: Mapping[str, Any]) -> tuple[Any, Any, Any, Any, Any, Any]:
    """E, A, B, alpha, beta, gamma of a law of N and D, of numbers or of draws (r,); tokens are taken as fresh ones."""
    p = parameters
    if law == "overtrain":  # E + a N^b + a' 6^(b/2) (M N)^b, and M N = D
        return p["E"], p["a"], p["a_prime"] * 6 ** (p["b"] / 2), -p["b"], -p["b"], 1.0
    return p["E"], p["A"], p["B"], p["alpha"], p["beta"], p.get("gamma", 1.0)


def law_loss(law: str, parameters: Mapping[str, Any], n: float, d: float, flops: float) -> Any:
    """Loss by any law that a plan can rest on: a number for numbers, (r,) for draws (r,) of the parameters."""
    if law in SURFACES:
        return gamma_form(n, d, *surface_of(law, parameters))  # type: ignore[arg-type]
    return power_law(flops / PFLOP_S_DAY, parameters["l_coefficient"], parameters["l_exponent"])


def optimal(law: str, parameters: Mapping[str, Any], flops: float) -> tuple[Any, Any]:
    """N_opt and D_opt of so many FLOPs: numbers for numbers, (r,) for draws (r,) of the parameters."""
    if law in SURFACES:
        _, A, B, alpha, beta, _ = surface_of(law, parameters)
        with np.errstate(all="ignore"):
            a, log_n, log_d = optimum(A, B, alpha, beta)
            return np.exp(log_n) * (flops / 6) ** a, np.exp(log_d) * (flops / 6) ** (1 - a)
    compute = flops / PFLOP_S_DAY
    pairs = [[parameters[f"{name}_opt_{part}"] for part in ("coefficient", "exponent")] for name in ("n", "d")]
    return power_law(compute, *pairs[0]), power_law(compute, *pairs[1])


def published(arch: str) -> Prospect:
    """The paper's law of an architecture. It states no intervals."""
    law = PAPER_LAWS[arch]
    values = {name: float(getattr(law, name)) for name in PARAMETERS}
    return Prospect(arch, PAPER, "envelope", "paper", values, {"group": arch, "compute_range": list(PAPER_RANGE)})


def read_fit(path: Path) -> dict[str, Any]:
    """The JSON of a fit. Raises UserError when it is missing or is something else."""
    if not path.is_file():
        raise UserError(f"fit = {path}: no such file; expected what `linscale fit --json` or a study writes")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"fit = {path}: not JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("groups"), list) or "units" not in content:
        raise UserError(f"fit = {path}: no fitted laws in it; expected what `linscale fit --json` or a study writes")
    return content


def fitted(path: Path, content: Mapping[str, Any], arch: str) -> Prospect:
    """The law of an architecture in a fit. Raises UserError where there is none, or none that gives a size."""
    entry, warnings = _group(path, content, arch)
    law, name = str(entry["law"]), str(entry["group"])
    if law not in SURFACES + POWERS:
        raise UserError(
            f"fit = {path}: {name} has the law {law}, which has no optimal size; expected one of "
            f"{', '.join(SURFACES + POWERS)}"
        )
    values = {key: float(each["value"]) for key, each in entry["parameters"].items()}
    definition = str((content.get("columns") or {}).get("c", "paper" if "columns" not in content else "6nd"))
    flops: Flops = "6nd" if law in SURFACES or definition == "6nd" else "paper" if definition == "paper" else "own"
    surface = surface_of(law, values) if law in SURFACES else ()
    if surface and min(surface[1:5]) <= 0:
        raise UserError(f"fit = {path}: {name}: an exponent is 0: loss does not fall with N or D, and no size is best")
    found = (*warnings, *_doubts(name, entry))
    return Prospect(arch, str(path), law, flops, values, entry, found)


def _group(path: Path, content: Mapping[str, Any], arch: str) -> tuple[Mapping[str, Any], list[dict[str, str]]]:
    groups = content["groups"]
    exact = [each for each in groups if arch in str(each["group"]).split("/")]
    if len(exact) == 1:
        return exact[0], []
    names = ", ".join(str(each["group"]) for each in groups)
    if len(exact) > 1:
        raise UserError(
            f"fit = {path}: {len(exact)} groups are of {arch} ({names}); leave one with --where when fitting"
        )
    for item in content.get("refused", []):
        if arch in str(item["group"]).split("/"):
            raise UserError(f"fit = {path}: {arch} could not be fitted: {item['reason']}")
    if [str(each["group"]) for each in groups] == ["all"]:
        text = "the fit does not tell architectures apart: its one law is taken for each"
        return groups[0], [warning("one_law", text, [arch])]
    raise UserError(f"fit = {path}: no group {arch!r}; it has {names or 'none'}")


def _doubts(name: str, entry: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the fit itself says against its parameters."""
    found = []
    for key, each in entry["parameters"].items():
        if each.get("at_bound"):
            text = "a parameter of the law is on its bound: the points do not show its term, and the plan rests on it"
            found.append(warning("law_at_bound", text, [f"{name} {key}"]))
        elif each.get("identified") is False:
            text = "a parameter of the law is not identified by its points"
            found.append(warning("law_not_identified", text, [f"{name} {key}"]))
    return found


def _interval(value: float, replicates: Array | None) -> Interval:
    finite = replicates[np.isfinite(replicates)] if replicates is not None else np.empty(0)
    if finite.size < 2:
        return Interval(value)
    low, high = np.percentile(finite, INTERVAL)
    return Interval(value, float(low), float(high))


def _band(band: Mapping[str, Any] | None, value: float, flops: float) -> tuple[float | None, float | None]:
    """The 95% interval of a study's L(C), whose file keeps a band in place of draws.

    The variance of a fitted line is a quadratic of log C: the one through the squared half-widths of the band, also
    beyond its ends.
    """
    if not band:
        return None, None
    x = np.log(np.array(band["compute"], dtype=float))
    half = np.log(np.array(band["loss_high"]) / np.array(band["loss_low"])) / 2
    origin, scale = x.mean(), max(float(np.ptp(x)), 1e-9)
    at = (np.log(flops / PFLOP_S_DAY) - origin) / scale
    squared = float(np.polyval(np.polyfit((x - origin) / scale, half**2, 2), at))
    width = float(np.sqrt(max(squared, float((half**2).min()))))
    return value * float(np.exp(-width)), value * float(np.exp(width))
