"""What a model can do without some of its mixers: any task again, with what they add to a layer's input set to zero.

A hybrid that keeps softmax in some layers can have linear layers that do nothing: its scores then are those of the
softmax layers, and its state holds nothing of use (arXiv 2510.05901 found it in conversions with a softmax window).

    softmax   what the linear layers do by themselves
    linear    what the softmax layers do by themselves
    mixers    neither: no token knows of another one
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from linscale.data.tokenizer import Tokenizer
from linscale.evaluate.task import PerRun, Result, Task
from linscale.layers import SoftmaxAttention
from linscale.models import LanguageModel
from linscale.models.block import Block
from linscale.models.recurrent_block import RecurrentBlock

Part = Literal["softmax", "linear", "mixers"]
PARTS: tuple[Part, ...] = get_args(Part)


def mixers_of(model: LanguageModel, part: Part) -> list[nn.Module]:
    """The mixers of a model that a part names; of a recurrent transformer, whose blocks do without, none."""
    mixers = [
        block.mixer for block in model.blocks if isinstance(block, Block) and not isinstance(block, RecurrentBlock)
    ]
    if part == "mixers":
        return mixers
    return [mixer for mixer in mixers if isinstance(mixer, SoftmaxAttention) == (part == "softmax")]


@contextlib.contextmanager
def without(model: LanguageModel, part: Part) -> Iterator[None]:
    """Inside, these mixers give zeros; their states are as ever."""
    hooks = [mixer.register_forward_hook(_zeros) for mixer in mixers_of(model, part)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _zeros(mixer: nn.Module, inputs: Any, outputs: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    y, state = outputs
    return torch.zeros_like(y), state


@dataclass(frozen=True)
class Without:
    """A task on the model without a part of its mixers."""

    task: Task
    part: Part

    @property
    def name(self) -> str:
        return f"without-{self.part}-{self.task.name}"

    @property
    def metrics(self) -> Sequence[str]:
        return self.task.metrics

    def version(self, tokenizer: Tokenizer) -> str:
        return self.task.version(tokenizer)

    def for_run(self, settings: Mapping[str, Any]) -> Task:
        return Without(self.task.for_run(settings), self.part) if isinstance(self.task, PerRun) else self

    def obstacle(self, model: LanguageModel, tokenizer: Tokenizer) -> str | None:
        if not mixers_of(model, self.part):
            return f"the model has no {self.part} layer to leave out"
        return self.task.obstacle(model, tokenizer)

    def run(self, model: LanguageModel, tokenizer: Tokenizer) -> list[Result]:
        with without(model, self.part):
            return self.task.run(model, tokenizer)
