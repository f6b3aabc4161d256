"""Points that a law cannot be fitted to, said by their rows or columns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from linscale.config import UserError
from linscale.study.table.points import ROWS_SHOWN

Array = np.ndarray


def check_fractions(role: str, values: Array, rows: Array) -> None:
    """Raises UserError naming the rows (m,) whose accuracy or error (m,) is above 1; nan stands for none."""
    wrong = np.flatnonzero(values > 1)
    if wrong.size:
        shown = ", ".join(f"row {rows[at]} ({values[at]:g})" for at in wrong[:ROWS_SHOWN])
        more = f" and {wrong.size - ROWS_SHOWN} more" if wrong.size > ROWS_SHOWN else ""
        raise UserError(f"{role} is above 1 in {shown}{more}: expected fractions; divide percentages by 100")


def check_distinct(law: str, numbers: Mapping[str, Array], least: Mapping[str, int]) -> None:
    """Raises UserError for a role of which the points have fewer distinct values than the law needs."""
    for role, floor in least.items():
        distinct = len(np.unique(numbers[role]))
        if distinct < floor:
            raise UserError(f"{role} has {distinct} distinct values: the {law} law needs at least {floor}")
