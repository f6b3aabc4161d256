"""The gated delta rule beside the table: time and error against the peer, and each kernel of ours by itself."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from measure import Ceilings, attempt, graphed, median_ms, relative_errors
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from linscale.ops import delta_rule

NAMES = ("o", "dq", "dk", "dv", "dbeta", "dg")
Operator = Callable[..., Tensor]
"""q, k, v, beta, log_decay or None -> o."""


@dataclass(frozen=True)
class Delta:
    """delta_rule in bf16, β and decays in float32, scale 1, forward and backward.

    The peer is flash-linear-attention's chunk_gated_delta_rule, or chunk_delta_rule without decay: the former refuses
    its backward pass on Hopper with Triton before 3.7.1, where only its forward pass is timed. Times are those of CUDA
    graphs; errors |x - reference| / |reference| are those of the last sequence against float64.
    """

    B: int
    T: int
    H: int
    K: int
    V: int
    decay: bool
    section: ClassVar[str] = "delta"
    quick: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return f"delta {self.B}x{self.T} H{self.H} K{self.K}{' decay' if self.decay else ''}"

    def tiny(self) -> Delta:
        return replace(self, B=2, T=70, H=2, K=16, V=16)

    def measure(self, device: torch.device, limits: Ceilings) -> dict[str, Any]:
        inputs, do = self.inputs(device)
        forms: dict[str, Operator] = {"ours": ours}
        if device.type == "cuda" and importlib.util.find_spec("fla") is not None:
            forms["peer"] = peer
        last = [None if x is None else x[-1:].detach().double().requires_grad_() for x in inputs]
        exact = results(exactly, last, do[-1:].double())
        found: dict[str, Any] = {"name": self.name}
        for form, operator in forms.items():
            found[form] = timed(operator, inputs, do, device)
            again = attempt(lambda operator=operator: {"x": results(operator, inputs, do)}, device)  # type: ignore[misc]
            found[form]["errors"] = relative_errors(again.get("x", ()), exact, self.names)
        for time in ("forward_ms", "both_ms"):
            theirs = found.get("peer", {}).get(time)
            found[f"{time[:-3]}_ratio"] = theirs / found["ours"][time] if theirs else None
        found["kernels_us"] = kernel_times(inputs, do, device) if device.type == "cuda" else {}
        return found

    @property
    def names(self) -> tuple[str, ...]:
        return NAMES if self.decay else NAMES[:-1]

    def inputs(self, device: torch.device) -> tuple[list[Tensor | None], Tensor]:
        """Leaves q, k, v, beta, log_decay, and do, as a layer has them at initialisation."""
        torch.manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(self.B, self.T, self.H, *shape, device=device)

        q, k = (normalize(normal(self.K), dim=-1).bfloat16() for _ in range(2))
        leaves = [q, k, normal(self.V).bfloat16(), normal().sigmoid(), *([logsigmoid(3 + normal())] * self.decay)]
        given: list[Tensor | None] = [x.requires_grad_() for x in leaves]
        return [*given, *([None] * (not self.decay))], normal(self.V).bfloat16()

    def line(self, found: dict[str, Any]) -> str:
        def times(form: str) -> str:
            known = (found[form].get(key) for key in ("forward_ms", "both_ms"))
            errors = ", ".join(f"{name} {error:.1e}" for name, error in found[form]["errors"].items())
            return f"{form} {' / '.join('-' if x is None else f'{x:.3f}' for x in known)} ms, errors {errors}"

        ratios = (found["forward_ratio"], found["both_ratio"])
        over = " / ".join("-" if x is None else f"{x:.2f}" for x in ratios)
        kernels = ", ".join(f"{name} {us:.1f}" for name, us in found["kernels_us"].items())
        refused = found.get("peer", {}).get("failed", "")
        parts = [times(form) for form in ("ours", "peer") if form in found]
        return "; ".join(
            [*parts, f"peer/ours {over}", *([f"us: {kernels}"] * bool(kernels)), *([refused] * bool(refused))]
        )


def ours(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None) -> Tensor:
    return delta_rule(q, k, v, beta, log_decay)[0]


def exactly(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None) -> Tensor:
    """By the chunk form: not by any kernel under test."""
    return delta_rule(q, k, v, beta, log_decay, backend="chunk")[0]


def peer(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None) -> Tensor:
    if log_decay is None:
        plain: Any = importlib.import_module("fla.ops.delta_rule").chunk_delta_rule
        return plain(q, k, v, beta, scale=1.0)[0]
    gated: Any = importlib.import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule
    return gated(q, k, v, g=log_decay, beta=beta, scale=1.0)[0]


def results(operator: Operator, inputs: list[Tensor | None], do: Tensor) -> tuple[Tensor, ...]:
    """o and the gradients of the inputs."""
    o = operator(*inputs)
    return o.detach(), *torch.autograd.grad(o, [x for x in inputs if x is not None], do)


def timed(operator: Operator, inputs: list[Tensor | None], do: Tensor, device: torch.device) -> dict[str, Any]:
    """Median ms of the forward pass and of both, as far as they run; "failed" says why one does not."""

    def forward() -> Tensor:
        with torch.no_grad():
            return operator(*inputs)

    found: dict[str, Any] = {}
    calls: dict[str, Callable[[], object]] = {
        "forward_ms": forward,
        "both_ms": lambda: results(operator, inputs, do),
    }
    for name, call in calls.items():

        def measured(name: str = name, call: Callable[[], object] = call) -> dict[str, Any]:
            call()  # what is tuned at a first call cannot be captured
            return {name: median_ms(graphed(call, device), device)}

        found |= attempt(measured, device)
    return found


def kernel_times(inputs: list[Tensor | None], do: Tensor, device: torch.device) -> dict[str, float]:
    """Median us of each launch of one forward and backward pass, by itself: as called, on what the pass left."""
    kernel: Any = importlib.import_module("linscale.ops.delta_rule.kernel")
    launch, launches = kernel.launch, []

    def note(*given: Any) -> None:
        launches.append(given)
        launch(*given)

    kernel.launch = note
    try:
        results(ours, inputs, do)
    finally:
        kernel.launch = launch
    return {
        f"{n} {given[0].fn.__name__.removesuffix('_kernel')}": 1e3
        * median_ms(lambda given=given: launch(*given), device)  # type: ignore[misc]
        for n, given in enumerate(launches)
    }
