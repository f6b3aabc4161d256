"""The table: every row against the peer and the floor, numerics first."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from first_call import ours
from measure import (
    Ceilings,
    Operator,
    attempt,
    both_call,
    forward_call,
    graphed,
    median_ms,
    numerics_failures,
    peak_bytes,
    reference_results,
    relative_errors,
)
from peers import Peer
from rows import Inputs, Row, make_inputs
from torch import Tensor

MEMORY_GOAL = 0.6  # of the peer's
MIB = 1 << 20
HEADER = (
    f"{'operator':<28}{'peer fwd':>9}{'f+b ms':>8}{'floor':>7}{'ours fwd':>9}{'f+b ms':>8}{'peer/ours':>10}{'goal':>6}"
    f"{'/floor':>8}{'H100 goal':>10}{'MiB peer':>9}{'ours':>6}{'ratio':>6}{'noise':>7}"
)


@dataclass
class Side:
    """What was found about one operator, ours or the peer's, on one row. Times are of two runs each."""

    name: str
    call: Operator
    forward_only: str = ""
    failed: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    same_bits: bool | None = None
    extra_bytes: int | None = None
    forward_ms: list[float] = field(default_factory=list)
    both_ms: list[float] = field(default_factory=list)
    replayed_ms: float | None = None

    @property
    def both(self) -> float:
        """Milliseconds of forward and backward, the mean of the runs; infinite where there are none."""
        return mean(self.both_ms)

    def record(self) -> dict[str, object]:
        """For JSON, which has no infinity: None is an error of something that is not finite."""
        errors = {name: error if math.isfinite(error) else None for name, error in self.errors.items()}
        return {name: value for name, value in vars(self).items() if name != "call"} | {"errors": errors}


def mean(times: list[float]) -> float:
    return sum(times) / len(times) if times else math.inf


def measure_row(
    row: Row, peers: list[Peer], device: torch.device, limits: Ceilings, quick: bool, operator: Operator = ours
) -> dict[str, object]:
    """Check ours and every peer against float64, then time them in turn, twice."""
    x = make_inputs(row, device)
    reference = reference_results(x)
    mine = Side("ours", operator)
    others = [Side(peer.name, peer.call, peer.forward_only) for peer in peers]
    for side in (mine, *others):
        examine(side, x, reference, device)
    for side, peer in zip(others, peers, strict=True):
        side.errors = side.errors if peer.same_function else {}
    del reference
    for _ in range(1 if quick else 2):
        for side in (mine, *others):
            if not side.failed:
                side.forward_ms.append(median_ms(forward_call(side.call, x), device))
            if not side.failed and not side.forward_only:
                side.both_ms.append(median_ms(both_call(side.call, x), device))
    for side in (mine, *others):
        if not side.failed and not side.forward_only:
            replay(side, x, device)
    return summary(row, mine, others, limits)


def examine(side: Side, x: Inputs, reference: tuple[Tensor, ...], device: torch.device) -> None:
    """Errors, the same bits twice, and memory. A failure is recorded, unless the device is lost with it."""
    work = one_result(side.call, x) if side.forward_only else both_call(side.call, x)

    def look() -> dict[str, Any]:
        first, second = work(), work()
        side.errors = relative_errors(first, reference)
        side.same_bits = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        del first, second
        side.extra_bytes = None if side.forward_only else peak_bytes(work, device)
        return {}

    side.failed = attempt(look, device).get("failed", "")


def replay(side: Side, x: Inputs, device: torch.device) -> None:
    """Forward and backward as one CUDA graph: what the device takes where the host is no hindrance."""
    if device.type == "cuda":
        found = attempt(lambda: {"ms": median_ms(graphed(both_call(side.call, x), device), device)}, device)
        side.replayed_ms = found.get("ms")


def one_result(operator: Operator, x: Inputs) -> Callable[[], tuple[Tensor, ...]]:
    """The forward pass, as a tuple like that of `both_call`."""
    forward = forward_call(operator, x)
    return lambda: (forward(),)


def summary(row: Row, mine: Side, others: list[Side], limits: Ceilings) -> dict[str, object]:
    """What the table prints and the file keeps. No speed-up unless the numerics hold."""
    working = [side for side in others if side.both_ms]
    peer = min(working, key=lambda side: side.both, default=None)
    failures = [mine.failed] if mine.failed else numerics_failures(mine.errors, errors_to_match(peer, others))
    if mine.same_bits is False:
        failures.append("two runs gave different bits")
    memory = None
    if peer is not None and peer.extra_bytes and mine.extra_bytes:
        memory = mine.extra_bytes / peer.extra_bytes
    floor_ms = 1e3 * row.floor_bytes(backward=True) / limits.copy_bytes_per_s
    return {
        "name": row.name,
        "row": vars(row),
        "floor_forward_ms": 1e3 * row.floor_bytes(backward=False) / limits.copy_bytes_per_s,
        "floor_both_ms": floor_ms,
        "ours": mine.record(),
        "peers": [side.record() for side in others],
        "peer": None if peer is None else peer.name,
        "peer_forward_ms": None if peer is None else mean(peer.forward_ms),
        "peer_both_ms": None if peer is None else peer.both,
        "ours_forward_ms": mean(mine.forward_ms) if mine.forward_ms else None,
        "ours_both_ms": mine.both if mine.both_ms else None,
        "peer_replayed_ms": None if peer is None else peer.replayed_ms,
        "ours_replayed_ms": mine.replayed_ms,
        "ratio_replayed": ratio_replayed(peer, mine, failures),
        "over_floor": mine.both / floor_ms if mine.both_ms else None,
        "numerics_failed": failures,
        "ratio": peer.both / mine.both if peer is not None and mine.both_ms and not failures else None,
        "goal_ratio": row.goal_ratio,
        "memory_ratio": memory,
        "spread": max((max(s.both_ms) / min(s.both_ms) - 1 for s in (mine, *working) if s.both_ms), default=None),
    }


def ratio_replayed(peer: Side | None, mine: Side, failures: list[str]) -> float | None:
    """Of the same peer, both from graphs. None while the numerics fail."""
    if failures or peer is None or peer.replayed_ms is None or mine.replayed_ms is None:
        return None
    return peer.replayed_ms / mine.replayed_ms


def errors_to_match(peer: Side | None, others: list[Side]) -> dict[str, float]:
    """Errors of the peer that is compared with; of the first other one where its own were not taken."""
    candidates = others if peer is None else [peer, *others]
    return next((side.errors for side in candidates if side.errors and not side.failed), {})


def print_row(found: dict[str, object], row: Row) -> None:
    """One line, and below it what went wrong and who else was timed."""

    def number(key: str, form: str, unit: str = "") -> str:
        value = found[key]
        return "-" if value is None else format(value, form) + unit

    mine, others = found["ours"], found["peers"]
    assert isinstance(mine, dict)
    assert isinstance(others, list)
    chosen = next((side for side in others if side["name"] == found["peer"]), None)
    goal = "-" if row.h100_goal_ms is None else f"{row.h100_goal_ms:.2f}"
    print(
        f"{row.name:<28}{number('peer_forward_ms', '.3f'):>9}{number('peer_both_ms', '.3f'):>8}"
        f"{number('floor_both_ms', '.3f'):>7}{number('ours_forward_ms', '.3f'):>9}{number('ours_both_ms', '.3f'):>8}"
        f"{number('ratio', '.2f', 'x'):>10}{number('goal_ratio', '.2f', 'x'):>6}"
        f"{number('over_floor', '.2f', 'x'):>8}{goal:>10}"
        f"{mebibytes(chosen):>9}{mebibytes(mine):>6}{number('memory_ratio', '.2f'):>6}{number('spread', '.1%'):>7}",
        flush=True,
    )
    if found["numerics_failed"]:
        print(f"    numerics failed, no speed-up: {'; '.join(map(str, found['numerics_failed']))}")  # type: ignore[call-overload]
    print(
        f"    replayed from a graph: peer {number('peer_replayed_ms', '.3f')}, ours {number('ours_replayed_ms', '.3f')}"
        f" ms: {number('ratio_replayed', '.2f', 'x')}"
    )
    print(f"    errors: ours {shown(mine['errors'])}")
    for side in others:
        state = side["failed"] or side["forward_only"]
        times = " / ".join("-" if not ms else f"{mean(ms):.3f}" for ms in (side["forward_ms"], side["both_ms"]))
        print(f"    {side['name']}: {times} ms, errors {shown(side['errors'])} {state}", flush=True)


def mebibytes(side: dict[str, object] | None) -> str:
    extra = None if side is None else side["extra_bytes"]
    return "-" if extra is None else f"{int(str(extra)) / MIB:.0f}"


def shown(errors: dict[str, float | None]) -> str:
    parts = (f"{name} " + ("not finite" if error is None else f"{error:.2e}") for name, error in errors.items())
    return ", ".join(parts) or "not comparable"
