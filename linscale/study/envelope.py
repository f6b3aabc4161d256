"""The lower envelope of an architecture's loss curves: at each compute, the best size between the sizes trained.

Three points where the plain recipe (take the minimum over the runs) goes wrong, and what is done here:

*The winner is a staircase.* The size that wins jumps from one trained size to the next, and least squares on n
steps attenuates the exponent by about 1/n^2. So the minimum is refined: the vertex of the parabola through log loss
at the winner and its two neighbours, first in log N, then in a power N^s that makes the valley symmetric. Under
L = E + A N^-alpha + B D^-beta with f ~ N^gamma, loss falls as N^-alpha on one side and rises as N^(gamma beta) on the
other; the third over the second derivative at the optimum is gamma beta - alpha, and three times s. Without it N_opt
is up to 4% off on the paper's ladder (ratios of 2.3 to 4.2 in N), with it 0.5%. Cubics through four sizes did worse.

*Shapes are not a smooth family.* Depth and width do not grow in step, and softmax attention pays 6N(1 + n/6d) FLOPs
a token, so compute at equal tokens zigzags by 4% along the paper's own LLaMA ladder. Loss is smooth in (N, D), not
in (N, C): the zigzag alone moves the exponent of N_opt by 5%. So compute is that of the family, C = D f(N), with
log f a quadratic in log N through the runs' FLOPs per token.

*Edges.* Where the smallest or the largest size wins, nothing shows that it is the best: those stretches are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from linscale.config import UserError
from linscale.study.laws import fit_power_laws
from linscale.study.results import Curve, interpolated, smoothed

Array = np.ndarray
MIN_SIZES = 3
SAME_SIZE = float(np.log(1.1))  # in log N: a parabola through sizes closer than this would amplify their noise
MIN_POINTS = 3  # loss values a run needs after its warm-up: two give a line, and say nothing about its bend
MAX_SKEW = 0.15  # |gamma beta - alpha| / 3 for exponents up to 0.5: a noisy first fit must not bend the axis further
MIN_RANGE = float(np.log(2.0))  # in log compute: a line through less than a factor of two says nothing


@dataclass(frozen=True)
class Ladder:
    """The runs of one architecture on a common grid of compute: r runs, s sizes, g compute values."""

    arch: str
    runs: tuple[str, ...]
    size_of: Array
    """(r,) the position of each run's size in `log_params`."""
    log_params: Array
    """(s,) log N, ascending."""
    log_compute: Array
    """(g,) of the family: log D + log f(N), in log FLOPs."""
    log_loss: Array
    """(r, g), nan where a run has no measurement."""
    flops_poly: Array
    """Coefficients of log f in log N, highest power first."""
    irregularity: float
    """Largest deviation of a run's log FLOPs per token from log f."""
    dropped: dict[str, int]
    """What was left out, by rule: loss values of the warm-up, runs with too few values."""


@dataclass(frozen=True)
class Minima:
    """The refined minimum over sizes, for b replicates at g compute values; all arrays (b, g)."""

    kept: Array
    """True where the minimum counts."""
    log_loss: Array
    log_params: Array
    compared: Array
    """True where at least three sizes are measured."""
    edge: Array
    """True where the smallest or the largest of them wins."""


@dataclass(frozen=True)
class Envelope:
    """The lower envelope of one architecture: p refined minima, in order of compute."""

    compute: Array
    """(p,) FLOPs."""
    loss: Array
    """(p,) nats per token."""
    params: Array
    """(p,) non-embedding parameters of the best size."""
    tokens: Array
    """(p,) tokens it has seen."""
    dropped: dict[str, int]
    """What was left out, by rule: loss values, runs, and compute values."""
    edge_share: float
    """Fraction of the compute values with three sizes at which the smallest or the largest wins."""
    skew: float
    """The power s of N in which the valley is symmetric; 0 means log N."""
    bracketed: bool
    """True when the winners with a neighbour on either side span too little, and stretches where the smallest or the
    largest size wins were kept as far as the parabola's vertex lies between measured sizes."""


def build_ladder(curves: Sequence[Curve], *, grid: int, smooth: float, discard: float) -> Ladder:
    """Put the curves of one architecture on `grid` log-spaced compute values.

    The first fraction `discard` of each run's tokens is dropped, and the rest averaged over the fraction `smooth`.
    Runs of one N, within 10%, are one size. Raises UserError when fewer than three sizes are left.
    """
    arch = curves[0].arch
    trimmed = [(c, c.tokens >= discard * c.tokens[-1]) for c in curves]
    usable = [(c, keep) for c, keep in trimmed if keep.sum() >= MIN_POINTS]
    log_n = np.log([c.params for c, _ in usable])
    ascending = np.unique(log_n)
    smallest = ascending[np.diff(ascending, prepend=-np.inf) > SAME_SIZE]
    size_of = np.searchsorted(smallest, log_n, side="right") - 1
    log_params = np.array([log_n[size_of == size].mean() for size in range(len(smallest))])
    if len(log_params) < MIN_SIZES:
        raise UserError(
            f"{arch}: {len(log_params)} size(s) with at least {MIN_POINTS} loss values after the warm-up; "
            f"a fit needs {MIN_SIZES} or more sizes that overlap in compute"
        )
    log_flops = np.log([c.flops_per_token for c, _ in usable])
    poly = np.polyfit(log_n, log_flops, 2)
    family = np.polyval(poly, log_n)
    axes = [np.log(c.tokens[keep]) + f for (c, keep), f in zip(usable, family, strict=True)]
    log_compute = np.linspace(min(a[0] for a in axes), max(a[-1] for a in axes), grid)
    values = [np.log(smoothed(c.tokens[keep], c.loss[keep], smooth)) for c, keep in usable]  # no warm-up leaks in
    return Ladder(
        arch=arch,
        runs=tuple(c.run for c, _ in usable),
        size_of=size_of,
        log_params=log_params,
        log_compute=log_compute,
        log_loss=np.stack([interpolated(a, v, log_compute) for a, v in zip(axes, values, strict=True)]),
        flops_poly=poly,
        irregularity=float(np.abs(log_flops - family).max()),
        dropped={
            "warm_up": sum(int((~keep).sum()) for _, keep in usable),
            "too_few_values": len(trimmed) - len(usable),
        },
    )


def average_sizes(ladder: Ladder, drawn: Array, shifts: Array) -> Array:
    """Log loss of each size where run r is drawn `drawn[b, r]` times and shifted by `shifts[b, r]`: (b, s, g).

    A size is the mean of its drawn runs that are measured there, and infinite where none is: a shorter repeat adds to
    a size and takes nothing away.
    """
    measured = ~np.isnan(ladder.log_loss)
    values = np.where(measured, ladder.log_loss, 0.0)
    averaged = np.empty((len(drawn), len(ladder.log_params), len(ladder.log_compute)))
    for size in range(len(ladder.log_params)):
        runs = ladder.size_of == size
        count = drawn[:, runs] @ measured[runs]
        total = drawn[:, runs] @ values[runs] + (drawn[:, runs] * shifts[:, runs]) @ measured[runs]
        averaged[:, size] = np.where(count > 0, total / np.maximum(count, 1), np.inf)
    return averaged


def find_minima(log_loss: Array, log_params: Array, *, skew: float, bracketed: bool) -> Minima:
    """The vertex of the parabola in N^skew through the winner and its neighbours among the sizes measured there.

    log_loss (b, s, g), infinite where a size is absent; log_params (s,). Kept are convex parabolas whose vertex lies
    between the three sizes; with `bracketed` also where the winner is the smallest or largest size measured.
    """
    sizes, centre = len(log_params), log_params.mean()
    axis = np.expm1(skew * (log_params - centre)) / skew if skew else log_params - centre
    order = np.argsort(~np.isfinite(log_loss), axis=1, kind="stable")  # measured sizes first, each in order of N
    y, x = np.take_along_axis(log_loss, order, axis=1), axis[order]
    count = np.isfinite(log_loss).sum(1)
    winner = y.argmin(1)
    middle = np.clip(winner, 1, np.maximum(count - 2, 1))

    def at(values: Array, offset: int) -> Array:
        return np.take_along_axis(values, np.clip(middle + offset, 0, sizes - 1)[:, None], axis=1)[:, 0]

    x0, x1, x2 = at(x, -1), at(x, 0), at(x, 1)
    y0, y1, y2 = at(y, -1), at(y, 0), at(y, 1)
    compared, edge = count >= MIN_SIZES, (winner == 0) | (winner == count - 1)
    with np.errstate(all="ignore"):  # infinities of absent sizes, masked below
        slope = (y1 - y0) / (x1 - x0)
        bend = ((y2 - y1) / (x2 - x1) - slope) / (x2 - x0)
        vertex = (x0 + x1) / 2 - slope / (2 * bend)  # of the Newton form y0 + slope (x-x0) + bend (x-x0)(x-x1)
        lowest = y0 + (vertex - x0) * (slope + bend * (vertex - x1))
        kept = compared & (bend > 0) & (vertex >= x0) & (vertex <= x2)
        best = np.where(kept, centre + (np.log1p(skew * vertex) / skew if skew else vertex), centre)
    return Minima(kept if bracketed else kept & ~edge, lowest, best, compared, edge)


def lower_envelope(ladder: Ladder) -> Envelope:
    """The envelope of all runs. Raises UserError naming the architecture where there is none to fit."""
    everything = np.ones((1, len(ladder.runs)))
    sizes = average_sizes(ladder, everything, np.zeros_like(everything))
    minima, bracketed = find_minima(sizes, ladder.log_params, skew=0.0, bracketed=False), False
    if _span(ladder, minima) < MIN_RANGE:
        minima, bracketed = find_minima(sizes, ladder.log_params, skew=0.0, bracketed=True), True
    skew = _skew(ladder, minima)
    minima = find_minima(sizes, ladder.log_params, skew=skew, bracketed=bracketed)
    compared, edge, kept = minima.compared[0], minima.edge[0], minima.kept[0]
    if not compared.any():
        raise UserError(
            f"{ladder.arch}: no compute value at which {MIN_SIZES} sizes overlap; "
            "train the small sizes on more tokens, or sizes closer together"
        )
    if _span(ladder, minima) < MIN_RANGE:
        raise UserError(f"{ladder.arch}: {_off_centre(sizes[0][:, compared])}")
    log_params, log_compute = minima.log_params[0][kept], ladder.log_compute[kept]
    return Envelope(
        compute=np.exp(log_compute),
        loss=np.exp(minima.log_loss[0][kept]),
        params=np.exp(log_params),
        tokens=np.exp(log_compute - np.polyval(ladder.flops_poly, log_params)),
        dropped=ladder.dropped
        | {
            "no_competitor": int((~compared).sum()),
            "edge": int((compared & edge & ~kept).sum()),
            "no_minimum": int((compared & ~edge & ~kept).sum()),
        },
        edge_share=float((compared & edge).sum() / compared.sum()),
        skew=skew,
        bracketed=bracketed,
    )


def log_values(ladder: Ladder, minima: Minima) -> Array:
    """log L, log N_opt and log D_opt at the minima: (b, 3, g)."""
    log_tokens = ladder.log_compute - np.polyval(ladder.flops_poly, minima.log_params)
    return np.stack([minima.log_loss, minima.log_params, log_tokens], axis=1)


def _skew(ladder: Ladder, minima: Minima) -> float:
    """(gamma beta - alpha) / 3 by the exponents l, n, d of a first fit: alpha = -l / n and beta = -l / d where E = 0.

    Where E > 0 both come out too small, and so does the correction, with the right sign.
    """
    values = log_values(ladder, minima)
    _, exponents = fit_power_laws(ladder.log_compute, values, np.broadcast_to(minima.kept[:, None], values.shape))
    of_loss, of_params, of_tokens = exponents[0]
    if not (of_loss < 0 and of_params > 0 and of_tokens > 0):
        return 0.0
    gamma = np.polyval(np.polyder(ladder.flops_poly), ladder.log_params.mean())
    return float(np.clip(of_loss * (1 / of_params - gamma / of_tokens) / 3, -MAX_SKEW, MAX_SKEW))


def _off_centre(log_loss: Array) -> str:
    """Why log losses (s, g) have no minimum between sizes, and what to add."""
    measured = np.isfinite(log_loss)
    winner = log_loss.argmin(0)
    smallest = float((winner == measured.argmax(0)).mean())
    largest = float((winner == len(log_loss) - 1 - measured[::-1].argmax(0)).mean())
    remedy = "smaller sizes, or train longer" if smallest > largest else "larger sizes"
    return (
        "no size between two others wins over a factor of two in compute "
        f"(the smallest wins at {smallest:.0%} of the compute values, the largest at {largest:.0%}); add {remedy}"
    )


def _span(ladder: Ladder, minima: Minima) -> float:
    kept = ladder.log_compute[minima.kept[0]]
    return float(np.ptp(kept)) if len(kept) else 0.0
