"""Cases of a test, of which `make check` runs a few."""

from collections.abc import Iterable
from typing import Any

import pytest


def quick(cases: Iterable[Any], *kept: Any) -> list[Any]:
    """All cases as parameters; those not `kept`, whose code is that of the others in another mixture, are slow."""
    cases = list(cases)
    assert set(kept) <= set(cases), f"{set(kept) - set(cases)} are no cases"
    names = ["-".join(map(str, case)) if isinstance(case, tuple) else str(case) for case in cases]
    marks = [() if case in kept else pytest.mark.slow for case in cases]
    return [pytest.param(*each[:1], id=each[1], marks=each[2]) for each in zip(cases, names, marks, strict=True)]
