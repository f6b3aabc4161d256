"""The best checkpoint of every run, as a table of points: what early stopping keeps where text is read again and again.

    python experiments/best.py runs/pac [FOLDER ...] --out pac.csv
    linscale fit pac.csv --law pac --columns n=params,d=unique_tokens,loss=loss --group arch

Runs that are not finished are left out; a row's `best_step` and `last_loss` tell how early its best was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from linscale.config import UserError
from linscale.study.sources.read import read_table
from linscale.study.sources.table import Table, join, write

LEFT_OUT = ("final", "step", "tokens", "flops")


def best_rows(rows: tuple[Any, ...]) -> list[dict[str, Any]]:
    """One row a finished run."""
    runs: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        if row["loss"] is not None:
            runs.setdefault((row.get("source"), row["run"]), []).append(row)
    found = []
    for each in runs.values():
        last = [row for row in each if row["final"]]
        if last:
            best = min(each, key=lambda row: row["loss"])
            kept = {name: value for name, value in best.items() if name not in LEFT_OUT}
            found.append({**kept, "best_step": best["step"], "last_loss": last[0]["loss"]})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    table = join({str(folder): read_table(folder) for folder in options.folders}, ())
    found = best_rows(table.rows)
    write(Table(tuple(found), "best checkpoints"), options.out)
    print(f"{options.out}: {len(found)} runs")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"best.py: {error}")
