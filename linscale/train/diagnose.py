"""Where a step stops being finite: the first tensor that is not, in the order in which a step makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from linscale.distributed import ALONE, Ranks, local_rows


def first_bad_tensor(model: nn.Module, loss: Callable[[], Tensor], ranks: Ranks = ALONE) -> str | None:
    """The name of the first tensor that is not finite, or None.

    Looked for in this order: weights; outputs of modules, inner before outer, as the forward pass goes; the loss;
    gradients, those of the last parameters first, as the backward pass goes.

    loss  runs the forward pass again and returns the loss to differentiate. Gradients are left at None.
    With several ranks each looks at what it holds, and all say the same: the first finding of the first that has one.
    """
    parameters = list(model.named_parameters())
    weights = [f"weight {name}" for name, parameter in parameters if not _finite(parameter)]
    if any_rank := _first(weights, ranks):
        return any_rank
    model.zero_grad(set_to_none=True)
    found: list[str] = []
    try:
        with _watched(model, found):
            value = loss()
        if not found and not _finite(value):
            found.append("loss")
        if any_rank := _first(found, ranks):
            return any_rank
        value.backward()
        bad = [name for name, parameter in parameters[::-1] if not _finite(parameter.grad)]
        return _first([f"gradient of {name}" for name in bad], ranks)
    finally:
        model.zero_grad(set_to_none=True)


def _first(found: list[str], ranks: Ranks) -> str | None:
    return next((place for place in ranks.gather(found[0] if found else None) if place), None)


@contextmanager
def _watched(model: nn.Module, found: list[str]) -> Iterator[None]:
    """Inside, modules whose output is not finite are noted by name."""

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not all(_finite(tensor) for tensor in _tensors(output)):
                found.append(f"output of {name}")

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _finite(tensor: Tensor | None) -> bool:
    if tensor is None or not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(local_rows(tensor)[0]).all())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
