"""How long the first forward and backward pass of an operator takes in a new process, on an empty cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measure import both_call
from peers import peers_of
from rows import Inputs, Row, make_inputs
from torch import Tensor

from linscale.ops import decay_attention, decay_attention_step, linear_scan

OPERATORS = ("none", "head", "token", "channel", "step", "scan")
GOAL_S = 15.0


def measure_first_calls(script: Path, operators: tuple[str, ...], timeout_s: float) -> dict[str, dict[str, object]]:
    """Seconds of each, one process after the other. A name with "peer:" before it is the peer's."""
    results: dict[str, dict[str, object]] = {}
    for operator in operators:
        with tempfile.TemporaryDirectory() as cache:
            environment = {**os.environ, "TRITON_CACHE_DIR": cache}
            command = [sys.executable, str(script), "--first-call-of", operator]
            try:
                done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s)
            except subprocess.TimeoutExpired:
                results[operator] = {"failed": f"not done after {timeout_s:.0f} s"}
            else:
                lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["no output"]
                results[operator] = json.loads(lines[-1]) if done.returncode == 0 else {"failed": lines[-1]}
        print(f"  {operator:<14}{describe(results[operator])}", flush=True)
    return results


def describe(result: dict[str, object]) -> str:
    if "failed" in result:
        return f"failed: {result['failed']}"
    return f"{result['first_call_s']:6.1f} s, the second {1e3 * float(str(result['second_call_s'])):.1f} ms"


def first_call_of(operator: str, device: torch.device) -> None:
    """Inside the new process: print the seconds of the first and second call, forward and backward, at (8, 2048)."""
    torch.randn(8, device=device).sum().item()  # the device's own start is not the operator's
    if operator == "step":
        work = step_call(device)
    elif operator == "scan":
        work = scan_call(device)
    else:
        row = Row(operator.removeprefix("peer:"), 8, 2048)  # type: ignore[arg-type]
        peer = operator.startswith("peer:")
        call = next(p.call for p in peers_of(row) if not p.forward_only) if peer else ours
        work = both_call(call, make_inputs(row, device))
    times = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    print(json.dumps({"first_call_s": times[0], "second_call_s": times[1]}))


def ours(x: Inputs) -> Tensor:
    return decay_attention(x.q, x.k, x.v, x.log_decay)[0]


def step_call(device: torch.device) -> Callable[[], object]:
    q, k, v = (torch.randn(8, 16, 128, device=device, dtype=torch.bfloat16) for _ in range(3))
    state, decay = torch.randn(8, 16, 128, 128, device=device), -torch.rand(16, device=device)
    return lambda: decay_attention_step(q, k, v, decay, state)


def scan_call(device: torch.device) -> Callable[[], object]:
    x, decay, dh = (torch.rand(8, 2048, 2048, device=device, dtype=torch.bfloat16) for _ in range(3))
    leaves = [x.requires_grad_(), decay.requires_grad_()]
    return lambda: torch.autograd.grad(linear_scan(x, decay)[0], leaves, dh)
