"""Accuracies and errors are fractions: what is said of those that are not."""

from __future__ import annotations

import numpy as np

from linscale.config import UserError
from linscale.study.table.points import ROWS_SHOWN

Array = np.ndarray


def check_fractions(role: str, values: Array, rows: Array) -> None:
    """Raises UserError naming the rows (m,) whose value (m,) is above 1; nan stands for none."""
    wrong = np.flatnonzero(values > 1)
    if wrong.size:
        shown = ", ".join(f"row {rows[at]} ({values[at]:g})" for at in wrong[:ROWS_SHOWN])
        more = f" and {wrong.size - ROWS_SHOWN} more" if wrong.size > ROWS_SHOWN else ""
        raise UserError(f"{role} is above 1 in {shown}{more}: expected fractions; divide percentages by 100")
