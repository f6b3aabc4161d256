"""The table of --sensitivity: how a law moves with what was chosen."""

from __future__ import annotations

from typing import Any

from linscale.cli.output import print_note, print_table


def print_sensitivity(entries: list[dict[str, Any]]) -> None:
    """One table a group, a line a changed choice, with values and 95% intervals; refusals as notes."""
    for group in dict.fromkeys(entry["group"] for entry in entries if "parameters" in entry):
        mine = [entry for entry in entries if entry.get("group") == group and "parameters" in entry]
        names = list(dict.fromkeys(name for entry in mine for name in entry["parameters"]))
        if "alpha" in names and "n_opt_exponent" in names:
            names.remove("d_opt_exponent")  # follows from the other; the JSON has it
        print_table(
            f"{group}: the same fit with one choice changed",
            ("changed", "points", *names),
            [
                (entry["changed"], str(entry["points_used"]), *(_cell(entry["parameters"].get(name)) for name in names))
                for entry in mine
            ],
        )
    for entry in entries:
        if "refused" in entry:
            place = f" of {entry['group']}" if "group" in entry else ""
            print_note(f"{entry['changed']}{place}: not fitted: {entry['refused']}")


def _cell(each: dict[str, Any] | None) -> str:
    if each is None:
        return "-"
    return f"{each['value']:.3g}" + ("" if each["low"] is None else f" ({each['low']:.2g}, {each['high']:.2g})")
