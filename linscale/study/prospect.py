"""What a law promises one architecture for a budget: size, tokens and loss, with intervals where the law has them.

Laws are read from the JSON of `linscale fit`, from a study's fits.json, or are the published ones, and evaluated as
`linscale predict` does (`study.prediction`). Two kinds are of use: surfaces, L(N, D), whose N_opt and D_opt follow from
how FLOPs are counted, and power laws of compute, which state L, N_opt and D_opt each by itself.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from linscale.config import UserError
from linscale.shape import Shape
from linscale.study.prediction import cautions
from linscale.study.prediction.compute_law import ComputeLaw, compute_law, paper_groups, surface_loss
from linscale.study.prediction.estimate import estimate
from linscale.study.prediction.fit_file import fitted_of
from linscale.study.prediction.fitted import Fitted
from linscale.study.prediction.surface import SURFACES
from linscale.study.table.definitions import DEFINITIONS
from linscale.study.table.group import warning

Array = np.ndarray
POWERS = ("envelope", "isoflop")


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
    fitted: Fitted
    warnings: tuple[dict[str, str], ...] = ()

    @property
    def is_surface(self) -> bool:
        """Whether the law is one of N and D."""
        return self.fitted.law in SURFACES

    @functools.cached_property
    def compute(self) -> ComputeLaw:
        """Loss, N and D where compute is spent best."""
        law = compute_law(self.fitted)
        assert law is not None  # of the laws that are admitted
        return law

    def optimal(self, flops: float) -> tuple[Interval, Interval]:
        """N_opt and D_opt for training FLOPs as the law counts them."""
        n, d = self.compute.params(flops), self.compute.tokens(flops)
        assert n is not None
        assert d is not None
        return Interval(**estimate(n)), Interval(**estimate(d))

    def loss(self, n: float, d: float, flops: float) -> Interval:
        """Loss of N parameters after D tokens, which are so many FLOPs as the law counts them; nats per token.

        Of the law: a single run differs from it by its seed besides.
        """
        values = surface_loss(self.fitted, n, d) if self.is_surface else self.compute.loss(flops)
        return Interval(**estimate(values))

    def flops_per_token(self, shape: Shape, params: float, length: int) -> float:
        """Training FLOPs of a token as the law counts them: by its definition, or a column's k N^(1 + kappa)."""
        known = DEFINITIONS["c"].get(self.fitted.definition)
        if known is None:
            return float(self.fitted.flops.flops(params, 1.0))
        return float(known.compute(_described(shape, params, length))[0])

    @property
    def flops_definition(self) -> str:
        """What a FLOP of the law is, in words."""
        known = DEFINITIONS["c"].get(self.fitted.definition)
        return known.formula if known else f"the column {self.fitted.definition}, {self.fitted.flops}"


def published(arch: str) -> Prospect:
    """The paper's law of an architecture. It states no intervals."""
    (found,) = (each for each in paper_groups() if each.name == f"paper:{arch}")
    return Prospect(arch, found.renamed(arch))


def fitted(path: Path, content: Mapping[str, Any], arch: str) -> Prospect:
    """The law of an architecture in the content of a fit's file.

    Raises UserError where there is none, or none that gives a size.
    """
    entry, warnings = _group(path, content, arch)
    law, name = str(entry["law"]), str(entry["group"])
    if law not in SURFACES + POWERS:
        raise UserError(
            f"fit = {path}: {name} has the law {law}, which has no optimal size; expected one of "
            f"{', '.join(SURFACES + POWERS)}"
        )
    found = Prospect(arch, fitted_of(entry, content, str(path)))
    if found.compute.n is None or found.compute.d is None:
        raise UserError(f"fit = {path}: {name}: the file has no n_opt or d_opt; fit again")
    if np.isnan(found.compute.n[0][0]):
        raise UserError(f"fit = {path}: {name}: an exponent is 0: loss does not fall with N or D, and no size is best")
    return Prospect(arch, found.fitted, (*warnings, *_doubts(found)))


def _described(shape: Shape, params: float, length: int) -> dict[str, Array]:
    """What definitions of FLOPs read, of a model and one of its tokens: each (1,)."""
    numbers = {
        "n": params,
        "d": 1.0,
        "length": length,
        "d_model": shape.d_model,
        "n_layers": len(shape.layers),
        "head_dim": shape.head_dim,
        "n_heads": shape.n_heads,
        "d_ff": shape.d_ff,
        "vocab_size": shape.vocab_size,
    }
    return {"arch": np.array([shape.arch])} | {role: np.array([float(each)]) for role, each in numbers.items()}


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


def _doubts(prospect: Prospect) -> list[dict[str, str]]:
    """What the fit itself says against its parameters, and against its law of FLOPs where the plan rests on it."""
    found, name = [], prospect.fitted.name
    bound, loose = cautions.doubtful(prospect.fitted)
    for key in bound:
        text = "a parameter of the law is on its bound: the points do not show its term, and the plan rests on it"
        found.append(warning("law_at_bound", text, [f"{name} {key}"]))
    for key in loose:
        text = "a parameter of the law is not identified by its points"
        found.append(warning("law_not_identified", text, [f"{name} {key}"]))
    if prospect.fitted.definition not in DEFINITIONS["c"]:
        for each in cautions.flops(prospect.fitted):
            found.append(warning(each["name"], each["text"], [f"{name} {each['detail']}"]))
    return found
