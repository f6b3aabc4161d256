"""The disk that a recipe takes, so that it is known before work starts."""

from __future__ import annotations

from pathlib import Path

import torch

from linscale.adapt.supra import Teacher
from linscale.models import LinearizedConfig, build_model
from linscale.models.count import count_parameters
from linscale.train.config import checkpoint_steps
from linscale.train.recipe import Recipe
from linscale.train.trained import freeze

WEIGHT, MOMENTS = 4, 8  # bytes of a parameter in a checkpoint, and of AdamW's two moments of a trained one
AT_ONCE = 3  # checkpoints with moments: the two newest, and one that is being written


def recipe_bytes(recipe: Recipe, teacher: Teacher, config: LinearizedConfig) -> int:
    """The most that the folders of a recipe hold at a time: conversion, teacher, checkpoints of all stages."""
    source = sum(entry.bytes for entry in teacher.entries.values())
    learns = any(stage.loss != "text" for stage in recipe.stages)
    new = count_parameters(config).total - count_parameters(teacher.config).total
    kept = most = source * (1 + learns) + WEIGHT * new
    for number in range(len(recipe.stages)):
        settings = recipe.stage_config(number, Path("start"), Path("teacher"))
        with torch.device("meta"):
            model = build_model(config)
        freeze(model, settings.trained)
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
        count = len(checkpoint_steps(settings))
        kept += WEIGHT * count * sum(size for size, _ in sizes)
        with_moments = count if settings.keep_optimizer == "all" else min(count, AT_ONCE)
        most = max(most, kept + MOMENTS * with_moments * sum(size for size, trained in sizes if trained))
    return most
