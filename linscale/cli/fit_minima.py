"""What linscale fit prints of the laws that go through minima: isoflop, envelope and pac."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from linscale.cli.output import print_table

SHOWN = 12


def print_minima(fitted: dict[str, Any]) -> None:
    """The minima that the law goes through; of many, some that are evenly spread."""
    minima = fitted.get("minima")
    if not minima:
        return
    names = [name for name in ("compute", "tokens", "params", "loss", "best_loss") if name in minima]
    titles = {"compute": "C", "tokens": "D", "params": "N", "loss": "L", "best_loss": "lowest L"}
    rows = list(zip(*(minima[name] for name in names), strict=True))
    step = -(-len(rows) // SHOWN)
    shown = [tuple(f"{value:.4g}" for value in row) for row in rows[::step]]
    title = f"minima: {len(rows)}" + (f", one in {step} shown" if step > 1 else "")
    print_table(title, [titles[name] for name in names], shown, left=0)


def law_lines(fitted: dict[str, Any]) -> Iterator[str]:
    """What else the law says of itself, a line each."""
    if "abscissa" in fitted:
        yield f"C is {'that of the budget' if fitted['abscissa'] == 'nominal' else 'what the points achieved there'}"
    if "seed_noise" in fitted["bootstrap"]:
        boot = fitted["bootstrap"]
        yield f"noise of a point: {100 * boot['seed_noise']:.2g}% of the loss, {boot['seed_noise_source']}"
    for row in fitted.get("sensitivity", ()):
        exponents = [f"{name} {value:.4g}" for name, value in row.items() if name.endswith("exponent") and value]
        under = f"minimum {row['minimum']}" if "minimum" in row else f"tolerance {row['tolerance']}"
        yield f"with {under}: {', '.join(exponents) or 'not to be fitted'}"
    if "verdict" in fitted:
        yield fitted["verdict"]
