"""linscale doctor: what this machine has, which kernels it runs, and whether their numbers are right."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from typing import Any

import torch
from rich import box
from rich.markup import escape
from rich.table import Table

from linscale.cli import machine
from linscale.cli.output import Json, ProgressBar, duration, file_size, print_json, stdout_console
from linscale.distributed import cores
from linscale.ops.numerics import (
    KINDS,
    NAMES,
    TOLERANCE,
    Case,
    changing,
    check,
    contaminated,
    decay_attention_by,
    make_problem,
    quick_cases,
    results,
    short,
)

BUDGET_S = 50.0  # no case is begun later than this


def doctor(*, numerics: bool = False, json: Json = False) -> int:
    """What this machine has, which form of every operator it runs and why, and whether the numbers are right.

    Forms: `triton` are GPU kernels, `chunk` is the same in plain PyTorch (how a CPU trains), `reference` steps through
    time one token after the other, `torch` is PyTorch's own. Where the kernels do not run, the last lines say what to
    do about it.

    With --numerics, `decay_attention` is run as it would be in training on hostile and everyday inputs: decays of 0
    and down to e^-20 a step, equal keys, rows of norm 1000, packed documents, odd lengths. Its output, final state and
    all gradients are compared with the loop over time in float64. A cell of the table is the largest relative error,
    |x - exact| / |exact|, over the cases of its row; `allowed` is the bound. Also: same bits in a second run, and NaN
    in all memory that no one wrote. It takes under a minute; the exit status is 1 if anything fails. The first time
    on a GPU, compiling may take up the minute where cores are few: then it says how many cases are left, and a second
    run does them all.

    Args:
        numerics: Check the numbers, too.
    """
    device, broken = machine.working_device()
    facts: dict[str, Any] = {"versions": machine.versions(), "devices": machine.devices()}
    if not json:
        _print_machine(facts)
    facts |= {"operators": machine.operators(device), "advice": machine.advice(device, broken), "numerics": None}
    if not json:
        _print_operators(device, facts)
    if numerics:
        facts["numerics"] = examine(device)
        if not json:
            _print_numerics(facts["numerics"])
    if json:
        print_json(facts)
    return 0 if facts["numerics"] is None or facts["numerics"]["passed"] else 1


def examine(device: torch.device) -> dict[str, Any]:
    """The quick cases, and repeats and poisoned memory, as many as the time allows. Never raises on what it finds."""
    start = time.monotonic()
    repeated = [Case(kind, 300, "ordinary", torch.bfloat16) for kind in KINDS]
    cases, found = quick_cases(), dict[Case, dict[str, Any]]()
    total = len(repeated) + len(cases)
    with ProgressBar() as bar:
        bar.update("numerics", 0, total)
        for case in _as_compiled([*repeated, *cases], device, start + BUDGET_S):
            if time.monotonic() > start + BUDGET_S:
                break
            bar.update(f"numerics  {case}", len(found), total)
            found[case] = _soundness(case, device) if case in repeated else _errors(case, device)
        bar.update("numerics", len(found), total)
    return {
        "device": str(device),
        "elapsed_s": time.monotonic() - start,
        "left_out": total - len(found),
        "passed": not any(item["failures"] for item in found.values()),
        "tolerance": {short(dtype): bounds for dtype, bounds in TOLERANCE.items()},
        "soundness": [found[case] for case in repeated if case in found],
        "cases": [found[case] for case in cases if case in found],
    }


def _as_compiled(cases: list[Case], device: torch.device, deadline: float) -> Iterator[Case]:
    """The cases, in their order on a CPU. On a GPU their kernels are compiled in threads, for most of that goes on
    outside Python, and those cases come first that are ready first."""
    if device.type == "cpu":
        yield from cases
        return
    alike = defaultdict[tuple[object, ...], list[Case]](list)  # cases that share kernels, the slowest to compile first
    for case in sorted(cases, key=lambda case: -KINDS.index(case.kind)):
        alike[case.kind, case.dtype, case.situation == "packed"].append(case)
    with ThreadPoolExecutor(cores()) as pool:
        wait([pool.submit(_compile, [min(cases, key=lambda case: case.length)], device, deadline)])  # imports, too
        compiling = {pool.submit(_compile, group, device, deadline): group for group in alike.values()}
        for compiled in as_completed(compiling):  # also where it went wrong: the check itself will tell
            yield from compiling[compiled]


def _compile(cases: list[Case], device: torch.device, deadline: float) -> None:
    """Run one case of each length, kernels depend on no more; not past the deadline."""
    with torch.autograd.set_multithreading_enabled(False):  # or backward passes would share one thread
        for case in {case.length: case for case in cases}.values():
            if time.monotonic() < deadline:
                results(decay_attention_by("auto"), make_problem(case, device))


def _errors(case: Case, device: torch.device) -> dict[str, Any]:
    """One case: its errors (null where not finite) and, in words, what is wrong."""
    try:
        outcome = check(case, decay_attention_by("auto"), device)
    except Exception as error:  # a kernel that cannot run is a finding like any other
        return _described(case) | {"errors": {}, "failures": [_first_line(error)]}
    bounds = TOLERANCE[case.dtype]
    return _described(case) | {
        "errors": {name: error if math.isfinite(error) else None for name, error in outcome.errors.items()},
        "failures": [f"{name} {error:.1e}, allowed {bounds[name]:.1e}" for name, error in outcome.failures.items()],
    }


def _soundness(case: Case, device: torch.device) -> dict[str, Any]:
    """One case, run again, and run amid NaN: in words, what is wrong."""
    try:
        problem, function = make_problem(case, device), decay_attention_by("auto")
        moved, marred = changing(function, problem), contaminated(function, problem)
    except Exception as error:
        return _described(case) | {"failures": [_first_line(error)]}
    failures = [f"other bits in a second run: {', '.join(moved)}"] if moved else []
    return _described(case) | {"failures": failures + ([f"unwritten memory in {', '.join(marred)}"] if marred else [])}


def _described(case: Case) -> dict[str, Any]:
    shape = {"T": case.length, "K": case.K, "V": case.V}
    return {"case": str(case), "kind": case.kind, "dtype": short(case.dtype), "inputs": case.situation, **shape}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _print_machine(facts: dict[str, Any]) -> None:
    found = facts["versions"]
    runtime = f"CUDA {found['cuda_runtime']}" if found["cuda_runtime"] else f"ROCm {found['rocm_runtime']}"
    built = runtime if found["cuda_runtime"] or found["rocm_runtime"] else "the CPU"
    table = _table("This machine")
    table.add_row("linscale", found["linscale"])
    table.add_row("Python", f"{found['python']} on {found['system']}")
    table.add_row("torch", f"{found['torch']}, built for {built}")
    table.add_row("triton", found["triton"] or "not installed")
    table.add_row("GPU driver", found["driver"] or "none")
    for item in facts["devices"]:
        memory = "" if item["memory_bytes"] is None else f", {file_size(item['memory_bytes'])}"
        if item["device"] == "cpu":
            rest = f", {item['cores']} cores, {item['threads']} threads"
        else:
            rest = f", {item['multiprocessors']} multiprocessors, compute capability {item['capability']}"
        table.add_row(item["device"], escape(f"{item['name']}{memory}{rest}"))
    stdout_console().print(table)


def _print_operators(device: torch.device, facts: dict[str, Any]) -> None:
    table = _table(f"What serves each operator on {device}", "operator", "inputs", "form", "why")
    for item in facts["operators"]:
        short_names = ", ".join(short(getattr(torch, name)) for name in item["dtypes"])
        table.add_row(item["operator"], short_names, item["form"], escape(item["why"]))
    console = stdout_console()
    console.print(table)
    for line in facts["advice"]:
        console.print(line, highlight=False, markup=False)


def _print_numerics(report: dict[str, Any]) -> None:
    table = _table(f"Largest relative errors on {report['device']}", "inputs", "decay", "cases", *NAMES)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in _rows(report):
        table.add_row(*row)
    console = stdout_console()
    console.print(table)

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    for item in (*report["soundness"], *report["cases"]):
        for failure in item["failures"]:
            say(f"FAILED  {item['case']}: {failure}")
    if report["passed"]:
        done = len(report["soundness"]) + len(report["cases"])
        say(f"All {done} checks passed: errors within bounds, the same bits in a second run, only written memory read.")
    if report["left_out"]:
        count = report["left_out"]
        say(f"{count} checks were not reached in {BUDGET_S:.0f} s: run it again, what was compiled is kept.")
    say(f"Took {duration(report['elapsed_s'])}.")


def _rows(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """For each precision: what is allowed, then the worst of each kind of decay."""
    for dtype, bounds in report["tolerance"].items():
        cases = [case for case in report["cases"] if case["dtype"] == dtype]
        if cases:
            yield dtype, "allowed", "", *(f"{bounds[name]:.1e}" for name in NAMES)
        for kind in KINDS:
            errors = [case["errors"] for case in cases if case["kind"] == kind]
            if errors:
                yield "", kind, str(len(errors)), *(_worst(errors, name, bounds[name]) for name in NAMES)


def _worst(errors: list[dict[str, float | None]], name: str, bound: float) -> str:
    found = [math.inf if case[name] is None else case[name] for case in errors if name in case]
    worst = max((error for error in found if error is not None), default=None)
    if worst is None:
        return ""
    return f"{worst:.1e}" if worst <= bound else f"[bold red]{worst:.1e}[/]"


def _table(title: str, *columns: str) -> Table:
    """Unlike the tables of numbers elsewhere, the last column wraps where the terminal is narrow."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_style="bold", padding=(0, 1), show_header=bool(columns))
    for column in columns[:-1] or ("",):
        table.add_column(column, no_wrap=True)
    table.add_column(columns[-1] if columns else "")
    return table
