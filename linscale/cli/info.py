"""linscale info: what the models are and cost."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import tyro

from linscale.cli.output import Json, file_size, print_json, print_table
from linscale.config import UserError, human, to_dict
from linscale.models import CONFIGS, preset
from linscale.models.count import (
    count_parameters,
    flops_per_token,
    paper_flops_per_step,
    paper_parameters,
    state_elements,
)

PUBLISHED = ("70M", "160M", "410M", "1B", "3B", "7B")


def info(
    archs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="ARCH...")] = (),
    *,
    sizes: Annotated[tuple[str, ...], tyro.conf.arg(name="size")] = (),
    length: int = 8192,
    json: Json = False,
) -> None:
    """Parameters, FLOPs and decoding state of the model family, counted exactly and without building a model.

    `params` are all, `N` those without embeddings by the paper's formula. FLOPs are those of matrix products for one
    token, head included, averaged over a sequence of `length`: training (forward and backward), prefill (forward) and
    one decoding step after `length` tokens. `state` is what decoding must remember for one sequence, at 4 bytes an
    element for linear models (fp32) and 2 for the keys and values of softmax attention (bf16).

    Args:
        archs: Architectures to show: llama, tnl, hgrn2, cosformer2, recurrent_transformer, linearized. All by default.
        sizes: Sizes to show, e.g. 410M or 1B-2048x18. The six published sizes by default.
        length: Tokens in a sequence.
    """
    if length < 1:
        raise UserError(f"length = {length}: expected at least 1")
    rows = [_describe(arch, size, length) for arch in archs or CONFIGS for size in sizes or PUBLISHED]
    if json:
        print_json(rows)
        return
    print_table(
        f"The family at {length} tokens",
        (
            "arch",
            "size",
            "shape",
            "params",
            "N",
            "train",
            "prefill",
            "step",
            "state",
            "PFLOPs/step",
        ),
        [_row(item) for item in rows],
        left=2,
    )


def _describe(arch: str, size: str, length: int) -> dict[str, Any]:
    config = preset(arch, size)
    elements = state_elements(config, length)
    return {
        "arch": arch,
        "size": size,
        "config": to_dict(config) | {"d_ff": config.glu_width, "n_heads": config.n_heads},
        "parameters": asdict(count_parameters(config)) | {"total": count_parameters(config).total},
        "paper_parameters": paper_parameters(config),
        "length": length,
        "flops_per_token": {mode: flops_per_token(config, mode, length) for mode in ("train", "prefill", "step")},
        "state_elements": elements,
        "state_bytes": elements * (2 if arch == "llama" else 4),
        "paper_pflops_per_step": paper_flops_per_step(config) / 1e15,
    }


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    config, flops = item["config"], item["flops_per_token"]
    return (
        item["arch"],
        item["size"],
        f"{config['d_model']} x {config['n_layers']}",
        human(item["parameters"]["total"]),
        human(item["paper_parameters"]),
        *(human(flops[mode], "FLOP") for mode in ("train", "prefill", "step")),
        file_size(item["state_bytes"]),
        f"{item['paper_pflops_per_step']:.1f}",
    )
