"""Which weights of a model are trained; the others keep their bits."""

from __future__ import annotations

from typing import Literal

from linscale.config import UserError
from linscale.layers import SoftmaxAttention
from linscale.models import LanguageModel
from linscale.models.linearized import LinearizedConfig, new_parameters


def new_names(model: LanguageModel) -> set[str]:
    """The parameters of a linearized model that softmax attention has not."""
    return new_parameters(model.config) if isinstance(model.config, LinearizedConfig) else set()


def freeze(model: LanguageModel, trained: Literal["all", "mixers", "new"]) -> None:
    """Leave gradients to the weights of `train.trained` alone. Raises UserError where a model has none of them."""
    if trained == "all":
        return
    chosen = new_names(model) if trained == "new" else _mixers(model)
    if not chosen:
        what = "weights that softmax attention has not" if trained == "new" else "layers but softmax attention"
        raise UserError(f"train.trained = {trained!r}: the model has no {what}; expected 'all'")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)


def _mixers(model: LanguageModel) -> set[str]:
    mixers = {f"blocks.{layer}.mixer": block.get_submodule("mixer") for layer, block in enumerate(model.blocks)}
    return {
        f"{place}.{name}"
        for place, mixer in mixers.items()
        if not isinstance(mixer, SoftmaxAttention)
        for name, _ in mixer.named_parameters()
    }
