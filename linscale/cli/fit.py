"""linscale fit: a scaling law from a table of runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from linscale.cli.output import print_json, print_note, print_table
from linscale.config import UserError

ROWS_SHOWN = 20


def fit(
    points: Annotated[Path, tyro.conf.Positional],
    *,
    law: Literal["chinchilla", "gamma", "power"] = "chinchilla",
    columns: str = "",
    group: str = "",
    where: str = "",
    drop: str = "",
    loss: str = "huber:1e-3",
    space: Literal["log", "linear"] = "log",
    irreducible: bool = False,
    bootstrap: int = 1000,
    by: Literal["run", "point", "budget"] | None = None,
    seed: int = 0,
    json: Path | None = None,
    html: Path | None = None,
) -> None:
    """Fit a law of loss to a table with one row a run or checkpoint (.csv, .parquet, .jsonl), with 95% intervals.

    chinchilla: L = E + A / N^alpha + B / D^beta. gamma: L = E + (A / N^alpha + B / D^beta)^gamma. power:
    L = l_coefficient C^l_exponent, C in PFLOP/s-days.

    Args:
        points: The table.
        law: The law.
        columns: Which column holds what, as in n=params,d=tokens,c=flops,loss=loss,run=name. n is parameters, d tokens,
            c FLOPs, loss nats per token; run and budget are to resample by. c=6nd, d=c/6n and n=c/6d are computed.
            Columns called params, tokens, flops, loss, run and budget are found without.
        group: Columns to fit separately by, as in arch,dataset.
        where: SQL condition on rows, as in "loss < 6 and outlier = 0".
        drop: highest:COUNT or lowest:COUNT losses of each group to leave out.
        loss: How residuals count: huber:DELTA, l2 or lad (absolute values).
        space: Residuals of log L, or of L.
        irreducible: Give the power law a constant E.
        bootstrap: Resamples behind the intervals; 0 for none.
        by: What is resampled. Runs where a column tells them apart, else points.
        seed: Of the resamples.
        json: A file for the whole result; - for standard output, instead of the table.
        html: A file for a page of figures and tables that opens without a network.
    """
    from linscale.study.table.fit import TABLE_LAWS, default_unit, fit_points, parse_drop
    from linscale.study.table.group import PointFit
    from linscale.study.table.points import parse_columns, read_points
    from linscale.study.table.surface_fit import Loss

    if bootstrap < 0 or seed < 0:
        raise UserError(f"bootstrap = {bootstrap}, seed = {seed}: expected numbers that are not negative")
    if irreducible and law != "power":
        raise UserError(f"irreducible: the {law} law has E already; it is an option of --law power")
    chosen = "power_irreducible" if irreducible else law
    settings_loss = Loss.parse(loss, space)
    rule = parse_drop(drop) if drop else ("highest", 0)
    names = tuple(name.strip() for name in group.split(",") if name.strip())
    table = read_points(
        points, columns=parse_columns(columns), needed=TABLE_LAWS[chosen].roles, group=names, where=where
    )
    settings = PointFit(chosen, settings_loss, rule, bootstrap, by or default_unit(table), seed)
    result = {"source": str(points), **fit_points(table, settings)}
    if html is not None:
        from linscale.study.report.fit_page import write_fit_report

        write_fit_report(result, html)
    if json == Path("-"):
        print_json(result)
        return
    if json is not None:
        from linscale.run_folder import write_json

        write_json(json, result)
    _print(result)
    if html is not None:
        sys.stdout.write(f"page: {html}\n")


def _print(result: dict[str, Any]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in _head(result)))
    for fitted in result["groups"]:
        print_table(
            f"{fitted['group']}: {fitted['formula']}",
            ("", "value", "se", "95% low", "high", "verdict"),
            [*_rows(fitted["parameters"]), *_rows(fitted["derived"])],
        )
        sys.stdout.write("".join(f"{line}\n" for line in _lines(fitted)))
    for item in result["refused"]:
        print_note(f"{item['group']} is not fitted: {item['reason']}")


def _rows(table: dict[str, dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for name, each in table.items():
        if name == "a":
            continue  # the same number as n_opt_exponent
        verdict = ""
        if "at_bound" in each:
            verdict = "on its bound" if each["at_bound"] else "" if each["identified"] else "not identified"
        yield (name, *(_number(each[key]) for key in ("value", "se", "low", "high")), verdict)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _head(result: dict[str, Any]) -> Iterator[str]:
    yield f"{result['source']}: {', '.join(f'{role} = {name}' for role, name in result['columns'].items())}"
    yield from _left_out(result["dropped"])


def _left_out(dropped: list[dict[str, Any]]) -> Iterator[str]:
    rules: dict[str, list[str]] = {}
    for item in dropped:
        rules.setdefault(item["rule"], []).append(str(item["row"]))
    for rule, rows in rules.items():
        more = f" and {len(rows) - ROWS_SHOWN} more" if len(rows) > ROWS_SHOWN else ""
        yield f"left out by {rule}: {len(rows)}: row {', '.join(rows[:ROWS_SHOWN])}{more}"


def _lines(fitted: dict[str, Any]) -> Iterator[str]:
    starts, boot, objective = fitted["starts"], fitted["bootstrap"], fitted["objective"]
    yield f"{objective['name']}: {objective['value']:.6g}"
    yield f"{starts['agree']} of {starts['tried']} starts agree with the best within 0.01%"
    other = fitted["classical"]
    yield f"{other['method']} from {other['tried']} starts: {other['value']:.6g}, on which {other['agree']} agree"
    if boot["replicates"]:
        yield f"intervals: {boot['replicates']} resamples of {boot['units']} {boot['by']}s"
    if fitted["derived"]:
        yield "N_opt and D_opt: coefficient C^exponent, C = 6 N D in PFLOP/s-days of 8.64e19 FLOPs"
    yield f"{fitted['points_used']} points"
    yield from _left_out(fitted["dropped"])
    for warning in fitted["warnings"]:
        yield f"warning {warning['name']}: {warning['text']}" + (f" ({warning['detail']})" if warning["detail"] else "")
    yield ""
