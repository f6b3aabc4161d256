"""Forward and backward pass as one CUDA graph: a step of thousands of short kernels costs the host one launch.

Where windows or layers are small, the host that launches them is what a GPU waits for. A graph is of one shape; when
batches have another, as in a curriculum, it is recorded anew and the one before is let go. A recording that fails is
tried once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from linscale.config import UserError
from linscale.data.loader import Batch
from linscale.distributed import Ranks
from linscale.train.config import TrainConfig

WARM = 3  # passes before the recorded one: they compile, choose algorithms, and make what stays

Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], Any], Tensor]]
"""Records what a function does on the device: how to do it again, and its result, which lies where it lay."""


def captures(train: TrainConfig, ranks: Ranks, device: str, passes: int) -> bool:
    """What `train.capture` comes to. Raises UserError where it asks for what there is not."""
    if train.capture == "off":
        return False
    obstacles = {
        f"the device is {device!r}, and it takes CUDA": device != "cuda",
        f"{ranks.size} ranks exchange gradients on the way": ranks.size > 1,
        "packed documents have another shape in every batch (train.documents)": train.documents,
        "what is recomputed has to drop out the same again (train.dropout with train.activation_checkpointing)": (
            train.dropout > 0 and train.activation_checkpointing != "none"
        ),
        f"a step is {passes} passes, and it holds one (train.micro_batch)": passes > 1,
    }
    found = [obstacle for obstacle, there in obstacles.items() if there]
    if found and train.capture == "on":
        raise UserError(f"train.capture = 'on': {found[0]}; set it to 'auto' or 'off'")
    return not found


class Captured:
    """The loss of a batch and its gradient, by a graph; `loss` gives that of tokens and targets (B, T), on the device.

    Gradients lie in buffers of the graph, which are the parameters' `grad` after each call: what was there is gone.
    """

    def __init__(
        self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], record: Record | None = None
    ) -> None:
        self._parameters, self._of = list(model.parameters()), loss
        self._record = record or on_cuda
        self._tokens = self._targets = self._loss = torch.empty(0)
        self._replay: Callable[[], Any] | None = None
        self._gradients: list[Tensor | None] = []

    def __call__(self, batch: Batch) -> Tensor:
        """The loss, to be read before the next call."""
        if self._replay is None or batch.tokens.shape != self._tokens.shape:
            self._begin(batch)
        assert self._replay is not None
        self._tokens.copy_(batch.tokens, non_blocking=True)
        self._targets.copy_(batch.targets, non_blocking=True)
        self._replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._loss

    def _begin(self, batch: Batch) -> None:
        self._replay, self._gradients, self._loss = None, [], torch.empty(0)
        device = self._parameters[0].device
        self._tokens, self._targets = batch.tokens.to(device, copy=True), batch.targets.to(device, copy=True)
        try:
            self._replay, self._loss = self._record(self._pass)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # where something was compiled as late as in the recorded pass; it is there now
            self._replay, self._loss = self._record(self._pass)
        self._gradients = [parameter.grad for parameter in self._parameters]

    def _pass(self) -> Tensor:
        for parameter in self._parameters:
            parameter.grad = None  # the backward pass makes them where the graph has its memory
        loss = self._of(self._tokens, self._targets)
        loss.backward()
        return loss.detach()


def on_cuda(function: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
    """A Record by a CUDA graph. Random numbers of a replay are those of the generator's state at that time."""
    random = torch.cuda.get_rng_state()
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM):
            function()
    torch.cuda.current_stream().wait_stream(aside)
    torch.cuda.set_rng_state(random)
    graph = torch.cuda.CUDAGraph()
    # On the same stream: what autograd keeps of a parameter belongs to the stream that it was first used on.
    # "thread_local": the thread that pins batches in memory goes on meanwhile.
    try:
        with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
            result = function()
    except RuntimeError:
        # The generator would wait for this recording to end, and refuse to draw, for as long as the process lives.
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())
        torch.cuda.set_rng_state(random)
        raise
    return graph.replay, result
