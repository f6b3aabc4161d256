"""What a figure of a page is: axes, and marks of groups, as plain numbers. page.js draws it, and its CSV holds it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

import numpy as np

from linscale.study.laws import PAPER_LAWS, EnvelopeLaw

Array = np.ndarray
Kind = Literal["curve", "points", "faint", "minimum", "line", "dashed", "dotted", "band"]
"""How a mark is drawn: a thin line, solid or faint symbols, a ringed diamond, lines, the area between low and high."""
DIGITS = 6  # significant, of numbers on a page
LINE_POINTS = 33  # of a law that is drawn
PAPER_RANGE = (0.01, 1000.0)  # PFLOP/s-days over which the paper draws its curves
LAW_VALUES: Mapping[str, str] = {"l": "loss", "n_opt": "params", "d_opt": "tokens"}
"""The laws of compute by the beginning of their parameters' names, and what each gives."""


@dataclass(frozen=True)
class Axis:
    """One axis: its column in the CSV, its title, and how its numbers are written."""

    column: str
    title: str
    text: Literal["power", "human", "loss", "percent", "number"] = "number"
    log: bool = True
    symbol: str = ""
    """What hover texts call it, as in "C"."""
    range: tuple[float, float] | None = None
    """What it covers at first where that is less than everything."""


@dataclass(frozen=True)
class Mark:
    """Some numbers of one group, drawn alike. Bands have `sides`, all others `y`; arrays of one length."""

    kind: Kind
    label: str
    """What it is: "law", "published", the name of a run."""
    group: str | None
    """The group that shows and hides it; None for what is always there."""
    x: Sequence[float]
    y: Sequence[float] = ()
    sides: tuple[Sequence[float], Sequence[float]] = ((), ())
    """Of a band: low and high."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further columns for the hover text and the CSV, each a value for all or a list."""

    @property
    def low(self) -> Sequence[float]:
        """The lower side of a band."""
        return self.sides[0]

    @property
    def high(self) -> Sequence[float]:
        """The upper side of a band."""
        return self.sides[1]


@dataclass(frozen=True)
class Figure:
    """One figure of a page."""

    id: str
    title: str
    """In words, for those who do not see it and as the name of what is downloaded."""
    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    caption: str
    """HTML under the figure."""
    tall: bool = False


COMPUTE = Axis("compute_pflop_s_days", "Compute C (PFLOP/s-days)", "power", symbol="C")
LOSS = Axis("loss_nats", "Loss (nats per token)", "loss", symbol="L")
PARAMS = Axis("params", "Parameters N", "human", symbol="N")
TOKENS = Axis("tokens", "Tokens D", "human", symbol="D")


def series(names: Sequence[str], shown: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """The groups of a page in the order of its colours; `shown` are their names for people, where they differ."""
    return [{"id": name, "name": (shown or {}).get(name, name), "series": at} for at, name in enumerate(names)]


def to_json(figure: Figure) -> dict[str, Any]:
    """What page.js reads of a figure; numbers that are not finite, which no log axis has, are left out with their x."""
    axes = {
        name: {
            "column": axis.column,
            "title": axis.title,
            "text": axis.text,
            "log": axis.log,
            "symbol": axis.symbol,
            "range": None if axis.range is None else list(axis.range),
        }
        for name, axis in (("x", figure.x), ("y", figure.y))
    }
    marks = [_mark(mark, figure) for mark in figure.marks]
    return {"id": figure.id, "title": figure.title, **axes, "marks": [mark for mark in marks if mark["x"]]}


def drawn(figure: Figure) -> str:
    """The place of a figure on a page, in HTML."""
    label = escape(f"{figure.title}. Arrow keys move, plus and minus zoom, 0 shows the whole range.", quote=True)
    return (
        f'<figure><div class="plot{" tall" if figure.tall else ""}" id="{escape(figure.id)}" role="img" tabindex="0" '
        f'aria-label="{label}"></div><figcaption>{figure.caption}</figcaption></figure>'
    )


def law_line(label: str, group: str, x: Array, y: Array, kind: Kind = "line") -> Mark:
    """A line of a law."""
    return Mark(kind, label, group, rounded(x), rounded(y))


def band(group: str, x: Array, low: Array, high: Array) -> Mark:
    """The 95% band of a law."""
    return Mark("band", "95% band", group, rounded(x), sides=(rounded(low), rounded(high)))


def published(group: str, law: str, shown: tuple[float, float]) -> list[Mark]:
    """The paper's law of an architecture where its compute and what is shown overlap: outside, it would extrapolate.

    `law` is "l", "n_opt" or "d_opt", `shown` the least and most compute in PFLOP/s-days. Empty for other groups.
    """
    low, high = max(shown[0], PAPER_RANGE[0]), min(shown[1], PAPER_RANGE[1])
    if group not in PAPER_LAWS or low >= high:
        return []
    compute = np.geomspace(low, high, LINE_POINTS)
    return [law_line("published", group, compute, of_compute(PAPER_LAWS[group], law, compute), "dotted")]


def of_compute(law: EnvelopeLaw, name: str, compute: Array) -> Array:
    """L, N_opt or D_opt, by the beginning of its parameters' names, at `compute` PFLOP/s-days."""
    values: Array = getattr(law, LAW_VALUES[name])(compute)
    return values


def numbers(values: Iterable[float | None]) -> Array:
    """Values of a JSON list as an array, nan for null."""
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def rounded(values: Iterable[float], digits: int = DIGITS) -> list[float]:
    """Numbers short enough for a page."""
    return [float(f"{value:.{digits}g}") for value in values]


def _mark(mark: Mark, figure: Figure) -> dict[str, Any]:
    x = np.asarray(mark.x, dtype=float)
    columns = {
        name: np.asarray(getattr(mark, name), dtype=float) for name in ("y", "low", "high") if getattr(mark, name)
    }
    good = np.isfinite(x) & (x > 0 if figure.x.log else True)
    for values in columns.values():
        good &= np.isfinite(values) & (values > 0 if figure.y.log else True)
    kept = np.flatnonzero(good).tolist()
    extra = {
        name: [values[at] for at in kept] if isinstance(values, (list, tuple)) else values
        for name, values in mark.extra.items()
    }
    listed = {name: [values[at].item() for at in kept] for name, values in {"x": x, **columns}.items()}
    return {"kind": mark.kind, "label": mark.label, "group": mark.group, **listed, "extra": extra}
