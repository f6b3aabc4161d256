"""linscale fit: a scaling law from a table of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from linscale.cli.fit_output import print_fit
from linscale.cli.output import print_json
from linscale.config import UserError


def fit(
    points: Annotated[Path, tyro.conf.Positional],
    *,
    law: Literal[
        "chinchilla", "gamma", "power", "isoflop", "envelope", "overtrain", "repeat", "sigmoid", "pac"
    ] = "chinchilla",
    columns: str = "",
    group: str = "",
    where: str = "",
    drop: str = "",
    loss: str | None = None,
    space: Literal["log", "linear"] | None = None,
    irreducible: bool = False,
    excess: bool = True,
    chance: float | None = None,
    minimum: Literal["parabola", "akima", "cubic-log"] | None = None,
    abscissa: Literal["nominal", "achieved"] | None = None,
    seed_noise: float | None = None,
    tolerance: str | None = None,
    bootstrap: int = 1000,
    by: Literal["run", "point", "budget", "seed"] | None = None,
    seed: int = 0,
    sensitivity: bool = False,
    json: Path | None = None,
    html: Path | None = None,
) -> None:
    """Fit a law of loss to a table with one row a run or checkpoint, with 95% intervals: see docs/guide/fit.md.

    linscale fit runs.csv --columns n=params,d=tokens,loss=val_loss,run=name

    chinchilla: L = E + A / N^alpha + B / D^beta. gamma: L = E + (A / N^alpha + B / D^beta)^gamma. power:
    L = l_coefficient C^l_exponent, C in PFLOP/s-days. overtrain: L = E + a N^b + a_prime 6^(b/2) D^b, and where there
    is a column `error`, error = E_error - k exp(-g L). repeat: the chinchilla law of tokens that are worth less when
    repeated. sigmoid: accuracy from bits per byte. isoflop: the best size of each compute budget, and L, N_opt and
    D_opt as powers of C. envelope: the same three laws from whole curves, a row a checkpoint. pac: the smallest size
    that is good enough for each amount of data, N = coefficient D^exponent.

    Args:
        points: A .csv, .tsv, .parquet or .jsonl file; or a folder: linscale's runs, transformers' checkpoints
            (trainer_state.json), lm-eval's results, W&B's local runs. `linscale points` shows what is read of it.
        law: The law.
        columns: Which column holds what: n parameters, d tokens, c FLOPs, loss nats per token, unique distinct tokens,
            error and accuracy fractions, bpb bits per byte; run and budget are to resample by. Columns called params,
            tokens, flops, loss, run and budget are found without. In the place of a column, a definition: c=6nd,
            6nd+head, kaplan, kaplan+attention, standard, chinchilla, chinchilla-body, paper, exact or exact+head;
            n=exact, exact+embedding, paper, kaplan or c/6d; d=c/6n. They read shapes from columns such as arch,
            d_model, n_layers, n_heads, d_ff, vocab_size, length.
        group: Columns to fit separately by, as in arch,dataset.
        where: SQL condition on rows, as in "loss < 6 and outlier = 0".
        drop: highest:COUNT or lowest:COUNT losses of each group to leave out.
        loss: How residuals count: huber:DELTA, l2 or lad (absolute values). huber:1e-3, and l2 for the sigmoid.
        space: Residuals of the logarithm, or of the value itself. log, and linear for the sigmoid.
        irreducible: Give the loss law of power or isoflop a constant E.
        excess: repeat: whether parameters beyond the cheapest for the unique tokens are worth less; else N' = N.
        chance: sigmoid: what the lowest accuracy is held to, as in 0.25. Fitted otherwise.
        minimum: isoflop: how the minimum of a budget is found; parabola by default.
        abscissa: isoflop: the compute of a minimum is the budget's, or that which its points achieved there.
        seed_noise: isoflop, envelope, pac: standard deviation of log loss between seeds, where the table does not
            measure it; 0.003 by default.
        tolerance: pac: what is good enough, nats above the best loss as in 0.02 (the default), or 1% of it.
        bootstrap: Resamples behind the intervals; 0 for none.
        by: What is resampled: runs where a column tells them apart, else points. seed: no resamples of the table, but
            the law with noise of the size that repeats of a configuration show.
        seed: Of the resamples.
        sensitivity: Fit again with other losses, FLOP and parameter definitions, and without --where and --drop.
        json: A file for the whole result; - for standard output, instead of the table.
        html: A file for a page of figures and tables that opens without a network.
    """
    from linscale.study.sources.read import open_source
    from linscale.study.table.fit import TABLE_LAWS, default_unit, fit_points, parse_drop
    from linscale.study.table.group import PointFit
    from linscale.study.table.options import parse_options
    from linscale.study.table.points import parse_columns, read_points
    from linscale.study.table.surface_fit import Loss

    if bootstrap < 0 or seed < 0:
        raise UserError(f"bootstrap = {bootstrap}, seed = {seed}: expected numbers that are not negative")
    chosen = _chosen(law, irreducible, excess)
    entry = TABLE_LAWS[chosen]
    if not entry.reads_loss and (loss or space):
        raise UserError(f"loss: the {law} law is fitted by least squares of logarithms; leave --loss and --space out")
    settings_loss = Loss.parse(loss or entry.loss, space or entry.space)
    options = parse_options(
        law, minimum=minimum, abscissa=abscissa, seed_noise=seed_noise, tolerance=tolerance, chance=chance
    )
    rule = parse_drop(drop) if drop else ("highest", 0)
    names = tuple(name.strip() for name in group.split(",") if name.strip())
    roles, source = parse_columns(columns), open_source(points)
    table = read_points(source, columns=roles, needed=entry.roles, optional=entry.optional, group=names, where=where)
    settings = PointFit(chosen, settings_loss, rule, bootstrap, by or default_unit(table), seed, options)
    result = {"source": str(points), **fit_points(table, settings)}
    if sensitivity:
        from linscale.study.table.sensitivity import Choices
        from linscale.study.table.sensitivity import sensitivity as vary

        result["sensitivity"] = vary(source, Choices(roles, names, where, settings))
    if html is not None:
        from linscale.study.report.fit_page import write_fit_report

        write_fit_report(result, html)
    if json == Path("-"):
        print_json(result)
        return
    if json is not None:
        from linscale.run_folder import write_json

        write_json(json, result)
    print_fit(result)
    if html is not None:
        print(f"page: {html}")


def _chosen(law: str, irreducible: bool, excess: bool) -> str:
    """The key of TABLE_LAWS. Raises UserError for an option of another law."""
    if irreducible and law not in ("power", "isoflop"):
        why = "has no form with E" if law in ("sigmoid", "envelope", "pac") else "has E already"
        raise UserError(f"irreducible: the {law} law {why}; it is an option of --law power and isoflop")
    if not excess and law != "repeat":
        raise UserError(f"no-excess: an option of --law repeat, not of {law}")
    return f"{law}_irreducible" if irreducible else law if excess else "repeat_no_excess"
