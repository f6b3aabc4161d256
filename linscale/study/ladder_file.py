"""A designed ladder as a study file, ready for `linscale study plan` and `study run`."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from linscale.config import parse
from linscale.study.gpus import Gpu
from linscale.study.ladder_design import Ladder
from linscale.study.plan import StudyConfig
from linscale.study.proposal import split
from linscale.study.rungs import CHECKPOINTS, Rung

SMALL = 128  # width up to which a study's demo was tuned, with larger initial weights
SMALL_INIT = 0.1
VALIDATION = (65_536, 1_048_576)


@dataclass(frozen=True)
class LadderFile:
    """What a study file holds besides its rungs."""

    name: str
    archs: Sequence[str]
    data: Mapping[str, object]
    """The table [data]."""
    vocab_size: int | None
    """None for the tokenizer's."""
    reckoned_vocab: int
    """The vocabulary that memory is reckoned with."""
    length: int
    gpu: Gpu


def study_name(path: Path) -> str:
    """A study's name from the name of its file."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")
    return name or "ladder"


def study_text(ladder: Ladder, file: LadderFile, comment: str) -> str:
    """The TOML of a study, with a comment at its head; read back as a StudyConfig, so that a study accepts it."""
    least = min(rung.recipe.tokens for rung in ladder.rungs)
    validation = min(max(least // 20, VALIDATION[0], file.length), VALIDATION[1])
    validation = max(file.length, validation // file.length * file.length)
    largest = ladder.rungs[-1].recipe
    model = [] if file.vocab_size is None else [f"vocab_size = {file.vocab_size}"]
    if max(rung.shape.d_model for rung in ladder.rungs) <= SMALL:
        model.append(f"init_std = {SMALL_INIT} # small widths want larger weights than the 0.02 of published sizes")
    lines = [
        *(f"# {line}".rstrip() for line in comment.splitlines()),
        "",
        f"name = {json.dumps(file.name)}",
        f"archs = {json.dumps(list(file.archs))}",
        "",
        "[data]",
        *(f"{key} = {_value(value)}" for key, value in file.data.items()),
        "",
        *(["[model]", *model, ""] if model else []),
        "[train] # of a rung that does not say otherwise",
        f"tokens = {_whole(largest.tokens)}",
        f"batch_tokens = {_whole(largest.batch_tokens)}",
        f"length = {file.length}",
        f"lr = {largest.lr:g}",
        f"warmup_tokens = {_whole(largest.warmup_tokens)}",
        f"checkpoints = {CHECKPOINTS}",
        f"validation_tokens = {_whole(validation)}",
        *(line for rung in ladder.rungs for line in ["", *_rung(rung, file)]),
    ]
    text = "\n".join(lines) + "\n"
    parse(StudyConfig, tomllib.loads(text), source="ladder")
    return text


def _rung(rung: Rung, file: LadderFile) -> list[str]:
    shape, trained = rung.shape, rung.recipe
    micro = [
        split(shape.config(arch, file.reckoned_vocab), trained, file.length, file.gpu) or math.inf
        for arch in file.archs
    ]
    passes = [] if math.isinf(min(micro)) else [f"micro_batch = {int(min(micro))}"]
    return [
        "[[sizes]]",
        f"name = {json.dumps(rung.name)}",
        f"d_model = {shape.d_model}",
        f"n_layers = {shape.n_layers}",
        f"head_dim = {shape.head_dim}",
        f"d_ff = {shape.d_ff}",
        f"tokens = {_whole(trained.tokens)}",
        f"batch_tokens = {_whole(trained.batch_tokens)}",
        *passes,
        f"lr = {trained.lr:g}",
        f"warmup_tokens = {_whole(trained.warmup_tokens)}",
        *([f"seeds = {list(range(rung.seeds))}"] if rung.seeds > 1 else []),
    ]


def _whole(value: int) -> str:
    return f"{value:_}"


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)
