"""The bill of a study, as `linscale study plan` prints it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from linscale.cli.output import duration, file_size, print_table
from linscale.config import human

if TYPE_CHECKING:
    from linscale.study.plan import PlannedRun, StudyConfig
    from linscale.study.probe import Probe

WORTH_SHOWING = 1e9  # bytes of the largest run, from which on the memory of GPUs is a question


def price(config: StudyConfig, runs: list[PlannedRun], probe: Probe, workers: int) -> dict[str, Any]:
    """What a study takes, run by run and in all."""
    from linscale.study.memory import RANKS

    seconds = [probe.seconds(item) for item in runs]
    rows: list[dict[str, Any]] = [
        {
            "run": item.name,
            "arch": item.arch,
            "size": item.config.size,
            "params": item.total_params,
            "non_embedding": item.params,
            "tokens": item.config.train.steps * item.config.train.batch_tokens,
            "steps": item.config.train.steps,
            "pflop_s_days": item.pflop_s_days,
            "flops": item.exact_flops,
            "disk_bytes": item.disk_bytes,
            "rank_memory": {n: _rank_memory(item, n) for n in RANKS},
            "seconds": time,
        }
        for item, time in zip(runs, seconds, strict=True)
    ]
    summed = ("tokens", "pflop_s_days", "flops", "disk_bytes", "seconds")
    return {
        "study": config.name,
        "runs": rows,
        "total": {key: sum(row[key] for row in rows) for key in summed},
        "workers": workers,
        "wall_seconds": max(max(seconds), sum(seconds) / workers),
        "probe": {"device": probe.device, "matrix_flops_per_s": probe.matrix_rate, "runs_tried": probe.tried},
    }


def print_bill(bill: dict[str, Any]) -> None:
    """A table of the runs, one of the memory of GPUs if that is a question, and what the time rests on."""
    total, probe = bill["total"], bill["probe"]
    columns = ("run", "params", "N", "tokens", "steps", "PFLOP/s-days", "matrix FLOPs", "disk", "time")
    rows = [
        (
            row["run"],
            human(row["params"]),
            human(row["non_embedding"]),
            human(row["tokens"]),
            f"{row['steps']:,}",
            *_costs(row),
        )
        for row in bill["runs"]
    ]
    rows.append((f"{len(rows)} runs", "", "", human(total["tokens"]), "", *_costs(total)))
    print_table(f"The bill of {bill['study']}", columns, rows)
    _print_memory(bill["runs"])
    rate = human(probe["matrix_flops_per_s"], "FLOP/s")
    print(
        f"About {duration(bill['wall_seconds'])} with {bill['workers']} at a time.\n"
        "N and PFLOP/s-days are the paper's: without embeddings, by its closed form.\n"
        f"Time by a probe of this machine ({probe['device']}, {rate} in matrix products): "
        f"{probe['runs_tried']} of {len(bill['runs'])} runs tried for a step, the others priced by that rate."
    )


def _costs(row: dict[str, Any]) -> tuple[str, ...]:
    compute, flops = f"{row['pflop_s_days']:.3g}", human(row["flops"], "FLOP")
    return compute, flops, file_size(row["disk_bytes"]), duration(row["seconds"])


def _rank_memory(run: PlannedRun, ranks: int) -> dict[str, float] | None:
    from linscale.study.memory import rank_memory

    found = rank_memory(run.config.model, run.config.train, ranks)
    return {"bytes": found[0], "sequence_parallel": found[1]} if found else None


def _print_memory(runs: list[dict[str, Any]]) -> None:
    largest = {row["arch"]: row for row in sorted(runs, key=lambda row: row["params"])}
    sizes = [found["bytes"] for row in runs for found in row["rank_memory"].values() if found]
    if max(sizes, default=0) < WORTH_SHOWING:
        return
    rows = [(row["run"], *map(_rank_cell, row["rank_memory"].values())) for row in largest.values()]
    title = "GB on each of so many GPUs, bf16, the largest run of each architecture"
    print_table(title, ("run", *map(str, runs[0]["rank_memory"])), rows)
    print("/4: with train.sequence_parallel = 4, as a step has too few sequences or does not divide. -: does not fit.")


def _rank_cell(found: dict[str, float] | None) -> str:
    if found is None:
        return "-"
    pieces = found["sequence_parallel"]
    return f"{found['bytes'] / 1e9:.0f}" + (f"/{pieces}" if pieces > 1 else "")
