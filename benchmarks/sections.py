"""What is measured beside the table, one class each: softmax attention, a step of decoding, the scan, cost by length.

Each has a name, the section of the record it belongs to, `measure`, `line` (what is printed) and `tiny` (itself at
a size for tests).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from first_call import ours
from measure import Ceilings, both_call, forward_call, graphed, median_ms, peak_bytes, relative_errors
from rows import Inputs, Kind, Row, make_inputs
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, logsigmoid, scaled_dot_product_attention

from linscale.ops import decay_attention_step, linear_cross_entropy, linear_scan

Found = dict[str, Any]


@dataclass(frozen=True)
class Softmax:
    """torch's causal softmax attention, for scale: bf16, in its own layout (B, H, T, K), H = 16, K = V = 128."""

    B: int
    T: int
    section: ClassVar[str] = "softmax"
    quick: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return f"softmax {self.B}x{self.T}"

    def tiny(self) -> Softmax:
        return replace(self, B=1, T=64)

    def measure(self, device: torch.device, limits: Ceilings) -> Found:
        x = make_inputs(Row("none", self.B, self.T), device)
        q, k, v, do = (z.detach().transpose(1, 2).contiguous() for z in (x.q, x.k, x.v, x.do))
        x = Inputs(q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), None, do)

        def softmax(z: Inputs) -> Tensor:
            return scaled_dot_product_attention(z.q, z.k, z.v, is_causal=True)

        forward, both = (median_ms(make(softmax, x), device) for make in (forward_call, both_call))
        return {"name": self.name, "forward_ms": forward, "both_ms": both}

    def line(self, found: Found) -> str:
        return f"{found['forward_ms']:.3f} / {found['both_ms']:.3f} ms"


@dataclass(frozen=True)
class Step:
    """One token of decoding for B sequences, bf16 inputs, float32 state, against a copy of the state.

    Each is timed as a CUDA graph, so that neither is timed by what launching it costs in Python; and as called.
    """

    kind: Kind
    B: int
    H: int = 16
    K: int = 128
    V: int = 128
    section: ClassVar[str] = "step"
    goal: ClassVar[float] = 1.5  # times the copy

    @property
    def name(self) -> str:
        return f"step {self.kind} B{self.B}"

    @property
    def quick(self) -> bool:
        return self.B in (1, 16, 256)

    def tiny(self) -> Step:
        return replace(self, B=2, H=2, K=16, V=16)

    def measure(self, device: torch.device, limits: Ceilings) -> Found:
        torch.manual_seed(0)
        q, k, v = (torch.randn(self.B, self.H, n, device=device).bfloat16() for n in (self.K, self.K, self.V))
        state = torch.randn(self.B, self.H, self.K, self.V, device=device)
        shape = {"none": None, "head": (self.H,), "token": q.shape[:2], "channel": q.shape}[self.kind]
        decay = None if shape is None else logsigmoid(3 + torch.randn(shape, device=device))
        other = torch.empty_like(state)

        def work() -> object:
            return decay_attention_step(q, k, v, decay, state)

        with torch.no_grad():
            ms = median_ms(graphed(work, device), device)
            copy_ms = median_ms(graphed(lambda: other.copy_(state), device), device)
            called_ms = median_ms(work, device)
        times = {"ms": ms, "copy_ms": copy_ms, "called_ms": called_ms}
        return {"name": self.name, **times, "over_copy": ms / copy_ms, "goal": self.goal}

    def line(self, found: Found) -> str:
        return (
            f"{1e3 * found['ms']:.1f} us, copying the state {1e3 * found['copy_ms']:.1f} us,"
            f" {found['over_copy']:.2f}x (goal {self.goal}x); as called {1e3 * found['called_ms']:.1f} us"
        )


@dataclass(frozen=True)
class Scan:
    """linear_scan over (B, T, D) in bf16, the decay of the same shape or constant in time, against the floor."""

    B: int
    T: int
    D: int
    constant: bool
    section: ClassVar[str] = "scan"
    quick: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return f"scan {'constant' if self.constant else 'free'} {self.B}x{self.T} D{self.D}"

    def tiny(self) -> Scan:
        return replace(self, T=64, D=8)

    def floor_bytes(self) -> int:
        """x, h; dh, dx; and with a decay in time a, then a, h, da. A constant one still reads h for its gradient."""
        return 2 * self.B * self.T * self.D * (5 if self.constant else 8)

    def measure(self, device: torch.device, limits: Ceilings) -> Found:
        torch.manual_seed(0)
        shape = (self.B, self.T, self.D)
        x, dh = (torch.randn(shape, device=device).bfloat16() for _ in range(2))
        decay = torch.sigmoid(3 + torch.randn((1, 1, self.D) if self.constant else shape, device=device)).bfloat16()
        leaves = [x.requires_grad_(), decay.requires_grad_()]

        def both() -> tuple[Tensor, ...]:
            h = linear_scan(x, decay)[0]
            return h, *torch.autograd.grad(h, leaves, dh)

        def forward() -> Tensor:
            with torch.no_grad():
                return linear_scan(x, decay)[0]

        errors = relative_errors(self._checked(both()), self._reference(leaves, dh))
        forward_ms, both_ms = median_ms(forward, device), median_ms(both, device)
        floor_ms = 1e3 * self.floor_bytes() / limits.copy_bytes_per_s
        times = {"forward_ms": forward_ms, "both_ms": both_ms, "floor_ms": floor_ms, "over_floor": both_ms / floor_ms}
        return {"name": self.name, **times, "errors": dict(zip(("h", "dx", "da"), errors.values(), strict=False))}

    def _checked(self, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """h, dx, da; not the gradient of a constant decay, a sum over the batch that one sequence cannot tell."""
        return results[:2] if self.constant else results

    def _reference(self, leaves: list[Tensor], dh: Tensor) -> tuple[Tensor, ...]:
        """The last sequence in float64, in plain PyTorch."""
        x, decay = (leaf.detach()[-1:].double().requires_grad_() for leaf in leaves)
        h = linear_scan(x, decay, backend="chunk")[0]
        return self._checked((h, *torch.autograd.grad(h, (x, decay), dh[-1:].double())))

    def line(self, found: Found) -> str:
        errors = ", ".join(f"{name} {error:.1e}" for name, error in found["errors"].items())
        times = f"{found['forward_ms']:.3f} / {found['both_ms']:.3f} ms, floor {found['floor_ms']:.3f}"
        return f"{times}, {found['over_floor']:.2f}x; errors {errors}"


@dataclass(frozen=True)
class Length:
    """The same number of tokens cut into sequences of every length: nanoseconds a token, forward and backward."""

    kind: Kind
    H: int
    width: int
    tokens: int
    lengths: tuple[int, ...]
    section: ClassVar[str] = "length"
    goal: ClassVar[float] = 1.1  # the dearest length over the cheapest

    @property
    def name(self) -> str:
        return f"length {self.kind} H{self.H} K{self.width}"

    @property
    def quick(self) -> bool:
        return self.H == 8

    def tiny(self) -> Length:
        return replace(self, H=2, width=16, tokens=256, lengths=(64, 256))

    def measure(self, device: torch.device, limits: Ceilings) -> Found:
        """What does not fit in memory is left out."""
        cost: dict[str, float] = {}
        left_out: dict[str, str] = {}
        for T in self.lengths:
            row = Row(self.kind, self.tokens // T, T, self.H, self.width, self.width)
            try:
                cost[str(T)] = 1e6 * median_ms(both_call(ours, make_inputs(row, device)), device) / self.tokens
            except torch.OutOfMemoryError:
                left_out[str(T)] = "out of memory"
            if device.type == "cuda":
                torch.cuda.empty_cache()
        spread = max(cost.values()) / min(cost.values()) if cost else None
        found = {"name": self.name, "tokens": self.tokens, "ns_per_token": cost, "left_out": left_out}
        return {**found, "most_over_least": spread, "goal": self.goal}

    def line(self, found: Found) -> str:
        costs = ", ".join(f"{T}: {ns:.2f}" for T, ns in found["ns_per_token"].items())
        out = "".join(f", {T}: {why}" for T, why in found["left_out"].items())
        spread = "-" if found["most_over_least"] is None else f"{found['most_over_least']:.3f}"
        return f"ns a token at {costs}{out}; most over least {spread} (goal {self.goal})"


@dataclass(frozen=True)
class Loss:
    """linear_cross_entropy over N tokens of width D and V words, bf16, forward and backward, for the mean loss.

    Peers: torch's linear and cross_entropy, and flash-linear-attention's FusedLinearCrossEntropyLoss where it is
    installed. The floor is three products of logits at the measured rate.
    """

    N: int
    D: int
    V: int
    section: ClassVar[str] = "loss"
    quick: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return f"loss {self.N} D{self.D} V{self.V}"

    def tiny(self) -> Loss:
        return replace(self, N=64, D=8, V=100)

    def measure(self, device: torch.device, limits: Ceilings) -> Found:
        torch.manual_seed(0)
        x = torch.randn(1, self.N, self.D, device=device).bfloat16().requires_grad_()
        weight = (0.02 * torch.randn(self.V, self.D, device=device)).bfloat16().requires_grad_()
        targets = torch.randint(self.V, (1, self.N), device=device)
        forms = {
            "ours": lambda: linear_cross_entropy(x, weight, targets).mean(),
            "torch": lambda: cross_entropy(linear(x[0], weight), targets[0]),
        }
        if importlib.util.find_spec("fla") is not None and device.type == "cuda":
            fused = importlib.import_module("fla.modules.fused_linear_cross_entropy").FusedLinearCrossEntropyLoss()
            forms["fla"] = lambda: fused(x, targets, weight)
        exact = torch.autograd.grad(
            cross_entropy(linear(x[0].float(), weight.float()), targets[0]), (x, weight)
        )  # fmt: skip
        found: Found = {"name": self.name, "floor_ms": 6e3 * self.N * self.D * self.V / limits.matmul_flops}
        for form, loss in forms.items():

            def both(loss: Callable[[], Tensor] = loss) -> tuple[Tensor, ...]:
                return torch.autograd.grad(loss(), (x, weight))

            errors = [float((a.float() - b).norm() / b.norm()) for a, b in zip(both(), exact, strict=True)]
            both_ms, extra = median_ms(both, device), peak_bytes(both, device)
            found[form] = {"both_ms": both_ms, "extra_bytes": extra, "errors": errors}
        return found

    def line(self, found: Found) -> str:
        forms = [
            f"{form} {found[form]['both_ms']:.2f} ms, {found[form]['extra_bytes'] / 2**20:.0f} MiB,"
            f" errors {', '.join(f'{error:.1e}' for error in found[form]['errors'])}"
            for form in ("ours", "torch", "fla")
            if form in found
        ]
        return f"{'; '.join(forms)}; floor {found['floor_ms']:.2f} ms"


Section = Softmax | Step | Scan | Length | Loss
