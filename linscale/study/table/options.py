"""Options that belong to some laws only: how minima are found, on which abscissa, and what is assumed or allowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from linscale.config import UserError

Method = Literal["parabola", "akima", "cubic-log"]
Abscissa = Literal["nominal", "achieved"]
READS = {
    "isoflop": ("minimum", "abscissa", "seed_noise"),
    "envelope": ("seed_noise",),
    "pac": ("tolerance", "seed_noise"),
    "sigmoid": ("chance",),
}
"""By law, the options that it reads."""


@dataclass(frozen=True)
class Tolerance:
    """How far above the best loss counts as good enough."""

    amount: float
    """Nats per token, or a fraction of the best loss."""
    relative: bool

    @classmethod
    def parse(cls, text: str) -> Tolerance:
        """ "0.02" in nats per token, or "1%" of the best loss. Raises UserError for anything else."""
        relative = text.endswith("%")
        try:
            amount = float(text.removesuffix("%")) / (100 if relative else 1)
        except ValueError:
            amount = 0.0
        if not 0 < amount < (1 if relative else 10):
            raise UserError(
                f"tolerance = {text!r}: expected nats per token, as in 0.02, or a share of the best loss, as in 1%"
            )
        return cls(amount, relative)

    def times(self, factor: float) -> Tolerance:
        """The same kind of tolerance, wider or narrower."""
        return Tolerance(self.amount * factor, self.relative)

    def __str__(self) -> str:
        return f"{100 * self.amount:g}%" if self.relative else f"{self.amount:g}"


@dataclass(frozen=True)
class LawOptions:
    """What the laws of `READS` read besides the points."""

    minimum: Method = "parabola"
    """How the minimum of a budget is found."""
    abscissa: Abscissa | None = None
    """The compute of a minimum: the budget's, or that of its points there. None where the two are the same."""
    seed_noise: float = 0.003
    """Standard deviation of log loss between runs that differ in their seed alone, where points do not measure it."""
    tolerance: Tolerance = Tolerance(0.02, relative=False)
    chance: float | None = None
    """What accuracy is held to at the low end; fitted where it is not given."""

    def listed(self, law: str) -> dict[str, Any]:
        """What the law reads, for the JSON's settings."""
        values = {name: getattr(self, name) for name in READS.get(law.removesuffix("_irreducible"), ())}
        return {name: str(value) if isinstance(value, Tolerance) else value for name, value in values.items()}


def parse_options(
    law: str,
    *,
    minimum: Method | None = None,
    abscissa: Abscissa | None = None,
    seed_noise: float | None = None,
    tolerance: str | None = None,
    chance: float | None = None,
) -> LawOptions:
    """Options as a user gives them, None for what is not given. Raises UserError for one that the law does not read."""
    given: dict[str, Any] = {"minimum": minimum, "abscissa": abscissa, "seed_noise": seed_noise}
    given |= {"tolerance": tolerance, "chance": chance}
    for name, value in given.items():
        readers = [each for each, reads in READS.items() if name in reads]
        if value is not None and law not in readers:
            raise UserError(f"{name}: the {law} law does not read it; it is an option of --law {' and '.join(readers)}")
    if seed_noise is not None and not 0 <= seed_noise < 1:
        raise UserError(
            f"seed_noise = {seed_noise}: expected a standard deviation of log loss from 0 to 1, as in 0.003"
        )
    if chance is not None and not 0 <= chance < 1:
        raise UserError(f"chance = {chance}: expected an accuracy from 0 to below 1, as in 0.25")
    usual = LawOptions()
    return LawOptions(
        minimum or usual.minimum,
        abscissa,
        usual.seed_noise if seed_noise is None else seed_noise,
        usual.tolerance if tolerance is None else Tolerance.parse(tolerance),
        chance,
    )
