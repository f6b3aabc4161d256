"""AdamW over parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from linscale.distributed import sharded
from linscale.models import LanguageModel
from linscale.train.config import TrainConfig
from linscale.train.trained import new_names


def build_optimizer(model: LanguageModel, train: TrainConfig) -> torch.optim.AdamW:
    """AdamW with decoupled weight decay on the matrices of linear maps and embeddings."""
    groups = parameter_groups(model, train.weight_decay)
    if train.new_lr is not None:
        names = new_names(model)
        new = {id(parameter) for name, parameter in model.named_parameters() if name in names}
        groups = [part for group in groups for part in _split(group, new, train.new_lr / train.lr)]
    return torch.optim.AdamW(groups, lr=train.lr, betas=train.betas, eps=train.eps, fused=True)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups that cover every parameter that is trained exactly once: decayed and not.

    Decayed are the weights of Linear and Embedding modules: their scale is free, since a norm follows or precedes
    them, and decay keeps their effective learning rate up. Not decayed is what has a meaning of its own at a given
    value, whatever its number of dimensions: norm gains, biases, lower bounds of gates, angles, decay rates.
    """
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, (nn.Linear, nn.Embedding))}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in parameters if id(parameter) in matrices]
    others = [parameter for parameter in parameters if id(parameter) not in matrices]
    covered = [id(parameter) for parameter in decayed + others]
    assert len(set(covered)) == len(covered) == len(parameters), "every parameter belongs to exactly one group"
    groups = ({"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def _split(group: dict[str, Any], new: set[int], rate: float) -> list[dict[str, Any]]:
    """The group without and with the `new` parameters, by id; these have `rate` times the learning rate."""
    parts = ([p for p in group["params"] if (id(p) in new) == chosen] for chosen in (False, True))
    return [{**group, "params": part, "rate": at} for part, at in zip(parts, (1.0, rate), strict=True) if part]


def learning_rate(train: TrainConfig, step: int) -> float:
    """The learning rate of step 1, 2, ..., train.steps.

    Warm-up is linear and reaches the peak at its last step; a decay reaches `min_lr_ratio` at the last step.
    """
    if step < train.warmup_steps:
        return train.lr * step / train.warmup_steps
    if train.schedule == "constant":
        return train.lr
    if train.schedule == "cosine":
        done = (step - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
        share = 0.5 * (1.0 + math.cos(math.pi * done))
    else:
        share = min(1.0, (train.steps - step) / train.decay_steps)
    return train.lr * (train.min_lr_ratio + (1.0 - train.min_lr_ratio) * share)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use `lr` in the next step, in every group; times its "rate" in one that has it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("rate", 1.0)


def skip_unless(optimizer: torch.optim.Optimizer, finite: torch.Tensor) -> None:
    """Let the next step of a fused optimizer leave everything as it is, moments and step counts too, where `finite`, a
    scalar on the device, is false. Decided on the device: nothing waits for it."""
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # as torch's gradient scaler tells it


def clip_gradient(model: nn.Module, optimizer: torch.optim.Optimizer, grad_clip: float) -> torch.Tensor:
    """Let the next step of a fused optimizer see the gradient scaled to a norm of at most `grad_clip` (0: as it is).

    Returns the norm it has, on its device. The optimizer divides as it reads: no pass over the gradient is made for it.
    """
    norm = nn.utils.get_total_norm(parameter.grad for parameter in model.parameters() if parameter.grad is not None)
    if sharded(norm):
        norm = norm.full_tensor()
    scale = (norm / grad_clip).clamp(min=1.0) if grad_clip else None
    optimizer.grad_scale = scale  # type: ignore[attr-defined]  # as torch's gradient scaler tells it
    return norm
